"""Go's durations: `1h30m`, as Docker reads and prints them.  Pure."""

from __future__ import annotations

import re

_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)"
_WHOLE = re.compile(f"(?:{_PART})+", re.ASCII)
_PARTS = re.compile(_PART, re.ASCII)


def parse_duration(text: str) -> int | None:
    """Nanoseconds; None when it is not a duration."""
    if not _WHOLE.fullmatch(text):
        return None
    return int(sum(float(count) * _UNITS_NS[unit] for count, unit in _PARTS.findall(text)))


def format_duration(ns: int) -> str:
    """As Go prints a time.Duration: `1m30s`, `1.5s`, `250ms`.  Not negative."""
    if ns < 10**9:
        unit, size = next(((u, n) for u, n in (("ms", 10**6), ("µs", 10**3)) if ns >= n), ("ns", 1))
        return f"{_decimal(ns / size)}{unit}" if ns else "0s"
    minutes, rest = divmod(ns, 60 * 10**9)
    seconds = f"{_decimal(rest / 10**9)}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")
