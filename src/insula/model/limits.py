"""What an instance may use of the machine.  Units are in the names; zero means unlimited.  Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ulimit:
    """One rlimit by Docker's name (`nofile`, `nproc`, …); -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """A rate, or a weight, on one block device of the host.

    `what` is `weight`, or HostConfig's word without its `BlkioDevice`: ReadBps, WriteBps (bytes a second),
    ReadIOps, WriteIOps.
    """

    what: str
    path: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`HostConfig`'s resource fields.  `pids` and `cpu_quota_us`: zero or less is unlimited.

    `memory_swap_bytes` is memory plus swap as in Docker: -1 unlimited, 0 twice the memory.
    `memory_swappiness` is 0 to 100, None for the host's.  `blkio_weight` is 10 to 1000.
    `cpu_rt_runtime_us` of each `cpu_rt_period_us` are for real-time scheduling; zero is the kernel's default.
    """

    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    memory_reservation_bytes: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_quota_us: int = 0
    cpu_period_us: int = 0
    cpu_rt_runtime_us: int = 0
    cpu_rt_period_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    oom_kill_disable: bool = False
    oom_score_adj: int = 0
    shm_size_bytes: int = 64 * 1024 * 1024
    ulimits: tuple[Ulimit, ...] = ()
    memory_swappiness: int | None = None
    blkio_weight: int = 0
    throttles: tuple[Throttle, ...] = ()

    def cpus(self) -> float:
        """How many CPUs' worth of time it may use; 0.0 when that is not limited."""
        if self.nano_cpus > 0:
            return self.nano_cpus / 1e9
        if self.cpu_quota_us > 0:
            return self.cpu_quota_us / (self.cpu_period_us or 100_000)
        return 0.0
