"""A tar that a client may have compressed, as a plain tar: gzip, bzip2, xz, told by the first bytes.  Async.

Decoding runs in threads, in bounded steps, whatever the ratio.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import zlib
from collections.abc import AsyncIterator
from typing import Protocol

from insula.errors import InvalidRequest

_PIECE = 512 * 1024


class _Decoder(Protocol):
    eof: bool

    def step(self, data: bytes) -> bytes:
        """At most _PIECE bytes; b"" data goes on with what is left over."""
        ...

    @property
    def starved(self) -> bool: ...


class _Gzip:
    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(31)
        self.eof = False

    def step(self, data: bytes) -> bytes:
        out = self._decoder.decompress(self._decoder.unconsumed_tail + data, _PIECE)
        self.eof = self._decoder.eof
        return out

    @property
    def starved(self) -> bool:
        return not self._decoder.unconsumed_tail


class _Other:
    def __init__(self, decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._decoder = decoder
        self.eof = False

    def step(self, data: bytes) -> bytes:
        out = self._decoder.decompress(data, _PIECE)
        self.eof = self._decoder.eof
        return out

    @property
    def starved(self) -> bool:
        return self._decoder.needs_input


def _decoder(start: bytes) -> _Decoder | None:
    if start.startswith(b"\x1f\x8b"):
        return _Gzip()
    if start.startswith(b"BZh"):
        return _Other(bz2.BZ2Decompressor())
    if start.startswith(b"\xfd7zXZ\0"):
        return _Other(lzma.LZMADecompressor(memlimit=256 << 20))
    return None


async def plain_tar(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises InvalidRequest when the compressed stream is damaged or cut off."""
    start = b""
    async for piece in pieces:
        start += piece
        if len(start) >= 6:
            break
    decoder = _decoder(start)
    if decoder is None:
        if start:
            yield start
        async for piece in pieces:
            yield piece
        return
    try:
        data = start
        while True:
            while not decoder.eof:
                out = await asyncio.to_thread(decoder.step, data)
                data = b""
                if out:
                    yield out
                if decoder.starved:
                    break
            fresh = await anext(pieces, b"")
            if not fresh:
                break
            data = b"" if decoder.eof else fresh
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise InvalidRequest(f"the archive cannot be decompressed: {error}") from None
    if not decoder.eof:
        raise InvalidRequest("the archive cannot be decompressed: it is cut off")
