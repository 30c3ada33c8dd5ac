"""Tables, ages and sizes as docker prints them.  Pure but for `print_rows`."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from insula.model.go_template import render


def human_size(size: float) -> str:
    """`1.24MB`: decimal units, three significant digits, as Docker."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}PB"


def human_binary(size: float) -> str:
    """`12.4MiB`, four significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g}{unit}"
        size /= 1024
    return f"{size:.4g}TiB"


_STEPS = (
    (120, "About a minute", 0),
    (3600, "{} minutes", 60),
    (7200, "About an hour", 0),
    (48 * 3600, "{} hours", 3600),
    (14 * 86400, "{} days", 86400),
    (60 * 86400, "{} weeks", 7 * 86400),
    (730 * 86400, "{} months", 30 * 86400),
)


def human_age(seconds: float) -> str:
    """`3 minutes`, in Docker's words."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if int(seconds) == 1 else f"{int(seconds)} seconds"
    for limit, text, unit in _STEPS:
        if seconds < limit:
            return text.format(int(seconds // unit)) if unit else text
    return f"{int(seconds // (365 * 86400))} years"


def age_of(created: float) -> str:
    """`3 minutes ago`, of seconds since 1970."""
    return human_age(datetime.datetime.now(datetime.UTC).timestamp() - created) + " ago"


def utc_text(created: float) -> str:
    """`2026-01-31 12:00:00 +0000 UTC`, as Go prints a time."""
    return datetime.datetime.fromtimestamp(created, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


def joined(labels: Mapping[str, str] | None) -> str:
    """`a=1,b=2`, as docker shows labels."""
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def rfc3339(created: float) -> str:
    """`2026-01-31T12:00:00Z`, as docker shows the time of a layer: with the local offset if there is one."""
    local = datetime.datetime.fromtimestamp(created, datetime.UTC).astimezone()
    return local.isoformat(timespec="seconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """RFC 3339 with nanoseconds to seconds since 1970; 0.0 for none."""
    if not text or text.startswith("0001-"):
        return 0.0
    trimmed = re.sub(r"(\.\d{6})\d+", r"\1", text)
    return datetime.datetime.fromisoformat(trimmed.replace("Z", "+00:00")).timestamp()


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    template: str | None = None,
    write: Callable[[str], None] = print,
    least: int = 10,
) -> None:
    """A table of `columns` (key to heading), none narrower than `least`, or each row through `template`."""
    if template == "json":
        for row in rows:
            write(json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")))
        return
    if template and not template.startswith("table "):
        for row in rows:
            write(render(template, row))
        return
    if template:
        form = template.removeprefix("table ")
        lines = [render(form, _Headings(columns)).split("\t")]
        lines += [render(form, row).split("\t") for row in rows]
    else:
        lines = [list(columns.values())]
        lines += [[str(row.get(key, "")) for key in columns] for row in rows]
    # docker's columns: three spaces between
    widths = [max(least, 3 + max(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    for line in lines:
        write("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


class _Headings(dict[str, str]):
    """The heading of every field: of one without a column, its name in capitals."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return key.upper()
