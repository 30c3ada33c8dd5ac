"""Samples as `docker stats` wants them.  Pure, but for reading the host's CPU time and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from insula.api.times import ZERO, format_time
from insula.model.instance import Instance
from insula.model.stream import BlockSample, Sample

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """A sample and the host's CPU time of the same moment."""

    sample: Sample
    host_ns: int


def host_cpu_ns() -> int:
    """CPU time of the whole host since boot, idle included (user … steal), as dockerd counts it."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()[1:8]
    return sum(int(f) for f in fields) * _TICK_NS


def render_stats(instance: Instance, now: Measured | None, before: Measured | None) -> dict[str, Any]:
    empty = {"name": f"/{instance.name}", "id": instance.id}
    if now is None:
        return {
            "read": ZERO, "preread": ZERO, "pids_stats": {}, "blkio_stats": {}, "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": _cpu(None), "precpu_stats": _cpu(None), "memory_stats": {}, **empty,
        }  # fmt: skip
    sample = now.sample
    pids: dict[str, int] = {"current": sample.pids}
    if sample.pids_limit:
        pids["limit"] = sample.pids_limit
    return {
        "read": format_time(sample.taken_ns),
        "preread": format_time(before.sample.taken_ns) if before else ZERO,
        "pids_stats": pids,
        "blkio_stats": _block_io(sample),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before),
        "memory_stats": {
            "usage": sample.memory_bytes,
            **({"max_usage": sample.memory_peak_bytes} if sample.memory_peak_bytes else {}),
            **({"failcnt": sample.memory_failures} if sample.memory_failures else {}),
            "stats": sample.memory_stats or {},
            "limit": sample.memory_limit_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        **({"networks": _networks(sample)} if sample.networks else {}),
        **empty,
    }


def _cpu(measured: Measured | None) -> dict[str, Any]:
    throttling = {"periods": 0, "throttled_periods": 0, "throttled_time": 0}
    if measured is None:
        usage = {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
        return {"cpu_usage": usage, "throttling_data": throttling}
    sample = measured.sample
    throttling |= {
        "periods": sample.periods,
        "throttled_periods": sample.throttled_periods,
        "throttled_time": sample.throttled_ns,
    }
    return {
        "cpu_usage": {
            "total_usage": sample.cpu_total_ns,
            **({"percpu_usage": list(sample.cpu_each_ns)} if sample.cpu_each_ns else {}),
            "usage_in_kernelmode": sample.cpu_system_ns,
            "usage_in_usermode": sample.cpu_user_ns,
        },
        "system_cpu_usage": measured.host_ns,
        "online_cpus": sample.cpus_online,
        "throttling_data": throttling,
    }


def _block_io(sample: Sample) -> dict[str, Any]:
    others = (
        "io_queue_recursive", "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive",
        "io_time_recursive", "sectors_recursive",
    )  # fmt: skip
    return {
        "io_service_bytes_recursive": [
            _entry(one, op, value)
            for one in sample.blocks
            for op, value in (("read", one.read_bytes), ("write", one.write_bytes))
        ],
        "io_serviced_recursive": [
            _entry(one, op, value)
            for one in sample.blocks
            for op, value in (("read", one.reads), ("write", one.writes))
            if one.reads or one.writes
        ]
        or None,
        **dict.fromkeys(others),
    }


def _entry(one: BlockSample, op: str, value: int) -> dict[str, Any]:
    return {"major": one.major, "minor": one.minor, "op": op, "value": value}


def _networks(sample: Sample) -> dict[str, Any]:
    return {
        n.interface: {
            "rx_bytes": n.rx_bytes,
            "rx_packets": n.rx_packets,
            "rx_errors": n.rx_errors,
            "rx_dropped": n.rx_dropped,
            "tx_bytes": n.tx_bytes,
            "tx_packets": n.tx_packets,
            "tx_errors": n.tx_errors,
            "tx_dropped": n.tx_dropped,
        }
        for n in sample.networks
    }
