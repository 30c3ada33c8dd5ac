"""A blob down into the content store: checked while it streams, resumed when it breaks.  Async.

Hashing and writing happen in threads, a megabyte at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from insula.errors import CorruptData, InsulaError, NotFound, RegistryFailed
from insula.images.content import BlobWriter, ContentStore
from insula.images.registry.client import Repository
from insula.images.registry.transport import Interrupted
from insula.model.image import Descriptor

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PIECE = 1 << 20
_PATIENCE = 5  # failures in a row that brought nothing
_LIMIT = 50  # failures in all
_LONGEST_S = 8.0
_log = logging.getLogger(__name__)


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As asyncio.to_thread, but a cancelled caller waits for the thread: what it works on stays open."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


class Download:
    """One blob from the first source that has it.  `on_bytes` gets the number of bytes that are there,
    `on_check` is called before the digest is compared."""

    def __init__(
        self,
        sources: Sequence[Repository],
        blob: Descriptor,
        content: ContentStore,
        *,
        on_bytes: Callable[[int], None] = lambda _: None,
        on_check: Callable[[], None] = lambda: None,
        retry_s: float = 0.5,
    ) -> None:
        self._sources = list(sources)
        self._blob = blob
        self._content = content
        self._on_bytes = on_bytes
        self._on_check = on_check
        self._retry_s = retry_s
        self._resumed = False

    async def run(self) -> None:
        """Raises CorruptData (nothing is kept), NotFound, Unauthorized, RegistryFailed, DiskFull."""
        barren = failures = 0
        while not self._content.has(self._blob.digest):
            before = self._content.partial_size(self._blob.digest)
            try:
                await self._attempt(self._sources[0])
            except Interrupted as error:
                came = self._content.partial_size(self._blob.digest) > before
                barren, failures = 0 if came else barren + 1, failures + 1
                if barren >= _PATIENCE or failures >= _LIMIT:
                    self._next_source(error)
                    barren = failures = 0
                    continue
                _log.info("blob %s: %s; trying again", self._blob.digest, error)
                await asyncio.sleep(min(self._retry_s * 2**barren, _LONGEST_S))
            except (CorruptData, NotFound, RegistryFailed) as error:
                if self._resumed and not isinstance(error, NotFound):
                    _log.info("blob %s: %s; starting over", self._blob.digest, error)
                    continue  # what was kept may be the bad part; it is gone now
                self._next_source(error)

    def _next_source(self, error: InsulaError) -> None:
        if len(self._sources) == 1:
            raise error
        _log.warning("blob %s: %s; trying the next endpoint", self._blob.digest, error)
        del self._sources[0]

    async def _attempt(self, source: Repository) -> None:
        blob = self._blob
        writer = await in_thread(self._content.writer, blob.digest, blob.size, resume=True)
        with writer:
            self._resumed = writer.offset > 0
            if writer.offset < blob.size or blob.size == 0:
                try:
                    await self._stream(source, writer)
                except (Interrupted, asyncio.CancelledError):
                    writer.keep_partial()
                    raise
            self._on_check()
            await in_thread(writer.commit)

    async def _stream(self, source: Repository, writer: BlobWriter) -> None:
        kept = bytearray()
        async with source.blob(self._blob.digest, writer.offset) as (start, pieces):
            if start != writer.offset:
                await in_thread(writer.restart)
                self._resumed = False
            try:
                async for piece in pieces:
                    kept += piece
                    self._on_bytes(writer.offset + len(kept))
                    if len(kept) >= _PIECE:
                        await in_thread(writer.write, bytes(kept))
                        kept.clear()
            except Interrupted:
                await in_thread(writer.write, bytes(kept))
                raise
            await in_thread(writer.write, bytes(kept))
