"""Building images: the classic builder's pages.  The builder itself is imported by the first build."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from insula.api.call import Call, answer
from insula.api.progress import Teller, stream_progress
from insula.api.routing import Route
from insula.errors import InsulaError, InvalidRequest

if TYPE_CHECKING:
    from insula.build.options import StepNote

_KEPT_OUTPUT = 64 << 10
_MOST_DIGITS = 18
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"


class _Output:
    """The client's stream.  A quiet build says nothing but what it made, or what went wrong."""

    def __init__(self, teller: Teller, *, quiet: bool) -> None:
        self._teller = teller
        self._quiet = quiet
        self._kept = ""

    def step(self, step: StepNote) -> None:
        self.note(f"Step {step.number}/{step.total} : {step.code}")
        self.note("\n")

    def cached(self) -> None:
        self.note(" ---> Using cache\n")

    def log(self, text: str, *, error: bool) -> None:
        self.note(f"{_RED}{text}{_PLAIN}" if error else text)

    def note(self, text: str) -> None:
        if self._quiet:
            self._kept = (self._kept + text)[-_KEPT_OUTPUT:]
        else:
            self._teller.line({"stream": text})

    def status(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        if not self._quiet:
            self._teller(status, id=id, current=current, total=total)

    def aux(self, value: Mapping[str, Any]) -> None:
        if not self._quiet:
            self._teller.line({"aux": dict(value)})

    async def room(self) -> None:
        await self._teller.room()

    def end(self, image_id: str) -> None:
        if self._quiet:
            self._teller.line({"stream": f"{image_id}\n"})

    def failed(self) -> None:
        if self._quiet and self._kept:
            self._teller.line({"stream": self._kept})


async def build(call: Call) -> web.StreamResponse:
    from insula.api.translate_build import parse_build
    from insula.build.builder import Builder
    from insula.build.context import receive_context

    options = parse_build(call)
    quiet = call.flag("q")
    receive = functools.partial(
        receive_context,
        call.pieces(),
        dockerfile=call.text("dockerfile") or "Dockerfile",
        remote=call.text("remote"),
    )

    async def work(teller: Teller) -> None:
        output = _Output(teller, quiet=quiet)
        try:
            image = await Builder(call.engine, options, output, secrets.token_hex(8)).build(receive)
        except InsulaError:
            output.failed()
            raise
        output.end(image.id)

    return await stream_progress(call, work)


async def prune(call: Call) -> web.StreamResponse:
    """Cache mounts of RUN, and contexts.  The steps' images are images: `docker image prune` is for those."""
    from insula.build.prune import prune_caches

    filters = call.filters()
    wanted = filters.for_prune(time.time_ns(), "id", "all")
    keep = call.text("keep-storage") or "0"
    if not keep.isdecimal() or len(keep) > _MOST_DIGITS:
        raise InvalidRequest(f"keep-storage is in bytes and expects an integer, got {keep[:64]}")
    ids = filters.get("id")
    report = await prune_caches(
        call.engine, wanted, chosen=lambda cache: not ids or cache.ident in ids, keep_bytes=int(keep)
    )
    return answer({"CachesDeleted": list(report.deleted) or None, "SpaceReclaimed": report.reclaimed_bytes})


ROUTES = (
    Route("POST", "/build", build, archive=True),
    Route("POST", "/build/prune", prune, completes=True),
)
