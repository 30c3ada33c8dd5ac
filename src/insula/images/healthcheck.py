"""Health checks in image configurations and in `HEALTHCHECK` lines.  Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from insula.errors import CorruptData, InvalidRequest
from insula.model.durations import parse_duration
from insula.model.health import HealthCheck

_LONGEST_NS = 2**63 - 1
_SPANS = {
    "Interval": "interval_ns",
    "Timeout": "timeout_ns",
    "StartPeriod": "start_period_ns",
    "StartInterval": "start_interval_ns",
}
_FLAGS = {
    "interval": "interval_ns",
    "timeout": "timeout_ns",
    "start-period": "start_period_ns",
    "start-interval": "start_interval_ns",
}
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*")


def read_health(document: Mapping[str, Any]) -> HealthCheck | None:
    """`Healthcheck` of an image's configuration; None for an empty one.  Raises CorruptData."""
    test = document.get("Test") or []
    if not isinstance(test, list) or not all(isinstance(word, str) for word in test):
        raise CorruptData("image configuration: Healthcheck.Test is not a list of strings")
    found = HealthCheck(
        test=tuple(test),
        retries=_number(document, "Retries"),
        **{field: _number(document, name) for name, field in _SPANS.items()},
    )
    return found if found != HealthCheck() else None


def _number(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name) or 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LONGEST_NS:
        raise CorruptData(f"image configuration: Healthcheck.{name} is not a number that can be")
    return value


def dump_health(check: HealthCheck) -> dict[str, Any]:
    """As it is written into an image's configuration: what is empty is left out."""
    fields: dict[str, Any] = {"Test": list(check.test), "Retries": check.retries}
    fields |= {name: getattr(check, field) for name, field in _SPANS.items()}
    return {name: value for name, value in fields.items() if value}


def parse_healthcheck(text: str) -> HealthCheck:
    """What follows `HEALTHCHECK` in a Dockerfile: `[--interval=30s …] CMD …` or `NONE`.

    Raises InvalidRequest in moby's words.
    """
    values: dict[str, int] = {}
    while match := _FLAG.match(text):
        name, value = match.groups()
        text = text[match.end() :]
        if name == "retries":
            if not value.isdecimal() or int(value) < 1:
                raise InvalidRequest(f"--retries must be at least 1 (not {value})")
            values["retries"] = int(value)
        elif name in _FLAGS:
            values[_FLAGS[name]] = _parse_span(name, value)
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
            return HealthCheck(test=_test(rest), **values)
    raise InvalidRequest(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')


def _test(text: str) -> tuple[str, ...]:
    """The exec form, or a line for the shell."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return ("CMD", *words)
    return ("CMD-SHELL", text)


def _parse_span(name: str, text: str) -> int:
    text = shlex.split(text)[0] if text[:1] in "\"'" and text[-1:] == text[:1] else text
    span_ns = parse_duration(text)
    if span_ns is None:
        raise InvalidRequest(f'--{name}: time: invalid duration "{text}"', hint="for example 1m30s")
    if span_ns and span_ns < 10**6:
        raise InvalidRequest(f'Interval "{name}" cannot be less than 1ms')
    return span_ns
