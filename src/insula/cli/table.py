"""Tables, ages and sizes as docker prints them, and `--format`.  Pure but for `print_rows`."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from insula.errors import InvalidRequest


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


def parse_time(text: str) -> float:
    """RFC 3339 with nanoseconds to seconds since 1970; 0.0 for none."""
    if not text or text.startswith("0001-"):
        return 0.0
    trimmed = re.sub(r"(\.\d{6})\d+", r"\1", text)
    return datetime.datetime.fromisoformat(trimmed.replace("Z", "+00:00")).timestamp()


_FIELD = re.compile(r"\{\{\s*(json\s+)?\.([A-Za-z0-9_.]*)\s*\}\}")


def render(template: str, value: Any) -> str:
    """The part of Go's templates that people type: `{{.Name}}`, `{{.State.Status}}`, `{{json .}}`.

    Raises InvalidRequest for what is not in the value, and for other template actions.
    """

    def replace(match: re.Match[str]) -> str:
        found = value
        for part in filter(None, match[2].split(".")):
            if not isinstance(found, Mapping) or part not in found:
                raise InvalidRequest(f"--format: there is no .{match[2]}", hint="see it all with {{json .}}")
            found = found[part]
        if match[1] or isinstance(found, (dict, list)):
            return json.dumps(found, ensure_ascii=False)
        return str(found).lower() if isinstance(found, bool) else "" if found is None else str(found)

    text = _FIELD.sub(replace, template)
    if "{{" in text:
        raise InvalidRequest(
            f"--format: {template!r} uses a template action that insula's CLI does not have",
            hint="{{.Field}} and {{json .Field}} work; docker -H … --format has them all",
        )
    return text.replace("\\t", "\t").replace("\\n", "\n")


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    template: str | None = None,
    write: Callable[[str], None] = print,
) -> None:
    """A table of `columns` (key to heading), or each row through `template`."""
    if template == "json":
        for row in rows:
            write(json.dumps(row, ensure_ascii=False))
        return
    if template and not template.startswith("table "):
        for row in rows:
            write(render(template, row))
        return
    if template:
        keys = [m[2] for m in _FIELD.finditer(template)]
        columns = {key: columns.get(key, key.upper()) for key in keys}
    lines = [list(columns.values())]
    for row in rows:
        lines.append([str(row.get(key, "")) for key in columns])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        write("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
