"""Health checks: what was asked for, and what the probes have said.  Pure.

Times and spans in nanoseconds, as in Docker's API; 0 is Docker's default.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class HealthStatus(enum.StrEnum):
    """Docker's words."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """`test` is Docker's: `CMD` and a program, `CMD-SHELL` and a line, `NONE`; empty: the image's."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """`exit_code` 0 is healthy; -1: it could not be run, or took too long.  `output` is cut to 4 KiB."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`log`: the last five, oldest first."""

    status: HealthStatus = HealthStatus.STARTING
    failing_streak: int = 0
    log: tuple[ProbeResult, ...] = ()
