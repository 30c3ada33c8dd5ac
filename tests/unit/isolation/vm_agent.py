"""A fake agent: speaks docs/agent-protocol.md over a socket, and shares no code with the host's side.

It also speaks wrongly, on request.  Async.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

MARK = b"\xf1\x0d\x9a\x6eSynC-insula\n"
HELLO, OK, ERROR, EXITED, STDOUT, STDERR, CREDIT, CLOSED = 1, 2, 3, 11, 16, 17, 18, 20


def fields(*pairs: tuple[str, str]) -> bytes:
    return b"".join(f"{k}\0{v}\0".encode() for k, v in pairs)


def parse(payload: bytes) -> dict[str, list[str]]:
    parts = payload.decode().split("\0")[:-1]
    result: dict[str, list[str]] = {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        result.setdefault(key, []).append(value)
    return result


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("<IBBH", len(payload), kind, flags, stream) + payload


GREETING = frame(HELLO, 0, fields(("version", "1"), ("state", "idle")))


@dataclass
class FakeAgent:
    """`got` is every message that came, whole."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    got: list[tuple[int, int, bytes]] = field(default_factory=list)

    async def synchronise(self, *, before: bytes = b"", greeting: bytes = GREETING) -> None:
        seen = b""
        while MARK not in seen:
            seen += await self.reader.readexactly(1)
        nonce = await self.reader.readexactly(16)
        self.writer.write(before + MARK + nonce + greeting)

    async def take(self) -> tuple[int, int, bytes]:
        """The next message, its frames put together."""
        whole = b""
        while True:
            length, kind, flags, stream = struct.unpack("<IBBH", await self.reader.readexactly(8))
            whole += await self.reader.readexactly(length)
            if not flags & 1:
                self.got.append((kind, stream, whole))
                return kind, stream, whole

    def put(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def answer(self, *pairs: tuple[str, str], kind: int = OK) -> tuple[int, int, bytes]:
        """Take one request and answer it."""
        message = await self.take()
        self.put(frame(kind, message[1], fields(("seq", parse(message[2])["seq"][0]), *pairs)))
        return message


async def connected() -> tuple[FakeAgent, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The agent, and the host's end."""
    ours, theirs = socket.socketpair()
    agent = FakeAgent(*await asyncio.open_unix_connection(sock=ours))
    return agent, await asyncio.open_unix_connection(sock=theirs)


Play = Callable[[FakeAgent], Awaitable[None]]
