"""Speaking to the API byte by byte, for contract tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from contract.schema import complaints
from fake_house import House

UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


@dataclass(slots=True)
class Wire:
    """One connection, spoken to byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = raw.split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split(" ")[1]), {k.lower(): v.strip() for k, _, v in pairs}

    async def frames(self) -> bytes:
        """Data of multiplexed frames until the end."""
        found = b""
        while header := await self.reader.read(8):
            found += await self.reader.readexactly(int.from_bytes(header[4:], "big"))
        return found


@contextlib.asynccontextmanager
async def dial(house: House) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_unix_connection(house.socket)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(
    house: House, method: str, target: str, body: bytes | Any = b"", headers: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """One request and its answer, which must be as Docker's swagger says."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "Content-Type: application/json\r\n" if data and "Content-Type" not in headers else ""
    async with dial(house) as wire:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}{headers}"
        wire.writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        status, found = await wire.head()
        answer = await wire.reader.read()
    if found.get("content-type") == "application/json" and "chunked" not in found.get(
        "transfer-encoding", ""
    ):
        wrong = complaints(method, target, status, answer)
        assert wrong == [], "\n".join(wrong)
    return status, found, answer


async def create(house: House, *command: str, **fields: Any) -> str:
    status, _, body = await ask(
        house, "POST", "/containers/create", {"Image": "busybox", "Cmd": list(command), **fields}
    )
    assert status == 201, body
    return str(json.loads(body)["Id"])


async def act(house: House, target: str) -> int:
    return (await ask(house, "POST", target))[0]
