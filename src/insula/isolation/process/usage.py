"""What a container uses, from control files and /proc; and its processes, as `docker top` shows them.

Synchronous, but for `list_processes`, which runs the host's ps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from insula.errors import InvalidRequest, ProgramFailed
from insula.isolation.backend import ProcessTable
from insula.model.stream import BlockSample, NetworkSample, Sample
from insula.system import cgroups
from insula.system.cgroups import Layout
from insula.system.interfaces import read_counters, sample
from insula.system.run import arun

_UNLIMITED = 1 << 60  # version 1 writes "no limit" as a page-aligned huge number


def take_sample(layout: Layout, group: str, init_pid: int) -> Sample:
    return _sample_v2(layout, group, init_pid) if layout.version == 2 else _sample_v1(layout, group, init_pid)


def _sample_v2(layout: Layout, group: str, init_pid: int) -> Sample:
    base = layout.path("", group)
    cpu = cgroups.read_table(f"{base}/cpu.stat")
    return Sample(
        taken_ns=time.time_ns(),
        cpu_total_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        cpus_online=os.cpu_count() or 1,
        periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_bytes=cgroups.read_number(f"{base}/memory.current") or 0,
        memory_limit_bytes=_limit(cgroups.read_number(f"{base}/memory.max")),
        memory_stats=cgroups.read_table(f"{base}/memory.stat"),
        pids=cgroups.read_number(f"{base}/pids.current") or 0,
        pids_limit=cgroups.read_number(f"{base}/pids.max") or 0,
        blocks=parse_io_stat(cgroups.read(f"{base}/io.stat") or ""),
        networks=read_networks(init_pid),
    )


def _sample_v1(layout: Layout, group: str, init_pid: int) -> Sample:
    def numbers(controller: str, name: str) -> tuple[int, ...]:
        path = layout.path(controller, group)
        return tuple(int(n) for n in (cgroups.read(f"{path}/{name}") or "").split()) if path else ()

    def number(controller: str, name: str) -> int:
        path = layout.path(controller, group)
        return (cgroups.read_number(f"{path}/{name}") if path else None) or 0

    def table(controller: str, name: str) -> dict[str, int]:
        path = layout.path(controller, group)
        return cgroups.read_table(f"{path}/{name}") if path else {}

    throttled = table("cpu", "cpu.stat")
    blkio = layout.path("blkio", group)
    transferred, operations = (
        cgroups.read(f"{blkio}/blkio.throttle.{name}") or "" for name in ("io_service_bytes", "io_serviced")
    )
    return Sample(
        taken_ns=time.time_ns(),
        cpu_total_ns=number("cpuacct", "cpuacct.usage"),
        cpu_user_ns=number("cpuacct", "cpuacct.usage_user"),
        cpu_each_ns=numbers("cpuacct", "cpuacct.usage_percpu"),
        cpu_system_ns=number("cpuacct", "cpuacct.usage_sys"),
        cpus_online=os.cpu_count() or 1,
        periods=throttled.get("nr_periods", 0),
        throttled_periods=throttled.get("nr_throttled", 0),
        throttled_ns=throttled.get("throttled_time", 0),
        memory_bytes=number("memory", "memory.usage_in_bytes"),
        memory_limit_bytes=_limit(number("memory", "memory.limit_in_bytes")),
        memory_peak_bytes=number("memory", "memory.max_usage_in_bytes"),
        memory_failures=number("memory", "memory.failcnt"),
        memory_stats=table("memory", "memory.stat"),
        pids=number("pids", "pids.current"),
        pids_limit=number("pids", "pids.max"),
        blocks=parse_blkio(transferred, operations),
        networks=read_networks(init_pid),
    )


def parse_io_stat(text: str) -> tuple[BlockSample, ...]:
    """Version 2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.  Pure."""
    found = []
    for line in text.splitlines():
        device, *words = line.split()
        pairs = dict(word.split("=", 1) for word in words if "=" in word)
        major, _, minor = device.partition(":")
        found.append(
            BlockSample(
                major=int(major),
                minor=int(minor),
                read_bytes=int(pairs.get("rbytes", 0)),
                write_bytes=int(pairs.get("wbytes", 0)),
                reads=int(pairs.get("rios", 0)),
                writes=int(pairs.get("wios", 0)),
            )
        )
    return tuple(found)


def parse_blkio(transferred: str, operations: str) -> tuple[BlockSample, ...]:
    """Version 1: `8:0 Read 1` of two files, bytes and how often.  Pure."""
    found: dict[str, dict[str, int]] = {}
    for text, read, write in (
        (transferred, "read_bytes", "write_bytes"),
        (operations, "reads", "writes"),
    ):
        for words in map(str.split, text.splitlines()):
            if len(words) == 3 and words[1] in ("Read", "Write"):
                field = read if words[1] == "Read" else write
                found.setdefault(words[0], {})[field] = int(words[2])
    return tuple(
        BlockSample(major=int(device.partition(":")[0]), minor=int(device.partition(":")[2]), **numbers)
        for device, numbers in found.items()
    )


def _limit(value: int | None) -> int:
    """0 is none; the API shows the host's memory then."""
    return 0 if value is None or value >= _UNLIMITED else value


def read_networks(pid: int) -> tuple[NetworkSample, ...]:
    """Interfaces in the network namespace of `pid`, without lo; none when it is gone."""
    return tuple(
        sample(name, received, sent)
        for name, (received, sent) in read_counters(f"/proc/{pid}/net/dev").items()
        if name != "lo"
    )


def was_oom_killed(layout: Layout, group: str) -> bool:
    """Whether the kernel killed something in it for want of memory.  The group must still be there."""
    if layout.version == 2:
        return cgroups.read_table(f"{layout.path('', group)}/memory.events").get("oom_kill", 0) > 0
    path = layout.path("memory", group)
    return bool(path) and cgroups.read_table(f"{path}/memory.oom_control").get("oom_kill", 0) > 0


async def list_processes(pids: set[int], ps_args: Sequence[str]) -> ProcessTable:
    """As moby's daemon/top_unix.go: the host's ps, and of its rows those with our pids.  Raises
    InvalidRequest."""
    arguments = list(ps_args) or ["-ef"]
    try:
        # -q shows them whatever terminal or user they have; some options do not go with it
        done = await arun(["ps", *arguments, f"-q{','.join(map(str, sorted(pids)))}"], timeout_s=20)
    except ProgramFailed:
        try:
            done = await arun(["ps", *arguments], timeout_s=20)
        except ProgramFailed as error:
            raise InvalidRequest(f"ps: {error.stderr.strip() or error}") from error
    return parse_ps(done.stdout.decode(errors="replace"), pids)


def parse_ps(text: str, pids: set[int]) -> ProcessTable:
    """Pure.  The last column takes the rest of the line.  Raises InvalidRequest without a PID column."""
    lines = text.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidRequest("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) <= column:
            continue
        if fields[column].isdecimal() and int(fields[column]) in pids:
            rows.append(tuple(fields))
    return ProcessTable(titles=tuple(titles), rows=tuple(rows))
