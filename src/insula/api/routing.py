"""Which handler answers which page: patterns, looked up by method and first part of the path.  Pure."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp.web import StreamResponse

    from insula.api.call import Call

Handler = Callable[["Call"], Awaitable["StreamResponse"]]

_PART = re.compile(r"\\{(\w+)(\\\*)?\\}")


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern` has `{name}` for one part of the path and `{name*}` for several (image names, networks').

    `completes`: the handler goes on to its end when the client goes away meanwhile (what changes the
    state of an instance); otherwise it is cancelled (what waits, follows, or moves data).
    `archive`: the body is one, whatever the client calls it (curl calls everything a form).
    """

    method: str
    pattern: str
    handler: Handler
    completes: bool = False
    archive: bool = False


class Router:
    def __init__(self, routes: Iterable[Route]) -> None:
        self._table: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            source = _PART.sub(lambda m: f"(?P<{m[1]}>{'.+' if m[2] else '[^/]+'})", re.escape(route.pattern))
            key = (route.method, route.pattern.split("/")[1])
            self._table.setdefault(key, []).append((re.compile(source), route))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The first route of the table that matches, and the names in its path."""
        first = path[1:].partition("/")[0]
        for pattern, route in self._table.get((method, first), ()):
            if match := pattern.fullmatch(path):
                return route, match.groupdict()
        return None
