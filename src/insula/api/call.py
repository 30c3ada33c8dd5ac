"""One request, as a handler sees it: engine, version, names from the path, parameters, body.  Async."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import MultiDict, MultiMapping

from insula import __version__
from insula.api.filters import Filters, parse_filters
from insula.api.versions import NEWEST, Version, text_of
from insula.api.wire.codec import decode, json_bytes
from insula.errors import InsulaError, InvalidRequest

if TYPE_CHECKING:
    from insula.engine.engine import Engine

T = TypeVar("T")

COMMON_HEADERS = {
    "Api-Version": text_of(NEWEST),
    "Docker-Experimental": "true",
    "Ostype": "linux",
    "Server": f"insula/{__version__} (linux)",
}

MOST_BODY = 4 * 1024 * 1024
_PIECE = 256 * 1024
_FORM = "application/x-www-form-urlencoded"


class BodyTooLarge(InsulaError):
    status = 413


class Call:
    __slots__ = ("_read", "_words", "engine", "http", "names", "version")

    def __init__(
        self, engine: Engine, http: web.BaseRequest, version: Version, names: dict[str, str]
    ) -> None:
        self.engine = engine
        self.http = http
        self.version = version
        self.names = names
        self._words: MultiMapping[str] = http.query
        self._read: bytes | None = None  # the body, if it was a form

    # parameters

    async def read_form(self) -> None:
        """Parameters in the body of a POST count as those of the address do, and before them, as in Go
        (`curl -d signal=HUP …/kill`).  Any other body is left alone.  Raises BodyTooLarge."""
        if self.http.method not in ("POST", "PUT", "PATCH") or self.http.content_type != _FORM:
            return
        self._read = await self.body()
        words = MultiDict(parse_qsl(self._read.decode(errors="replace"), keep_blank_values=True))
        words.extend(self.http.query)
        self._words = words

    @property
    def is_form(self) -> bool:
        """Whether the body was parameters."""
        return self._read is not None

    def text(self, name: str, default: str = "") -> str:
        return self._words.get(name, default)

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._words.getall(name, ()))

    def flag(self, name: str, default: bool = False) -> bool:
        """As moby reads booleans: anything but "", 0, no, false and none is true."""
        value = self._words.get(name)
        if value is None:
            return default
        return value.strip().lower() not in ("", "0", "no", "false", "none")

    def number(self, name: str) -> int | None:
        """None when it is not given.  Raises InvalidRequest for what is no 32-bit number."""
        value = self._words.get(name, "")
        if not value:
            return None
        try:
            number = int(value[:20])
        except ValueError:
            raise InvalidRequest(f'invalid value for {name}: "{value[:64]}" is not a number') from None
        if not -(2**31) <= number < 2**31:
            raise InvalidRequest(f"invalid value for {name}: {value[:64]} is out of range")
        return number

    def filters(self) -> Filters:
        return parse_filters(self._words.get("filters", ""))

    # body

    async def body(self) -> bytes:
        """All of it.  Raises BodyTooLarge beyond 4 MiB."""
        if self._read is not None:
            return self._read
        limit = f"the request body is larger than {MOST_BODY // 2**20} MiB"
        if (self.http.content_length or 0) > MOST_BODY:
            raise BodyTooLarge(limit)
        if not self.http.can_read_body:
            return b""
        data = bytearray()
        async for piece in self.http.content.iter_any():
            data += piece
            if len(data) > MOST_BODY:
                raise BodyTooLarge(limit)
        return bytes(data)

    async def json(self, kind: type[T], *, optional: bool = False) -> T:
        """The body as `kind`.  `null` counts as not given, as in Go.  Raises InvalidRequest."""
        raw = await self.json_body()
        if not raw.strip() and optional:
            return kind()
        return decode(raw, kind)

    async def json_body(self) -> bytes:
        """The body, which must be said to be JSON unless it is empty.  Raises InvalidRequest."""
        raw = await self.body()
        if raw.strip() and self.http.content_type != "application/json":
            given = self.http.headers.get("Content-Type", "")
            raise InvalidRequest(f"unsupported Content-Type header ({given}): must be 'application/json'")
        return raw

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives (archives)."""
        async for piece in self.http.content.iter_chunked(_PIECE):
            yield piece


def answer(document: object, status: int = 200) -> web.Response:
    return web.Response(body=json_bytes(document), status=status, content_type="application/json")


def empty(status: int = 204) -> web.Response:
    return web.Response(status=status)


def streaming(content_type: str, status: int = 200) -> web.StreamResponse:
    """A response whose body follows piece by piece; its headers leave with `prepare`."""
    return web.StreamResponse(status=status, headers={**COMMON_HEADERS, "Content-Type": content_type})
