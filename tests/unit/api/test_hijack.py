"""A connection that was taken over from HTTP: what its client has of it, and when."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from insula.api import hijack
from insula.api.hijack import HijackedConnection


class _Former:
    def connection_lost(self, exc: Exception | None) -> None: ...


async def _taken_over(ours: socket.socket) -> HijackedConnection:
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    connection = HijackedConnection(cast(Any, _Former()), transport, b"")
    transport.set_protocol(connection)
    transport.write(b"head")
    return connection


async def test_output_waits_until_the_head_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-py on a busy machine: what came in one piece with the head would be lost to it."""
    monkeypatch.setattr(hijack, "_HEAD_S", 3600.0)
    monkeypatch.setattr(hijack, "_HEAD_LONGEST_S", 0.001)
    ours, client = socket.socketpair()
    with ours, client:
        connection = await _taken_over(ours)
        writing = asyncio.create_task(connection.write(b"output"))
        await asyncio.wait({writing}, timeout=0.1)
        assert not writing.done()
        assert client.recv(100) == b"head"
        await writing
        assert client.recv(100) == b"output"
        connection.abort()


async def test_a_client_that_reads_nothing_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hijack, "_HEAD_S", 0.01)
    ours, client = socket.socketpair()
    with ours, client:
        connection = await _taken_over(ours)
        await connection.write(b"output")
        assert client.recv(100) == b"headoutput"
        connection.abort()


async def test_a_client_that_goes_before_it_has_read_the_head_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hijack, "_HEAD_S", 3600.0)
    ours, client = socket.socketpair()
    with ours, client:
        connection = await _taken_over(ours)
        writing = asyncio.create_task(connection.write(b"output"))
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(ConnectionResetError):
            await writing
