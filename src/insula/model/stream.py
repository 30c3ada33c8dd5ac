"""Byte streams between a client and a workload, and what an instance is using.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


class Channel(enum.IntEnum):
    """Numbers as in Docker's multiplexed stream header."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    channel: Channel
    data: bytes


class Stream(Protocol):
    """One client's connection to the stdio of a workload or of an exec.

    With a tty everything comes on STDOUT.  All methods are async and never block the loop; `write`
    waits while the workload does not read (back-pressure reaches the client).
    """

    async def read(self) -> Chunk | None:
        """Next output, None at its end (the workload closed it, or ended)."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to the workload's stdin.  Dropped once the workload has closed it (as a pipe's EPIPE)."""
        ...

    async def close_stdin(self) -> None:
        """End of input; output goes on."""
        ...

    async def close(self) -> None:
        """Let go.  The workload goes on; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSample:
    interface: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSample:
    """What was read from and written to one block device.  `reads` and `writes` 0: not counted."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Resource use at one moment.  Memory in bytes, CPU in nanoseconds since start.

    For a VM the figures are the hypervisor process's as the host sees them, `memory_limit_bytes` the
    guest's size.  `cpu_each_ns` is by CPU, where the kernel counts it
    so (cgroup version 1).  `periods` are those that a CPU quota was enforced in; `memory_peak_bytes` and
    `memory_failures` (how often the limit was hit) are 0 where the kernel does not count them.
    """

    taken_ns: int
    cpu_total_ns: int
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpus_online: int = 1
    cpu_each_ns: tuple[int, ...] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_failures: int = 0
    memory_stats: dict[str, int] | None = None
    pids: int = 0
    pids_limit: int = 0
    blocks: tuple[BlockSample, ...] = ()
    networks: tuple[NetworkSample, ...] = ()
