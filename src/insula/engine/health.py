"""What a probe runs, how often, and what its result means: moby's rules (daemon/health.go).  Pure."""

from __future__ import annotations

import dataclasses

from insula.errors import InvalidRequest
from insula.model.durations import format_duration
from insula.model.health import Health, HealthCheck, HealthStatus, ProbeResult

MOST_OUTPUT = 4096
_MOST_RESULTS = 5
_INTERVAL_NS = 30 * 10**9
_TIMEOUT_NS = 30 * 10**9
_START_INTERVAL_NS = 5 * 10**9
_RETRIES = 3
_LEAST_NS = 10**6
_SHELL = ("/bin/sh", "-c")


def check_health(check: HealthCheck) -> None:
    """Raises InvalidRequest in moby's words."""
    for name, value_ns in (
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
    ):
        if value_ns and value_ns < _LEAST_NS:
            raise InvalidRequest(f"{name} in Healthcheck cannot be less than 1ms")
    if check.retries < 0:
        raise InvalidRequest("Retries in Healthcheck cannot be negative")
    if check.test and check.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidRequest(
            f"Healthcheck.Test: unknown probe type {check.test[0]!r}", hint="CMD, CMD-SHELL or NONE"
        )
    if check.test and check.test[0] != "NONE" and not "".join(check.test[1:]):
        raise InvalidRequest(f"Healthcheck.Test: nothing to run after {check.test[0]}")


def merge_health(own: HealthCheck | None, image: HealthCheck | None) -> HealthCheck | None:
    """What the request leaves empty is the image's."""
    if own is None or image is None:
        return own or image
    names = (field.name for field in dataclasses.fields(HealthCheck))
    return HealthCheck(**{name: getattr(own, name) or getattr(image, name) for name in names})


def probe_args(check: HealthCheck | None, shell: tuple[str, ...]) -> tuple[str, ...]:
    """What to run; empty when nothing is to be probed."""
    if check is None:
        return ()
    match check.test:
        case ("CMD", *args):
            return tuple(args)
        case ("CMD-SHELL", *args):
            return (*(shell or _SHELL), *args)
    return ()


def timeout_ns(check: HealthCheck) -> int:
    return check.timeout_ns or _TIMEOUT_NS


def pause_ns(check: HealthCheck, status: HealthStatus, *, age_ns: int) -> int:
    """Until the next probe.  `age_ns`: since the workload started."""
    if status is HealthStatus.STARTING and age_ns < check.start_period_ns:
        return check.start_interval_ns or _START_INTERVAL_NS
    return check.interval_ns or _INTERVAL_NS


def after_probe(health: Health, check: HealthCheck, result: ProbeResult, *, started_ns: int) -> Health:
    """A failure counts from the end of the start period on, or once it has been healthy."""
    log = (*health.log, result)[-_MOST_RESULTS:]
    if result.exit_code == 0:
        return Health(status=HealthStatus.HEALTHY, log=log)
    early = result.start_ns - started_ns < check.start_period_ns
    if health.status is HealthStatus.STARTING and early:
        return dataclasses.replace(health, log=log)
    streak = health.failing_streak + 1
    status = HealthStatus.UNHEALTHY if streak >= (check.retries or _RETRIES) else health.status
    return Health(status=status, failing_streak=streak, log=log)


def at_start(check: HealthCheck | None, before: Health | None) -> Health | None:
    """Of a workload that begins; the log of earlier runs stays, as moby's."""
    if not probe_args(check, ()):
        return None
    return Health(log=before.log if before is not None else ())


def without_probes(health: Health | None) -> Health | None:
    """While it is paused or has ended, Docker calls it unhealthy."""
    return dataclasses.replace(health, status=HealthStatus.UNHEALTHY) if health is not None else None


def cut_output(output: bytes) -> str:
    """What is kept of a probe's output."""
    text = output[:MOST_OUTPUT].decode(errors="replace")
    return text + "..." if len(output) > MOST_OUTPUT else text


def timed_out(check: HealthCheck, output: bytes) -> str:
    """moby's sentence."""
    sentence = f"Health check exceeded timeout ({format_duration(timeout_ns(check))})"
    return f"{sentence}: {cut_output(output)}" if output else sentence
