"""What a build asks its client for, with gRPC at both ends, and the way of a session inside a stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.connection import Calling, Served, Tunnel
from insula.api.buildkit.session import Session, Sessions
from insula.errors import InvalidRequest, Unavailable

_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_CHECK, _AGENT = "/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"
_FILES = "/moby.filesync.v1.FileSync/DiffCopy"
_PULL = "/moby.upload.v1.Upload/Pull"


async def secret(stream: Any) -> None:
    request = await stream.recv_message()
    if request.id != "known":
        raise GRPCError(Status.NOT_FOUND, "no such secret")
    await stream.send_message(wire.GetSecretResponse(data=b"\0secret"))


async def credentials(stream: Any) -> None:
    host = (await stream.recv_message()).host
    answers = {"registry-1.docker.io": ("hub", "p"), "token.example": ("", "t"), "none.example": ("", "")}
    user, password = answers[host]
    await stream.send_message(wire.CredentialsResponse(username=user, secret=password))


async def check_agent(stream: Any) -> None:
    if (await stream.recv_message()).id != "default":
        raise GRPCError(Status.UNKNOWN, "unset ssh forward key")
    await stream.send_message(wire.CheckAgentResponse())


async def agent(stream: Any) -> None:
    """Says everything back, louder."""
    assert "default" == stream.metadata["buildkit.ssh.id"]
    while (message := await stream.recv_message()) is not None:
        await stream.send_message(wire.BytesMessage(data=message.data.upper()))


async def pull(stream: Any) -> None:
    assert "/abc" == stream.metadata["urlpath"]
    for piece in (b"one ", b"two"):
        await stream.send_message(wire.BytesMessage(data=piece))


async def files(stream: Any) -> None:
    """Two thousand names; then what is asked for, until it is asked for too much."""
    stats = [wire.Packet(stat=wire.Stat(path=f"{stream.metadata['dir-name']}{n}")) for n in range(2000)]
    for packet in (*stats, wire.Packet()):
        await stream.send_message(packet)
    while (packet := await stream.recv_message()).type == wire.Packet.REQ:
        size = (17 << 20) if packet.id == 1999 else 300_000
        await stream.send_message(wire.Packet(type=wire.Packet.DATA, id=packet.id, data=bytes(size)))
    await stream.send_message(wire.Packet(type=wire.Packet.FIN))


_METHODS = {
    _FILES: (files, Cardinality.STREAM_STREAM, wire.Packet, wire.Packet),
    _SECRET: (secret, Cardinality.UNARY_UNARY, wire.GetSecretRequest, wire.GetSecretResponse),
    _CREDENTIALS: (credentials, Cardinality.UNARY_UNARY, wire.CredentialsRequest, wire.CredentialsResponse),
    _CHECK: (check_agent, Cardinality.UNARY_UNARY, wire.CheckAgentRequest, wire.CheckAgentResponse),
    _AGENT: (agent, Cardinality.STREAM_STREAM, wire.BytesMessage, wire.BytesMessage),
    _PULL: (pull, Cardinality.STREAM_STREAM, wire.BytesMessage, wire.BytesMessage),
}


@contextlib.asynccontextmanager
async def connected(offered: frozenset[str] = frozenset(_METHODS)) -> AsyncIterator[Session]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    channel, protocol = Calling(), Served(_METHODS).protocol()
    transport, _ = await loop.create_connection(lambda: protocol, sock=theirs)
    other, _ = await loop.create_connection(lambda: channel.protocol, sock=ours)
    try:
        yield Session("s", offered, channel)
    finally:
        channel.close()
        transport.close()
        other.close()
        await asyncio.sleep(0)


async def test_secrets_and_credentials() -> None:
    async with connected() as session:
        assert (b"\0secret", None) == (await session.secret("known"), await session.secret("other"))
        hub = await session.credentials("docker.io")
        token = await session.credentials("token.example")
        assert hub is not None
        assert token is not None
        assert ("hub", "p", "t") == (hub.username, hub.password, token.identity_token)
        assert await session.credentials("none.example") is None


async def test_what_is_not_offered_is_not_asked_for(tmp_path: Path) -> None:
    async with connected(frozenset()) as session:
        assert (None, None) == (await session.secret("known"), await session.credentials("docker.io"))
        async with session.ssh_agent("default", str(tmp_path / "a")) as there:
            assert not there
        with pytest.raises(InvalidRequest, match="offers no files"):
            async with session.files("context"):
                pass


async def test_programs_reach_the_clients_agent(tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    async with connected() as session:
        async with session.ssh_agent("other", path) as there:
            assert not there
        async with session.ssh_agent("default", path) as there:
            assert there
            for _ in range(2):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"question")
                assert b"QUESTION" == await asyncio.wait_for(reader.readexactly(8), 10)
                writer.close()
        assert not Path(path).exists()


async def test_packets_come_and_go_several_at_a_time() -> None:
    async with connected() as session, session.files("größe") as stream:
        for number in range(2000):
            assert f"gr%C3%B6%C3%9Fe{number}" == (await stream.recv_message()).stat.path
        assert not (await stream.recv_message()).HasField("stat")
        await stream.send_messages([wire.Packet(type=wire.Packet.REQ, id=number) for number in range(50)])
        for number in range(50):
            packet = await stream.recv_message()
            assert (number, bytes(300_000)) == (packet.id, packet.data)
        await stream.send_message(wire.Packet(type=wire.Packet.FIN), end=True)
        assert wire.Packet.FIN == (await stream.recv_message()).type
        assert None is await stream.recv_message()


_TOO_LARGE = r"grpc: received message larger than max \(\d+ vs\. 16777216\)"


async def test_a_message_is_bounded_on_its_way_to_us_and_from_a_client() -> None:
    async def read(session: Session) -> None:
        async with session.files("x") as stream:
            await stream.send_messages([wire.Packet(type=wire.Packet.REQ, id=1999)])
            while await stream.recv_message():
                pass

    async with connected() as session:
        with pytest.raises(InvalidRequest, match=_TOO_LARGE):
            await read(session)
        with pytest.raises(InvalidRequest, match=_TOO_LARGE):
            await session.secret("x" * (16 << 20))
        assert b"\0secret" == await session.secret("known"), "and the session goes on"


async def test_standard_input_is_pulled() -> None:
    async with connected() as session:
        assert session.is_upload("http://buildkit-session/abc")
        assert not session.is_upload("https://buildkit-session.example/abc")
        pieces = [piece async for piece in session.upload("http://buildkit-session/abc")]
        assert b"one two" == b"".join(pieces)


async def test_a_client_that_goes_is_an_error_of_the_request() -> None:
    async with connected() as session:
        session._channel.protocol.connection_lost(None)  # type: ignore[attr-defined]
        with pytest.raises(InvalidRequest, match="session has ended"):
            async for _ in session.upload("http://buildkit-session/abc"):
                pass


async def test_a_session_inside_a_stream() -> None:
    channel, served = Calling(), Served(_METHODS).protocol()
    here, there = Tunnel(channel.protocol), Tunnel(served)

    async def carry(source: Tunnel, target: Any) -> None:
        while data := await source.written():
            target.data_received(data)

    carrying = [
        asyncio.create_task(carry(here, served)),
        asyncio.create_task(carry(there, channel.protocol)),
    ]
    try:
        assert b"\0secret" == await Session("s", frozenset(_METHODS), channel).secret("known")
    finally:
        here.close()
        there.close()
        await asyncio.gather(*carrying)
        channel.close()
    assert here.is_closing()


async def test_a_method_that_is_not_there_is_said_to_be_so_in_grpc() -> None:
    async with connected() as session:
        stream: Any = session._channel.request(
            "/moby.buildkit.v1.Control/ListenBuildHistory",
            Cardinality.UNARY_UNARY,
            wire.InfoRequest,
            wire.InfoResponse,
        )

        async def ask() -> None:
            async with stream as call:
                await call.send_message(wire.InfoRequest(), end=True)
                await call.recv_message()

        with pytest.raises(GRPCError) as caught:
            await ask()
        assert Status.UNIMPLEMENTED is caught.value.status
        # grpclib's own answer to an unknown method lacks it: an error of HTTP to Go's clients
        assert "application/grpc" in dict(stream._stream.headers)["content-type"]


async def test_builds_wait_for_their_session(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    channel = Calling()
    one = Session("s", frozenset(), channel)
    waiting = asyncio.create_task(sessions.find("s"))
    await asyncio.sleep(0)
    with sessions.entered(one):
        assert one is await waiting
        with pytest.raises(InvalidRequest, match="names no session"):
            await sessions.find("")
    monkeypatch.setattr("insula.api.buildkit.session._WAIT_S", 0.05)
    with pytest.raises(Unavailable, match="no active session for s"):
        await sessions.find("s")
    channel.close()
