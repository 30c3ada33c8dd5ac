"""Agent streams as the engine knows them: `Stream` and `Exec`.  Async, thin."""

from __future__ import annotations

import asyncio

from insula.errors import GuestFailed, InsulaError
from insula.isolation.vm.channel import AgentStream, Channel
from insula.isolation.vm.wire import Type, encode_fields
from insula.model.stream import Chunk

_LOST = 137  # as if killed: the VM ended under an exec


class VmStream:
    """Stdio of the main process, or of an exec, for one client."""

    def __init__(self, stream: AgentStream) -> None:
        self._stream = stream

    async def read(self) -> Chunk | None:
        return await self._stream.read()

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close_stdin(self) -> None:
        await self._stream.close_stdin()

    async def close(self) -> None:
        self._stream.let_go()


class VmExec:
    """`pid` is the guest's."""

    def __init__(self, channel: Channel, stream: AgentStream, pid: int) -> None:
        self.stream = VmStream(stream)
        self.pid = pid
        self._channel = channel
        self._stream = stream

    async def wait(self) -> int:
        try:
            return await asyncio.shield(self._stream.exited)
        except (GuestFailed, InsulaError):
            return _LOST

    async def resize(self, rows: int, cols: int) -> None:
        fields = encode_fields([("rows", str(rows)), ("cols", str(cols))])
        self._channel.send(Type.RESIZE, self._stream.number, fields)
