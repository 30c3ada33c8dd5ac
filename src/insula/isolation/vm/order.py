"""What a boot needs, decided from a plan.  Pure but for looking at the kinds of bind sources."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from insula.isolation.plan import LaunchPlan
from insula.isolation.vm.confine import ShareSpec
from insula.isolation.vm.virtiofs import binds, share_of
from insula.model.limits import Limits

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
    )


def helper_order(plan: LaunchPlan, run_dir: str) -> Order:
    """A VM on the same disks that only serves files: no network, no mounts, no log."""
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
    return "accel-probe-" + hashlib.sha256(exec_root.encode()).hexdigest()[:8]


def probe_order(exec_root: str) -> Order:
    """A VM without anything, to see whether an accelerator boots the guest at all."""
    run_dir = os.path.join(exec_root, "accel-probe")
    return Order(id=probe_id(exec_root), run_dir=run_dir, vcpus=1, memory_mib=192, limits=Limits())
