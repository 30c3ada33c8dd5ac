"""Limits as an OCI `linux.resources` section, and as writes to control files for `update`.  Pure, but for
looking which files there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from insula.model.limits import Limits
from insula.system.cgroups import Layout

_PERIOD_US = 100_000
BlockDevices = Sequence[tuple[int, int]]


def cpu_quota(limits: Limits) -> tuple[int, int]:
    """(quota, period) in microseconds; (0, 0) for no limit."""
    if limits.nano_cpus > 0:
        return limits.nano_cpus * _PERIOD_US // 10**9, _PERIOD_US
    if limits.cpu_quota_us or limits.cpu_period_us > 0:
        return max(limits.cpu_quota_us, 0), limits.cpu_period_us or _PERIOD_US
    return 0, 0


def memory_and_swap(limits: Limits) -> int:
    """Docker's `MemorySwap`: memory plus swap, -1 for no limit, 0 for not set."""
    if limits.memory_swap_bytes == 0 and limits.memory_bytes > 0:
        return 2 * limits.memory_bytes
    return limits.memory_swap_bytes


def make_resources(
    limits: Limits, *, swap_accounting: bool, swappiness: bool = True, block_devices: BlockDevices = ()
) -> dict[str, Any]:
    """Without `devices`.  Swap is left out where the kernel does not account it, and swappiness where it has
    no such setting.  `block_devices`: (major, minor) for each of the throttles."""
    memory: dict[str, Any] = {}
    if limits.memory_bytes > 0:
        memory["limit"] = limits.memory_bytes
    if limits.memory_reservation_bytes > 0:
        memory["reservation"] = limits.memory_reservation_bytes
    if swap_accounting and (swap := memory_and_swap(limits)) != 0:
        memory["swap"] = swap
    if limits.oom_kill_disable:
        memory["disableOOMKiller"] = True
    if limits.memory_swappiness is not None and swappiness:
        memory["swappiness"] = limits.memory_swappiness
    cpu: dict[str, Any] = {}
    quota, period = cpu_quota(limits)
    if limits.cpu_shares > 0:
        cpu["shares"] = limits.cpu_shares
    if period:
        cpu["period"] = period
    if quota:
        cpu["quota"] = quota
    if limits.cpu_rt_period_us:
        cpu["realtimePeriod"] = limits.cpu_rt_period_us
    if limits.cpu_rt_runtime_us:
        cpu["realtimeRuntime"] = limits.cpu_rt_runtime_us
    if limits.cpuset_cpus:
        cpu["cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        cpu["mems"] = limits.cpuset_mems
    resources: dict[str, Any] = {}
    if memory:
        resources["memory"] = memory
    if cpu:
        resources["cpu"] = cpu
    if limits.pids > 0:
        resources["pids"] = {"limit": limits.pids}
    if block := _block_io(limits, block_devices):
        resources["blockIO"] = block
    return resources


def _block_io(limits: Limits, devices: BlockDevices) -> dict[str, Any]:
    """Rates.  Weights are written by the backend: crun 1.8 knows CFQ's files only, and Linux 5.0 has none."""
    block: dict[str, Any] = {}
    for throttle, (major, minor) in zip(limits.throttles, devices, strict=False):
        if throttle.what != "weight":
            key = f"throttle{throttle.what.replace('IOps', 'IOPS')}Device"
            block.setdefault(key, []).append({"major": major, "minor": minor, "rate": throttle.value})
    return block


def find_weight_file(layout: Layout, group: str) -> str:
    """What weighs a group's block I/O, "" when nothing does."""
    directory = layout.path("blkio", group) or ""
    paths = (
        f"{directory}/{name}" for name in ("io.bfq.weight", "io.weight", "blkio.weight", "blkio.bfq.weight")
    )
    return next((path for path in paths if os.path.exists(path)), "")


def block_weights(limits: Limits, devices: BlockDevices, file: str) -> list[tuple[str, str]]:
    """(file, value): the weight of everything, then those of devices; `file` is `find_weight_file`'s."""

    def scaled(weight: int) -> int:  # io.weight goes to 10000; the OCI runtimes' formula
        return 1 + (weight - 10) * 9999 // 990 if file.endswith("/io.weight") else weight

    writes = [(file, str(scaled(limits.blkio_weight)))] if limits.blkio_weight else []
    for_device = file if "/io." in file else f"{file}_device"
    for throttle, (major, minor) in zip(limits.throttles, devices, strict=False):
        if throttle.what == "weight":
            writes.append((for_device, f"{major}:{minor} {scaled(throttle.value)}"))
    return writes


def control_writes(limits: Limits, *, version: int, swap_accounting: bool) -> list[tuple[str, str, str]]:
    """(controller, file, value) in the order that the kernel wants when limits grow.  What is zero in
    `limits` is left as it is."""
    return _writes_v2(limits) if version == 2 else _writes_v1(limits, swap_accounting)


def _writes_v1(limits: Limits, swap_accounting: bool) -> list[tuple[str, str, str]]:
    writes: list[tuple[str, str, str]] = []
    if limits.memory_bytes > 0:
        swap = memory_and_swap(limits)
        if swap_accounting and swap != 0:
            writes.append(("memory", "memory.memsw.limit_in_bytes", str(swap)))
        writes.append(("memory", "memory.limit_in_bytes", str(limits.memory_bytes)))
    if limits.memory_reservation_bytes > 0:
        writes.append(("memory", "memory.soft_limit_in_bytes", str(limits.memory_reservation_bytes)))
    if limits.memory_swappiness is not None:
        writes.append(("memory", "memory.swappiness", str(limits.memory_swappiness)))
    if limits.cpu_shares > 0:
        writes.append(("cpu", "cpu.shares", str(limits.cpu_shares)))
    quota, period = cpu_quota(limits)
    if period:
        writes.append(("cpu", "cpu.cfs_period_us", str(period)))
    if quota or limits.cpu_quota_us < 0:
        writes.append(("cpu", "cpu.cfs_quota_us", str(quota or -1)))
    if limits.cpu_rt_period_us:
        writes.append(("cpu", "cpu.rt_period_us", str(limits.cpu_rt_period_us)))
    if limits.cpu_rt_runtime_us:
        writes.append(("cpu", "cpu.rt_runtime_us", str(limits.cpu_rt_runtime_us)))
    return writes + _writes_both(limits)


def _writes_v2(limits: Limits) -> list[tuple[str, str, str]]:
    writes: list[tuple[str, str, str]] = []
    if limits.memory_bytes > 0:
        swap = memory_and_swap(limits)
        writes.append(("memory", "memory.max", str(limits.memory_bytes)))
        if swap:
            extra = "max" if swap < 0 else str(max(swap - limits.memory_bytes, 0))
            writes.append(("memory", "memory.swap.max", extra))
    if limits.memory_reservation_bytes > 0:
        writes.append(("memory", "memory.low", str(limits.memory_reservation_bytes)))
    if limits.cpu_shares > 0:
        weight = 1 + (limits.cpu_shares - 2) * 9999 // 262142
        writes.append(("cpu", "cpu.weight", str(max(1, min(weight, 10000)))))
    quota, period = cpu_quota(limits)
    if period:
        writes.append(("cpu", "cpu.max", f"{quota or 'max'} {period}"))
    return writes + _writes_both(limits)


def _writes_both(limits: Limits) -> list[tuple[str, str, str]]:
    writes: list[tuple[str, str, str]] = []
    if limits.cpuset_cpus:
        writes.append(("cpuset", "cpuset.cpus", limits.cpuset_cpus))
    if limits.cpuset_mems:
        writes.append(("cpuset", "cpuset.mems", limits.cpuset_mems))
    if limits.pids:
        writes.append(("pids", "pids.max", str(limits.pids) if limits.pids > 0 else "max"))
    return writes
