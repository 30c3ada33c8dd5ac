"""The figures of one column.  Synchronous; says through `tell` what it is doing."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from insula.compare.workload import Bench, Column, parse_values

_DISK_MIB = 64
_NET_MIB = 64
_NET_PORT = 5201


@dataclass(frozen=True, slots=True)
class Figure:
    """Samples of one measure."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.samples), max(self.samples)


@dataclass(slots=True, kw_only=True)
class Result:
    """`facts` are words, `figures` are numbers with their unit in the name; a missing one is in `missing`
    with its reason."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(column: Column, image: str, *, runs: int, instances: int, tell: Callable[[str], None]) -> Result:
    """Everything about one column.  Raises Failure or DaemonRefused when the engine cannot run the image."""
    result = Result(title=column.title)
    with Bench(column, image) as bench:
        tell("first output")
        bench.run("hello")  # what is made once per image (a VM's disk) is not part of a start
        result.figures["first_output_ms"] = _repeat(runs, lambda: bench.run("hello")[0] * 1e3)
        tell("memory")
        idle = _memory(bench, instances, result)
        tell("kernels")
        _kernels(bench, idle, result)
        tell("exec")
        bench.exec(idle[0], "hello")
        result.figures["exec_ms"] = _repeat(runs, lambda: bench.exec(idle[0], "hello")[0] * 1e3)
        tell("system calls")
        result.figures["syscall_ns"] = _probe(bench, idle[0], runs, "syscall_ns", "syscalls")
        tell("CPU")
        result.figures["cpu_ms"] = _probe(bench, idle[0], runs, "cpu_ms", "cpu")
        tell("disk")
        disk = [parse_values(bench.exec(idle[0], "disk", "/", str(_DISK_MIB))[1]) for _ in range(runs)]
        for key in ("disk_write_mib_s", "disk_read_mib_s"):
            result.figures[key] = Figure(tuple(float(sample[key]) for sample in disk))
        tell("network")
        _network(bench, idle, runs, result)
    return result


def _repeat(runs: int, take: Callable[[], float]) -> Figure:
    return Figure(tuple(take() for _ in range(runs)))


def _probe(bench: Bench, instance: str, runs: int, key: str, *arguments: str) -> Figure:
    return _repeat(runs, lambda: float(parse_values(bench.exec(instance, *arguments)[1])[key]))


def _pids() -> set[str]:
    return {name for name in os.listdir("/proc") if name.isdigit()}


def _pss_kib(pid: str) -> int:
    """Proportional set size: its own memory and its share of what it has in common; 0 once it ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _words(pid: str) -> str:
    """Its command line and its cgroups; empty once it ended."""
    found = b""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in ("cmdline", "cgroup"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                found += file.read()
    return found.decode(errors="replace")


def count(new: set[str], own: set[str], instances: Sequence[str], words: Callable[[str], str]) -> set[str]:
    """Of the processes that are new, those that are there for the instances, whose own these are.

    A monitor (conmon, containerd's shim) names its instance, and whatever runs in it is in its cgroup.  All
    else is new by chance: others use this machine, and the engine makes machines ahead meanwhile.
    """
    return own | {pid for pid in new if any(instance in words(pid) for instance in instances)}


def _memory(bench: Bench, instances: int, result: Result) -> list[str]:
    """Start idle instances (they are used further on) and note what the processes cost that came with them.

    The whole machine's free memory would do for a quiet machine only.
    """
    before = _pids()
    idle = [bench.start("idle") for _ in range(instances)]
    for instance in idle:
        bench.exec(instance, "hello")
    if not bench.column.local:
        result.missing["memory_mib"] = "the engine is on another host"
        return idle
    try:
        own = {bench.pid(instance) for instance in idle}
        total_kib = sum(_pss_kib(pid) for pid in count(_pids() - before, own, idle, _words))
    except PermissionError:
        result.missing["memory_mib"] = "needs root"
    else:
        result.figures["memory_mib"] = Figure((total_kib / 1024 / instances,))
    return idle


def _kernels(bench: Bench, idle: Sequence[str], result: Result) -> None:
    identities = [parse_values(bench.exec(instance, "identity")[1]) for instance in idle]
    boots = {identity["boot_id"] for identity in identities}
    reach = parse_values(bench.exec(idle[0], "reach")[1])["reach"]
    result.facts["kernel"] = identities[0]["kernel"]
    result.facts["kernels"] = f"{len(boots)} for {len(idle)}"
    if not bench.column.local:
        result.missing["host_syscalls"] = "the engine is on another host"
        return
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        shared = file.read().strip() in boots
    result.facts["whose_kernel"] = "the host's" if shared else "its own"
    result.facts["host_syscalls"] = reach if shared else "0"
    result.facts["own_syscalls"] = "–" if shared else reach


def _network(bench: Bench, idle: Sequence[str], runs: int, result: Result) -> None:
    server = bench.start("serve", str(_NET_PORT))
    address = bench.address(server)
    if not address:
        result.missing["net_mib_s"] = "no address"
        return
    bench.exec(server, "hello")  # it runs, so it listens or is about to
    arguments = ("send", address, str(_NET_PORT), str(_NET_MIB))
    result.figures["net_mib_s"] = _probe(bench, idle[0], runs, "net_mib_s", *arguments)
