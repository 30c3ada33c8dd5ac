"""`attach/ws`: a workload's stdio over a websocket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from api_wire import act, ask, create
from fake_house import House, start_house

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started


@contextlib.asynccontextmanager
async def attached(house: House, ident: str, query: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    connector = aiohttp.UnixConnector(path=house.socket)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.ws_connect(f"http://x/v1.47/containers/{ident}/attach/ws?{query}") as socket:
            yield socket


async def test_input_comes_back_and_ends_with_the_workload(house: House) -> None:
    ident = await create(house, "sh", "-c", "read A; echo out; echo err >&2; cat", OpenStdin=True)
    async with attached(house, ident, "stream=1&stdin=1&stdout=1&stderr=1") as socket:
        assert 204 == await act(house, f"/containers/{ident}/start")
        await socket.send_bytes(b"go\n")
        await socket.send_str("text\n")
        got = b""
        while b"text\n" not in got or b"err\n" not in got:
            got += await socket.receive_bytes()
        assert b"out\n" in got
        await act(house, f"/containers/{ident}/kill")
        assert aiohttp.WSMsgType.CLOSE == (await socket.receive()).type


async def test_a_client_that_goes_leaves_the_workload(house: House) -> None:
    ident = await create(house, "cat", OpenStdin=True)
    await act(house, f"/containers/{ident}/start")
    for _ in range(2):
        async with attached(house, ident, "stream=1&stdin=1&stdout=1") as socket:
            await socket.send_bytes(b"again\n")
            assert b"again\n" == await socket.receive_bytes()
    assert house.engine.find(ident).state == "running"


async def test_the_detach_keys(house: House) -> None:
    ident = await create(house, "cat", OpenStdin=True, Tty=True)
    await act(house, f"/containers/{ident}/start")
    async with attached(house, ident, "stream=1&stdin=1&stdout=1&detachKeys=ctrl-a,b") as socket:
        await socket.send_bytes(b"\x01b")
        while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
        assert aiohttp.WSMsgType.CLOSE == message.type
    assert house.engine.find(ident).state == "running"


async def test_what_is_no_websocket(house: House) -> None:
    ident = await create(house, "cat")
    status, _, body = await ask(house, "GET", f"/containers/{ident}/attach/ws?stream=1")
    assert (400, True) == (status, b"handshake" in body)
    status, _, body = await ask(house, "GET", "/containers/none/attach/ws", headers="Upgrade: websocket\r\n")
    assert (404, True) == (status, b"No such container: none" in body)
    bad = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    assert 400 == (await ask(house, "GET", f"/containers/{ident}/attach/ws", headers=bad))[0]
