"""HostConfig's resource fields to Limits, zero and absent meaning what Docker means.

Not for limits that contradict each other: the engine checks those.  Pure."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

from insula.api.versions import Version
from insula.api.wire.host_config import Resources, ThrottleDevice
from insula.errors import InvalidRequest, UnsupportedField
from insula.model import limits as model

_LEAST_MEMORY = 6 * 1024 * 1024

_NOTHING: tuple[object, ...] = (None, "", [], 0, -1)
_RATES = ("BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps")

# what Docker describes as of Windows, or as what its runtime ignores: kept and shown, as by dockerd, and said
_INERT = {
    "CpuCount": "it is for Windows: use NanoCpus (--cpus)",
    "KernelMemory": "kernels since 5.4 do not limit kernel memory by itself",
    "KernelMemoryTCP": "kernels since 5.4 do not limit kernel memory by itself",
}
# what an update cannot change, in dockerd neither, which does not say so
_FIXED = (
    "BlkioDeviceReadBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteBps", "BlkioDeviceWriteIOps",
    "BlkioWeightDevice", "CgroupParent", "CpuPercent", "DeviceCgroupRules", "DeviceRequests", "Devices",
    "IOMaximumBandwidth", "IOMaximumIOps", "MemorySwappiness", "OomKillDisable", "Ulimits",
)  # fmt: skip


def refuse_unsupported(
    given: object, table: tuple[tuple[str, tuple[object, ...], str], ...], prefix: str = "HostConfig."
) -> None:
    """Raise UnsupportedField for the first field of the table that asks for something."""
    for name, nothing, why in table:
        if getattr(given, name) not in nothing:
            raise UnsupportedField(prefix + name, why)


def find_inert(given: Resources, version: Version) -> dict[str, int]:
    """Fields that are kept and shown, and mean nothing else, with what they hold."""
    found = {name: value for name in _INERT if (value := getattr(given, name))}
    if version >= (1, 42):
        found.pop("KernelMemory", None)  # which is no field any more
    if version < (1, 40):
        found.pop("KernelMemoryTCP", None)  # which was none yet
    return found


def warn_inert(inert: Iterable[str], prefix: str = "HostConfig.") -> tuple[str, ...]:
    return tuple(f"{prefix}{name} has no effect: {_INERT[name]}" for name in inert)


def warn_update(given: Resources, version: Version) -> tuple[str, ...]:
    """What an update names and does not change."""
    fixed = [name for name in _FIXED if getattr(given, name) not in _NOTHING]
    return (
        *warn_inert(find_inert(given, version), ""),
        *(f"{name} has no effect: an update does not change it" for name in fixed),
    )


def parse_limits(given: Resources, *, oom_score_adj: int = 0, shm_size: int = 0) -> model.Limits:
    """Raises InvalidRequest."""
    _check_range(given)
    return model.Limits(
        memory_bytes=given.Memory,
        memory_swap_bytes=given.MemorySwap,
        memory_reservation_bytes=given.MemoryReservation,
        nano_cpus=given.NanoCpus,
        cpu_shares=given.CpuShares,
        cpu_quota_us=max(given.CpuQuota, -1),
        cpu_period_us=given.CpuPeriod,
        cpu_rt_runtime_us=given.CpuRealtimeRuntime,
        cpu_rt_period_us=given.CpuRealtimePeriod,
        cpuset_cpus=given.CpusetCpus,
        cpuset_mems=given.CpusetMems,
        pids=max(given.PidsLimit or 0, 0),
        oom_kill_disable=bool(given.OomKillDisable),
        oom_score_adj=oom_score_adj,
        ulimits=tuple(model.Ulimit(name=u.Name, soft=u.Soft, hard=u.Hard) for u in given.Ulimits or ()),
        memory_swappiness=None if given.MemorySwappiness == -1 else given.MemorySwappiness,
        blkio_weight=given.BlkioWeight,
        throttles=_throttles(given),
        **({"shm_size_bytes": shm_size} if shm_size else {}),
    )


def _throttles(given: Resources) -> tuple[model.Throttle, ...]:
    """Weights first, then rates in Docker's order.  Raises InvalidRequest."""
    found = [
        model.Throttle(what="weight", path=d.Path, value=d.Weight) for d in given.BlkioWeightDevice or ()
    ]
    for field in _RATES:
        rates: list[ThrottleDevice] = getattr(given, field) or []
        what = field.removeprefix("BlkioDevice")
        found += [model.Throttle(what=what, path=d.Path, value=d.Rate) for d in rates]
    for one in found:
        if not one.path.startswith("/"):
            raise InvalidRequest(f"invalid block device path: {one.path[:128]!r} is not an absolute path")
        if one.value < 0:
            raise InvalidRequest(f"invalid rate for {one.path}: {one.value} is negative")
    return tuple(found)


def merge_limits(now: model.Limits, given: Resources) -> model.Limits:
    """`docker update`: zero leaves a limit as it is.  Raises InvalidRequest."""
    fresh = parse_limits(given)
    changes = {
        name: getattr(fresh, name)
        for name in (
            "memory_bytes", "memory_swap_bytes", "memory_reservation_bytes", "nano_cpus", "cpu_shares",
            "cpu_quota_us", "cpu_period_us", "cpu_rt_runtime_us", "cpu_rt_period_us", "cpuset_cpus",
            "cpuset_mems", "blkio_weight",
        )
        if getattr(fresh, name)
    }  # fmt: skip
    if given.PidsLimit is not None:
        changes["pids"] = fresh.pids or -1  # an end to the limit, where 0 would leave it
    for field, what in (("cpu_quota_us", "CPU Quota"), ("cpu_period_us", "CPU Period")):  # moby's words
        if changes.get("nano_cpus") and getattr(now, field) > 0:
            raise InvalidRequest(
                f"Conflicting options: Nano CPUs cannot be updated as {what} has already been set"
            )
        if changes.get(field, 0) > 0 and now.nano_cpus:
            raise InvalidRequest(
                f"Conflicting options: {what} cannot be updated as NanoCPUs has already been set"
            )
    memory, swap = changes.get("memory_bytes", now.memory_bytes), changes.get("memory_swap_bytes")
    set_swap = now.memory_swap_bytes or 2 * now.memory_bytes
    if "memory_bytes" in changes and swap is None and 0 < set_swap < memory:
        raise InvalidRequest(
            "Memory limit should be smaller than already set memoryswap limit, "
            "update the memoryswap at the same time"
        )
    return dataclasses.replace(now, **changes)


def _check_range(given: Resources) -> None:
    if given.Memory < 0 or given.MemoryReservation < 0 or given.MemorySwap < -1:
        raise InvalidRequest("invalid memory limit: values must not be negative")
    cpus = os.cpu_count() or 1
    if given.NanoCpus and not 10_000_000 <= given.NanoCpus <= cpus * 1_000_000_000:
        raise InvalidRequest(
            f"Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )
    if given.CpuShares < 0:
        raise InvalidRequest(f"invalid CPU shares ({given.CpuShares}): value must be a positive integer")
