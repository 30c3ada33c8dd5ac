"""What a boot needs, decided from a plan.  Pure but for looking at the kinds of bind sources."""

from __future__ import annotations

from dataclasses import dataclass

from insula.isolation.plan import LaunchPlan
from insula.isolation.vm.confine import ShareSpec
from insula.isolation.vm.virtiofs import binds, share_of
from insula.model.limits import Limits


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
        id=f"{plan.id}.files",
        run_dir=run_dir,
        vcpus=1,
        memory_mib=192,
        limits=Limits(),
        image_disk=plan.disk.image_disk,
        upper_disk=plan.disk.upper_disk,
    )


def probe_order(run_dir: str) -> Order:
    """A VM without anything, to see whether an accelerator boots the guest at all."""
    return Order(id="accel-probe", run_dir=run_dir, vcpus=1, memory_mib=192, limits=Limits())
