"""What a boot needs, decided from a plan.  Pure but for looking at the kinds of bind sources."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
from dataclasses import dataclass

from insula.isolation.plan import LaunchPlan
from insula.isolation.vm.rehearsal import MAC
from insula.isolation.vm.virtiofs import binds, share_of
from insula.model.limits import Limits
from insula.system.jail import ShareSpec

UPPER = "upper.ext4"
SPARE_PREFIX = "ic"  # of links; not one that the network room sweeps
HELPER_SUFFIX = ".files"  # of a helper's cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One VM to boot.  `taps`: (tap device, mac).  `shares`: (tag, what virtiofsd sees)."""

    id: str
    run_dir: str
    vcpus: int
    memory_mib: int
    limits: Limits
    image_disk: str = ""
    upper_disk: str = ""
    log_path: str = ""
    taps: tuple[tuple[str, str], ...] = ()
    shares: tuple[tuple[str, ShareSpec], ...] = ()
    background: bool = False
    """Nobody waits for it: others go first."""
    files: tuple[str, ...] = ()
    """Targets of the files that lie right on its root, with no mount between."""
    fixed_taps: bool = False
    """Nothing can stand in for one of its taps: it is a macvtap, which is its own way to the wire."""

    @property
    def has_more(self) -> bool:
        """Devices that no template has."""
        return bool(self.shares) or len(self.taps) > 1

    def share_files(self) -> dict[str, str]:
        return {tag: share.file for tag, share in self.shares if share.file}


def order_for(plan: LaunchPlan) -> Order:
    """Raises InvalidRequest or UnsupportedField for a bind that cannot be shared."""
    assert plan.disk is not None
    assert plan.machine is not None
    return Order(
        id=plan.id,
        run_dir=plan.run_dir,
        vcpus=plan.machine.vcpus,
        memory_mib=plan.machine.memory_mib,
        limits=plan.limits,
        image_disk=plan.disk.image_disk,
        upper_disk=plan.disk.upper_disk,
        log_path=plan.console.log_path,
        taps=tuple((endpoint.link, endpoint.mac) for endpoint in plan.endpoints),
        shares=tuple((m.tag, share_of(m, plan.run_dir)) for m in binds(plan.mounts)),
        files=() if plan.mounts else tuple(file.target for file in plan.etc_files),
        fixed_taps=any(endpoint.on_parent for endpoint in plan.endpoints),
    )


def helper_order(plan: LaunchPlan, run_dir: str) -> Order:
    """A VM on the same disks that only serves files: no network, no log, and no mounts, as what is in those
    is served by the host (`isolation.mounted`)."""
    assert plan.disk is not None
    return Order(
        id=plan.id + HELPER_SUFFIX,
        run_dir=run_dir,
        vcpus=1,
        memory_mib=192,
        limits=Limits(),
        image_disk=plan.disk.image_disk,
        upper_disk=plan.disk.upper_disk,
    )


def probe_id(exec_root: str) -> str:
    """Of the accelerator's probe: one per daemon, and several may run on a host."""
    return "accel-probe-" + _short(exec_root)


def probe_order(exec_root: str) -> Order:
    """A VM without anything, to see whether an accelerator boots the guest at all."""
    run_dir = os.path.join(exec_root, "accel-probe")
    return Order(id=probe_id(exec_root), run_dir=run_dir, vcpus=1, memory_mib=192, limits=Limits())


def _spare_tap() -> tuple[str, str]:
    """A tap that is on no bridge, and gone with the QEMU that has it."""
    return SPARE_PREFIX + secrets.token_hex(5), MAC


def with_interfaces(order: Order, least: int) -> Order:
    """A clone has an interface because its template has; without a network it leads nowhere."""
    spare = tuple(_spare_tap() for _ in range(least - len(order.taps)))
    return dataclasses.replace(order, taps=order.taps + spare) if spare else order


def rehearsal_order(name: str, run_dir: str, *, image_disk: str, vcpus: int, memory_mib: int) -> Order:
    """A VM that belongs to no instance, or not yet."""
    return Order(
        id=name,
        run_dir=run_dir,
        vcpus=vcpus,
        memory_mib=memory_mib,
        limits=Limits(),
        image_disk=image_disk,
        upper_disk=os.path.join(run_dir, UPPER),
        taps=(_spare_tap(),),
    )


def _short(exec_root: str) -> str:
    return hashlib.sha256(exec_root.encode()).hexdigest()[:8]


def template_place(exec_root: str, key: str) -> tuple[str, str]:
    """(name, run directory) of the VM that is booted to be made a template."""
    return f"template-{_short(exec_root)}-{key}", os.path.join(exec_root, "templates", key)


def passing_prefixes(exec_root: str) -> tuple[str, ...]:
    """What the names of this daemon's VMs begin with that are no instance's (yet)."""
    return f"template-{_short(exec_root)}-", f"clone-{_short(exec_root)}-"


def clone_place(exec_root: str) -> tuple[str, str]:
    """(name, run directory) of one more that is made ahead."""
    name = secrets.token_hex(6)
    return f"clone-{_short(exec_root)}-{name}", os.path.join(exec_root, "clones", name)
