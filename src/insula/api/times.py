"""Times as Docker writes and reads them: RFC 3339 with nanoseconds, `Up 3 seconds`, `since=`.  Pure."""

from __future__ import annotations

import datetime
import functools
import re

from insula.errors import InvalidRequest
from insula.model.durations import parse_duration

ZERO = "0001-01-01T00:00:00Z"
SECOND_NS = 1_000_000_000
# the first and the last moment that RFC 3339 can write, in UTC
_FIRST_NS = -62_135_596_800 * SECOND_NS
_LAST_NS = 253_402_300_800 * SECOND_NS - 1

_UNIX = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9}))?")
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9})\d*)?)?)?)?(Z|[+-]\d\d:\d\d)?"
)


def format_time(ns: int, *, fixed: bool = False) -> str:
    """RFC 3339 in UTC, nanoseconds without trailing zeros as Go writes them (`fixed`: all nine digits).
    0 is Go's zero time.  Files and guests may say any time: one beyond the year 9999 is its end."""
    if ns == 0:
        return ZERO
    seconds, rest = divmod(max(_FIRST_NS, min(ns, _LAST_NS)), SECOND_NS)
    fraction = f".{rest:09d}" if fixed else f".{rest:09d}".rstrip("0").rstrip(".")
    return f"{_clock(seconds)}{fraction}Z"


@functools.lru_cache(maxsize=64)
def _clock(seconds: int) -> str:
    """Lines of a log come by the thousand in one second."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None).isoformat()


def parse_time(text: str, now_ns: int, what: str) -> int:
    """A `since`/`until`: seconds since 1970 with a fraction, RFC 3339 (shortened too), or a duration that
    counts back from now.  Raises InvalidRequest naming `what`."""
    if match := _UNIX.fullmatch(text):
        fraction = int((match[2] or "").ljust(9, "0"))
        return int(match[1]) * SECOND_NS + fraction
    duration = parse_duration(text)
    if duration is not None:
        return now_ns - duration
    if match := _RFC3339.fullmatch(text):
        try:
            zone = datetime.UTC if match[8] in (None, "Z") else _zone(match[8])
            year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
            moment = datetime.datetime(year, month, day, hour, minute, second, tzinfo=zone)
            return int(moment.timestamp()) * SECOND_NS + int((match[7] or "").ljust(9, "0"))
        except (ValueError, OverflowError):
            pass
    raise InvalidRequest(
        f"{what}: {text[:64]!r} is not a time", hint="seconds since 1970, RFC 3339, or a duration such as 10m"
    )


def _zone(text: str) -> datetime.timezone:
    delta = datetime.timedelta(hours=int(text[1:3]), minutes=int(text[4:6]))
    return datetime.timezone(-delta if text[0] == "-" else delta)


def human_duration(seconds: float) -> str:
    """As the docker client and daemon write spans of time (`docker ps`)."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    if seconds < 60:
        return f"{int(seconds)} seconds"
    minutes = int(seconds / 60)
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for limit, divisor, unit in ((336, 24, "days"), (1440, 168, "weeks"), (17520, 720, "months")):
        if hours < limit:
            return f"{hours // divisor} {unit}"
    return f"{int(seconds / 3600 / 24 / 365)} years"


def unix_seconds(text: str) -> int:
    """Of an RFC 3339 time; 0 when it is empty or not one."""
    try:
        return parse_time(text, 0, "time") // SECOND_NS if text and not text.startswith("0001-") else 0
    except InvalidRequest:
        return 0
