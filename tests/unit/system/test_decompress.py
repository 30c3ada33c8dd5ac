"""Decompression: every kind, several members in a row, damage."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable

import pytest
from backports import zstd

from insula.errors import CorruptData
from insula.system.decompress import decompressed, detect

_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def _plain(data: bytes) -> bytes:
    stream, _ = decompressed(io.BytesIO(data))
    return io.BufferedReader(stream).read()


@pytest.mark.parametrize("kind", _PACKERS)
@pytest.mark.parametrize("content", [b"", b"x", os.urandom(300_000), bytes(20_000_000)])
def test_each_kind_is_detected_and_unpacked(kind: str, content: bytes) -> None:
    packed = _PACKERS[kind](content)
    assert detect(packed) == kind
    assert _plain(packed) == content


@pytest.mark.parametrize("content", [b"", b"x", b"plain text", os.urandom(400_000)])
def test_anything_else_is_plain(content: bytes) -> None:
    assert detect(content) == ""
    assert _plain(content) == content


@pytest.mark.parametrize("kind", ["gzip", "zstd", "bzip2", "xz"])
def test_several_members_are_one_stream(kind: str) -> None:
    pack = _PACKERS[kind]
    assert _plain(pack(b"one ") + pack(b"") + pack(b"two")) == b"one two"


def test_zstd_frames_to_skip_are_skipped() -> None:
    skip = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    assert _plain(zstd.compress(b"data") + skip) == b"data"
    assert _plain(skip + zstd.compress(b"data")) == b"data"


@pytest.mark.parametrize("kind", _PACKERS)
def test_a_cut_off_stream_is_refused(kind: str) -> None:
    packed = _PACKERS[kind](os.urandom(100_000))
    for length in (10, 1000, len(packed) - 1):
        with pytest.raises(CorruptData, match="cut off"):
            _plain(packed[:length])


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_damage_is_refused(kind: str) -> None:
    packed = bytearray(_PACKERS[kind](b"abc" * 10_000))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(CorruptData):
        _plain(bytes(packed))


def test_something_else_after_the_end_is_refused_and_padding_is_not() -> None:
    assert _plain(gzip.compress(b"x") + bytes(1000)) == b"x"
    with pytest.raises(CorruptData, match="followed by something else"):
        _plain(gzip.compress(b"x") + b"tail")
