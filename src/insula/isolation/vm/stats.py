"""What a VM is using, as the host sees it.  Synchronous: reads cgroup and /proc files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from insula.model.network import Endpoint
from insula.model.stream import BlockSample, NetworkSample, Sample
from insula.system import cgroups
from insula.system.cgroups import Layout
from insula.system.interfaces import OWN, Traffic, read_counters, sample

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def sample_network(endpoint: Endpoint, counters: Mapping[str, tuple[Traffic, Traffic]]) -> NetworkSample:
    """From the counters of its link on the host.  What the host receives on a tap the guest has sent; a
    macvtap is the guest's own interface."""
    received, sent = counters.get(endpoint.link, (Traffic(), Traffic()))
    if not endpoint.on_parent:
        received, sent = sent, received
    return sample(endpoint.interface, received, sent)


def _process_times(pids: Sequence[int]) -> tuple[int, int]:
    """User and system time of processes, in ns."""
    user = system = 0
    for pid in pids:
        text = cgroups.read(f"/proc/{pid}/stat") or ""
        fields = text.rpartition(")")[2].split()
        if len(fields) > 12:
            user += int(fields[11]) * _TICK_NS
            system += int(fields[12]) * _TICK_NS
    return user, system


def _process_io(pids: Sequence[int]) -> tuple[int, int]:
    """Bytes that processes caused to be read from and written to disks."""
    read = written = 0
    for pid in pids:
        table = cgroups.read_table(f"/proc/{pid}/io") or {}
        read += table.get("read_bytes:", 0)
        written += table.get("write_bytes:", 0)
    return read, written


def _block(disk: str, read: int, written: int) -> BlockSample:
    device = 0
    with contextlib.suppress(OSError):  # it has just been removed
        device = os.stat(disk).st_dev
    return BlockSample(major=os.major(device), minor=os.minor(device), read_bytes=read, write_bytes=written)


def _resident(pids: Sequence[int]) -> int:
    total = 0
    for pid in pids:
        words = (cgroups.read(f"/proc/{pid}/statm") or "").split()
        total += int(words[1]) * _PAGE if len(words) > 1 else 0
    return total


def take_sample(
    layout: Layout,
    group: str,
    pids: Sequence[int],
    *,
    vcpus: int,
    memory_limit_bytes: int,
    guest_pids: int,
    pids_limit: int,
    endpoints: Sequence[Endpoint],
    disk: str,
) -> Sample:
    """QEMU's and its helpers' use of the host; memory is what nobody else shares.  Bytes and nanoseconds.

    `disk`: its file, which says what device its reads and writes are counted for.
    """
    cpu = layout.path("cpu", group) or layout.path("", group) or ""
    memory = layout.path("memory", group) or ""
    throttled = cgroups.read_table(f"{cpu}/cpu.stat")
    user, system = _process_times(pids)
    total = throttled.get("usage_usec", 0) * 1000
    if not total and (accounting := layout.path("cpuacct", group)):
        total = cgroups.read_number(f"{accounting}/cpuacct.usage") or 0
    name = "memory.current" if layout.version == 2 else "memory.usage_in_bytes"
    read, written = _process_io(pids)
    counters = read_counters(OWN) if endpoints else {}
    return Sample(
        taken_ns=time.time_ns(),
        cpu_total_ns=total or user + system,
        cpu_user_ns=user,
        cpu_system_ns=system,
        cpus_online=vcpus,
        periods=throttled.get("nr_periods", 0),
        throttled_periods=throttled.get("nr_throttled", 0),
        throttled_ns=throttled.get("throttled_usec", 0) * 1000 or throttled.get("throttled_time", 0),
        memory_bytes=cgroups.read_number(f"{memory}/{name}") or _resident(pids),
        memory_limit_bytes=memory_limit_bytes,
        memory_stats=cgroups.read_table(f"{memory}/memory.stat") or None,
        pids=guest_pids,
        pids_limit=max(0, pids_limit),
        blocks=(_block(disk, read, written),) if read or written else (),
        networks=tuple(sample_network(endpoint, counters) for endpoint in endpoints),
    )


def host_oom_kills(layout: Layout, group: str) -> int:
    """How many processes of the group the host's kernel has killed for lack of memory."""
    directory = layout.path("memory", group) or ""
    file = "memory.events" if layout.version == 2 else "memory.oom_control"
    return cgroups.read_table(f"{directory}/{file}").get("oom_kill", 0)
