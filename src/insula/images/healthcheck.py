"""Health checks in image configurations.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula.errors import CorruptData
from insula.model.health import HealthCheck

_LONGEST_NS = 2**63 - 1
_SPANS = {
    "Interval": "interval_ns",
    "Timeout": "timeout_ns",
    "StartPeriod": "start_period_ns",
    "StartInterval": "start_interval_ns",
}


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
