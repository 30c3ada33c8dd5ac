"""Where a request that can be hijacked ends; what compressed archives become."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import lzma
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_house import start_house
from insula.api.doorway import _end_of_hijacking_request as end_of
from insula.api.inflate import plain_tar
from insula.errors import InvalidRequest

HEAD = b"POST /v1.47/exec/abc/start HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("request_", "rest"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\n{}", b"input"),
        (HEAD + b"content-length:2\r\n\r\n{}", b""),
        (HEAD + b"\r\n", b"input"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"input"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
        (b"POST /containers/a/attach?stream=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"\0\r\n\r\n"),
    ],
)
def test_the_end_is_found_whatever_follows_and_however_it_arrives(request_: bytes, rest: bytes) -> None:
    assert end_of(request_ + rest) == len(request_)
    for cut in range(len(request_)):
        assert end_of(request_[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"POST /containers/a/start HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\n",
        HEAD + b"Content-Length: 9999999\r\n\r\n",
        b"POST " + b"a" * 40_000,
    ],
)
def test_other_requests_are_not_held(data: bytes) -> None:
    assert end_of(data) == 0


@given(st.binary(max_size=200))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    found = end_of(b"POST " + data)
    assert found is None or 0 <= found <= len(data) + 5


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("size", [1000, 10**7])
async def test_archives_arrive_plain(pack: object, size: int) -> None:
    data = bytes(2_000_000) + bytes(range(256)) * 2000
    assert callable(pack)
    found = [piece async for piece in plain_tar(pieces(pack(data), size))]
    same = b"".join(found) == data
    assert same
    if pack is not bytes:
        assert max(len(p) for p in found) <= 512 * 1024


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
async def test_a_damaged_or_cut_archive_is_refused(pack: object) -> None:
    assert callable(pack)
    packed = pack(bytes(range(256)) * 1000)
    for bad in (packed[:-10], packed[:40] + b"\xff" * 20 + packed[60:]):
        with pytest.raises(InvalidRequest):
            async for _ in plain_tar(pieces(bad, 4096)):
                pass


async def test_what_is_no_http_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with start_house(tmp_path) as house:
        for nonsense in (b"\0" * 100, b"POST /_ping HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"):
            reader, writer = await asyncio.open_unix_connection(house.socket)
            writer.write(nonsense)
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
            writer.close()
    assert [] == [record for record in caplog.records if record.exc_info]
