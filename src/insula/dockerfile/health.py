"""`HEALTHCHECK` lines.  Pure."""

from __future__ import annotations

from insula.dockerfile.values import json_words, split_flags
from insula.errors import InvalidRequest
from insula.model.durations import parse_duration
from insula.model.health import HealthCheck

_SPANS = {
    "interval": "interval_ns",
    "timeout": "timeout_ns",
    "start-period": "start_period_ns",
    "start-interval": "start_interval_ns",
}


def parse_healthcheck(text: str) -> HealthCheck:
    """What follows `HEALTHCHECK` in a Dockerfile: `[--interval=30s …] CMD …` or `NONE`.

    Raises InvalidRequest in moby's words.
    """
    values: dict[str, int] = {}
    flags, text = split_flags(text)
    for name, given in flags:
        value = given or ""
        if name == "retries":
            if not value.isdecimal() or int(value) < 1:
                raise InvalidRequest(f"--retries must be at least 1 (not {value})")
            values["retries"] = int(value)
        elif name in _SPANS:
            values[_SPANS[name]] = _parse_span(name, value)
        else:
            raise InvalidRequest(f"unknown flag: {name}")
    kind, _, rest = text.partition(" ")
    rest = rest.strip()
    match kind.upper():
        case "NONE":
            if rest:
                raise InvalidRequest("HEALTHCHECK NONE takes no arguments")
            return HealthCheck(test=("NONE",))
        case "CMD":
            if not rest:
                raise InvalidRequest("Missing command after HEALTHCHECK CMD")
            words = json_words(rest)
            if words == ():
                raise InvalidRequest("Missing command after HEALTHCHECK CMD")
            return HealthCheck(test=("CMD", *words) if words else ("CMD-SHELL", rest), **values)
    raise InvalidRequest(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')


def _parse_span(name: str, text: str) -> int:
    span_ns = parse_duration(text)
    if span_ns is None:
        raise InvalidRequest(f'--{name}: time: invalid duration "{text}"', hint="for example 1m30s")
    if span_ns and span_ns < 10**6:
        raise InvalidRequest(f'Interval "{name}" cannot be less than 1ms')
    return span_ns
