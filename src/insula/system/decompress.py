"""gzip, zstd, bzip2, xz or plain, told by the first bytes.  Synchronous; a readable stream over a stream.

Several members in a row (pigz, estargz, zstd:chunked) are one stream.  Output comes in bounded pieces,
whatever the ratio.  A damaged or cut-off stream raises CorruptData.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from insula.errors import CorruptData

PIECE = 1 << 18
_XZ_MEMORY = 256 << 20


class Source(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def _new_zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    return zstd.ZstdDecompressor()


def _new_bz2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def _new_xz() -> Any:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def preload() -> None:
    """Import every decoder now: a confined child cannot later."""
    _new_zstd()
    _new_bz2()
    _new_xz()


def _is_zstd(start: bytes) -> bool:
    if start[:4] == b"\x28\xb5\x2f\xfd":
        return True
    return (
        len(start) >= 4 and 0x184D2A50 <= struct.unpack("<I", start[:4])[0] <= 0x184D2A5F
    )  # skippable frame


def detect(start: bytes) -> str:
    """gzip, zstd, bzip2, xz, or "" for anything else."""
    if start[:2] == b"\x1f\x8b":
        return "gzip"
    if start[:3] == b"BZh":
        return "bzip2"
    if start[:6] == b"\xfd7zXZ\0":
        return "xz"
    return "zstd" if _is_zstd(start) else ""


class _Plain(io.RawIOBase):
    def __init__(self, source: Source, start: bytes) -> None:
        self._source = source
        self._start = start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[: len(buffer)] or self._source.read(len(buffer)) or b""
        self._start = self._start[len(data) :] if self._start else b""
        buffer[: len(data)] = data
        return len(data)


class _Packed(io.RawIOBase):
    def __init__(self, source: Source, start: bytes, kind: str) -> None:
        self._source = source
        self._input = start
        self._kind = kind
        self._new: Callable[[], Any] = {
            "gzip": lambda: zlib.decompressobj(31),
            "zstd": _new_zstd,
            "bzip2": _new_bz2,
            "xz": _new_xz,
        }[kind]
        self._decoder: Any = self._new()
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._step(min(len(buffer), PIECE))
        buffer[: len(data)] = data
        return len(data)

    def _step(self, most: int) -> bytes:
        while not self._ended:
            if self._decoder.eof and not self._next_member():
                break
            at_end = False
            if not self._input and getattr(self._decoder, "needs_input", True):
                self._input = self._source.read(PIECE) or b""
                at_end = not self._input
            data = self._decode(self._input, most)  # at the end too: zlib may hold some output back
            if data:
                return data
            if at_end and not self._decoder.eof:
                raise CorruptData(f"the {self._kind} stream is cut off")
        return b""

    def _decode(self, packed: bytes, most: int) -> bytes:
        try:
            data: bytes = self._decoder.decompress(packed, most)
        except MemoryError:
            raise CorruptData(f"the {self._kind} stream wants too much memory") from None
        except Exception as error:  # each library has a class of its own; none has another meaning here
            raise CorruptData(f"the {self._kind} stream is damaged: {error}") from None
        # zlib hands back what it did not take; the others keep it themselves
        self._input = self._decoder.unconsumed_tail if self._kind == "gzip" else b""
        return data

    def _next_member(self) -> bool:
        """After the end of one member: another one, or (as gzip does) padding and the end."""
        rest: bytes = self._decoder.unused_data
        while len(rest) < 6 and (more := self._source.read(PIECE)):
            rest += more
        if detect(rest) == self._kind:
            self._decoder = self._new()
            self._input = rest
            return True
        while rest:
            if rest.strip(b"\0"):
                raise CorruptData(f"the {self._kind} stream is followed by something else")
            rest = self._source.read(PIECE) or b""
        self._ended = True
        return False


def decompressed(source: Source) -> tuple[io.RawIOBase, str]:
    """A raw stream of the plain bytes, and what the source was packed with ("" if it was not).

    Wrap it in io.BufferedReader for small reads.
    """
    start = b""
    while len(start) < 6 and (more := source.read(PIECE)):
        start += more
    kind = detect(start)
    return (_Packed(source, start, kind), kind) if kind else (_Plain(source, start), "")
