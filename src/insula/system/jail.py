"""Programs that start confined: what a program may see and be is decided here (pure), and done by guest/jail,
which then becomes that program.

Not for children of ours that only handle data: those confine themselves (`confine`).  Such a program gets a
user that owns nothing, no capabilities, namespaces of its own, and a root that holds what is listed, or some
of these.  All else reaches it as an open descriptor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_UID = 1_500_000
"""Uids from here on are users of ours, which own nothing.  It is above what distributions give to users, to
systemd's DynamicUser (61184–65519) and to containers by default (/etc/subuid from 100000)."""

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_guest", f"jail-{os.uname().machine}")
"""Made of guest/jail: it starts with every VM, and Python's own start would be most of what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSpec:
    """What the program is to see of the host, at `at`.  `file`: it is one file, of this name.

    `recursive`: with what is mounted below the source.
    """

    source: str
    at: str
    read_only: bool
    file: str = ""
    recursive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What is done before the program begins.

    `uid` 0: it keeps root and its capabilities.  `cgroups`: files that take its pid.  `cpus`: those it may
    run on, if any are named.  `private`: with a network, IPC and a host name of its own; mounts are its own
    always.  `root_at` "": it keeps the root; else the directory where a new one is made of `root_binds`
    (source, path, read-only), `root_links` (path, text) and `root_nodes` (path, device number, owner).
    `copies`: (source, target) of memory files that it copies, and then closes the sources of.  `preload`: a
    library in that root (LD_PRELOAD).
    """

    uid: int = 0
    cgroups: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    private: bool = False
    root_at: str = ""
    root_binds: tuple[tuple[str, str, bool], ...] = ()
    root_links: tuple[tuple[str, str], ...] = ()
    root_nodes: tuple[tuple[str, int, int], ...] = ()
    shares: tuple[ShareSpec, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    preload: str = ""

    def steps(self, keep: Sequence[int]) -> list[str]:
        """For guest/jail, which does them in this order."""
        steps = ["keep", ",".join(map(str, keep))]
        for path in self.cgroups:
            steps += ["cgroup", path]
        for source, target in self.copies:
            steps += ["copy", str(source), str(target)]
        if self.cpus:
            steps += ["cpus", ",".join(map(str, self.cpus))]
        steps += ["namespaces", "mount,net,ipc,uts" if self.private else "mount", "private"]
        for share in self.shares:
            steps += _share(share)
        if self.uid:
            steps += ["bound"]
        if self.root_at:
            steps += self._root(self.root_at)
        if self.uid:
            steps += ["user", str(self.uid)]
        if self.preload:
            steps += ["set", "LD_PRELOAD", self.preload]
        return steps

    def _root(self, at: str) -> list[str]:
        steps = ["tmpfs", at, "", "size=1m,mode=0755"]
        for path, text in self.root_links:
            steps += ["link", at + path, text]
        for source, path, read_only in self.root_binds:
            steps += ["bind", source, at + path, "ro" if read_only else ""]
        for path, device, owner in self.root_nodes:
            steps += ["node", at + path, f"{os.major(device)}:{os.minor(device)}", str(owner)]
        return [*steps, "root", at]


def _share(share: ShareSpec) -> list[str]:
    read_only = "ro" if share.read_only else ""
    if share.file:
        place = f"{share.at}/{share.file}"
        return [
            *("tmpfs", share.at, "nodev,noexec", "size=64k,mode=0755"),
            *("bind", share.source, place, read_only),
        ]
    return ["bind", share.source, share.at, f"{read_only},rec" if share.recursive else read_only]


def find_programs() -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, bool], ...]]:
    """(links, binds) of a root that has the host's programs and libraries, read-only: /usr, and /bin, /lib
    and so on as symlinks where they are ones (merged /usr), else as binds."""
    links: list[tuple[str, str]] = []
    binds: list[tuple[str, str, bool]] = [("/usr", "/usr", True)]
    for path in ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin"):
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            binds.append((path, path, True))
    if os.path.exists("/etc/ld.so.cache"):
        binds.append(("/etc/ld.so.cache", "/etc/ld.so.cache", True))
    alternatives = "/etc/alternatives"  # libblas and friends are symlinks through it
    if os.path.isdir(alternatives):
        binds.append((alternatives, alternatives, True))
    return tuple(links), tuple(binds)


def wrap(confinement: Confinement, argv: Sequence[str], keep: Sequence[int]) -> list[str]:
    """The command line that confines itself and becomes `argv`, whose first word is an absolute path.

    Of its descriptors above 2 only those in `keep` stay open.
    """
    return [PROGRAM, *confinement.steps(keep), "--", *argv]
