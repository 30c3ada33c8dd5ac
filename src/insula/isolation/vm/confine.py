"""How QEMU is confined: decided here (pure), done by `system.jail`.

Each VM's QEMU is a user of its own (a uid that owns nothing), without capabilities, in namespaces of its own
(mount, net, ipc, uts), in a root that holds /usr, three device nodes and the guest's kernel, all read-only.
Everything else reaches it as an open descriptor.  virtiofsd keeps root, because it must create files of any
owner; it pivots into the shared directory and filters its system calls itself.

Uids: FIRST_UID + slot.  A uid is free again when its VM is gone.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import insula
from insula.errors import Unavailable
from insula.isolation.vm.machine import FDS
from insula.system.jail import FIRST_UID, Confinement, find_programs

UIDS = 65_536

DISCARD = os.path.join(os.path.dirname(insula.__file__), "_guest", "discard-x86_64.so")
"""Lets a guest whose memory is a template's give pages back (guest/discard/discard.c)."""
PRELOAD = "/discard.so"


def pick_uid(taken: Collection[int]) -> int:
    """The lowest free uid.  Raises Unavailable."""
    for uid in range(FIRST_UID, FIRST_UID + UIDS):
        if uid not in taken:
            return uid
    raise Unavailable(f"all {UIDS} uids for virtual machines are in use")


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
    links, binds = find_programs()
    if own_descriptors:
        # its own: the child does this, and stays that process
        binds = (*binds, ("/proc/self/fd", FDS, False))
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
