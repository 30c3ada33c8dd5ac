"""How QEMU and virtiofsd are confined: decided here (pure), done by `jail.py` in the child.

Each VM's QEMU is a user of its own (a uid that owns nothing), without capabilities, in namespaces of its own
(mount, net, ipc, uts), in a root that holds /usr, three device nodes and the guest's kernel, all read-only.
Everything else reaches it as an open descriptor.  virtiofsd keeps root, because it must create files of any
owner; it pivots into the shared directory and filters its system calls itself.

Uids: FIRST_UID + slot.  A uid is free again when its VM is gone.  The range is above what distributions
give to users, to systemd's DynamicUser (61184–65519) and to containers by default (/etc/subuid from 100000).
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import insula
from insula.errors import Unavailable
from insula.isolation.vm.machine import FDS

FIRST_UID = 1_500_000
UIDS = 65_536

DISCARD = os.path.join(os.path.dirname(insula.__file__), "_guest", "discard-x86_64.so")
"""Lets a guest whose memory is a template's give pages back (guest/discard/discard.c)."""
PRELOAD = "/discard.so"
# imported, not run as a script: so its compiled form is used
_JAIL = f"import sys; sys.path.append({os.path.dirname(__file__)!r}); import jail; jail.main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSpec:
    """What virtiofsd is to see of the host, at `at`.  `file`: it is one file, of this name.

    `recursive`: with what is mounted below the source.
    """

    source: str
    at: str
    read_only: bool
    file: str = ""
    recursive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What `jail.py` does before it becomes the program.  uid 0: keep root.  `root_at` "": keep the root.

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
    shares: tuple[ShareSpec, ...] = field(default=())
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
            spec |= {"uid": self.uid, "gid": self.uid}
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


def pick_uid(taken: Collection[int]) -> int:
    """The lowest free uid."""
    for uid in range(FIRST_UID, FIRST_UID + UIDS):
        if uid not in taken:
            return uid
    raise Unavailable(f"all {UIDS} uids for virtual machines are in use")


def library_links() -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, bool], ...]]:
    """/lib, /lib64 and so on of the host: as symlinks where they are ones (merged /usr), else as binds."""
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


def confine_qemu(
    *,
    uid: int,
    cgroups: tuple[str, ...],
    cpus: tuple[int, ...],
    root_at: str,
    guest_directory: str,
    kvm: bool,
    own_descriptors: bool = False,
    copies: tuple[tuple[int, int], ...] = (),
) -> Confinement:
    """`own_descriptors`: it may open its own ones by a path, in `machine.FDS`."""
    links, binds = library_links()
    if own_descriptors:
        binds = (
            *binds,
            ("/proc/self/fd", FDS, False),
        )  # its own: the child does this, and stays that process
    nodes = [("/dev/null", os.makedev(1, 3)), ("/dev/urandom", os.makedev(1, 9))]
    if kvm:
        nodes.append(("/dev/kvm", os.stat("/dev/kvm").st_rdev))
    return Confinement(
        uid=uid,
        cgroups=cgroups,
        cpus=cpus,
        private=True,
        root_at=root_at,
        root_binds=(*binds, (guest_directory, "/guest", True), (DISCARD, PRELOAD, True)),
        root_links=links,
        root_nodes=tuple((path, device, uid) for path, device in nodes),
        copies=copies,
        preload=PRELOAD,
    )


def wrap(confinement: Confinement, argv: Sequence[str], keep: Sequence[int]) -> list[str]:
    """The command line that confines itself and becomes `argv`, whose first word is an absolute path.

    Of its descriptors above 2 only those in `keep` stay open.
    """
    python = sys.executable or "/usr/bin/python3"
    return [python, "-I", "-S", "-c", _JAIL, confinement.encode(keep), *argv]
