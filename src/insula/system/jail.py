"""Programs that start confined: what a program may see and be is decided here (pure), and done by
`jail_child.py`, which then becomes that program.

Not for children of ours that only handle data: those confine themselves (`confine`).  Such a program gets a
user that owns nothing, no capabilities, namespaces of its own, and a root that holds what is listed, or some
of these.  All else reaches it as an open descriptor.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_UID = 1_500_000
"""Uids from here on are users of ours, which own nothing.  It is above what distributions give to users, to
systemd's DynamicUser (61184–65519) and to containers by default (/etc/subuid from 100000)."""

# imported, not run as a script: so its compiled form is used
_CHILD = f"import sys; sys.path.append({os.path.dirname(__file__)!r}); import jail_child; jail_child.main()"


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
    """What `jail_child.py` does before it becomes the program.

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

    def encode(self, keep: Sequence[int]) -> str:
        spec: dict[str, object] = {
            "keep": list(keep),
            "cgroups": self.cgroups,
            "cpus": self.cpus,
            "private": self.private,
        }
        if self.copies:
            spec["copies"] = self.copies
        if self.preload:
            spec["preload"] = self.preload
        if self.uid:
            spec["uid"] = self.uid
        if self.root_at:
            spec["root"] = {
                "at": self.root_at,
                "binds": self.root_binds,
                "links": self.root_links,
                "nodes": self.root_nodes,
            }
        if self.shares:
            spec["shares"] = [
                {
                    "source": s.source,
                    "at": s.at,
                    "read_only": s.read_only,
                    "file": s.file,
                    "recursive": s.recursive,
                }
                for s in self.shares
            ]
        return marshal.dumps(spec).hex()


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
    python = sys.executable or "/usr/bin/python3"
    return [python, "-I", "-S", "-c", _CHILD, confinement.encode(keep), *argv]
