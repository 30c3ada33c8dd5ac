"""Health checks between the API and the model.  Pure."""

from __future__ import annotations

from insula.api.times import format_time
from insula.api.versions import NEWEST, Version
from insula.api.wire import container as wire
from insula.api.wire.container_config import HealthConfig
from insula.model.health import Health, HealthCheck, HealthStatus


def parse_health(given: HealthConfig | None, version: Version = NEWEST) -> HealthCheck | None:
    if given is None:
        return None
    found = HealthCheck(
        test=tuple(given.Test),
        interval_ns=given.Interval,
        timeout_ns=given.Timeout,
        start_period_ns=given.StartPeriod,
        start_interval_ns=given.StartInterval if version >= (1, 44) else 0,
        retries=given.Retries,
    )
    return found if found != HealthCheck() else None


def render_check(check: HealthCheck | None) -> HealthConfig | None:
    if check is None:
        return None
    return HealthConfig(
        Test=list(check.test),
        Interval=check.interval_ns,
        Timeout=check.timeout_ns,
        StartPeriod=check.start_period_ns,
        StartInterval=check.start_interval_ns,
        Retries=check.retries,
    )


def render_health(health: Health) -> wire.Health:
    return wire.Health(
        Status=health.status.value,
        FailingStreak=health.failing_streak,
        Log=[
            wire.HealthcheckResult(
                Start=format_time(result.start_ns),
                End=format_time(result.end_ns),
                ExitCode=result.exit_code,
                Output=result.output,
            )
            for result in health.log
        ],
    )


def health_word(health: Health | None) -> str:
    """As the `health` filter of `docker ps` has it."""
    return health.status.value if health is not None else "none"


def health_suffix(health: Health | None) -> str:
    """What `docker ps` puts behind `Up 3 seconds`."""
    if health is None:
        return ""
    starting = health.status is HealthStatus.STARTING
    return f" (health: {health.status})" if starting else f" ({health.status})"
