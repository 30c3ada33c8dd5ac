"""Agent streams as the engine knows them: `Stream` and `Exec`.  Async, thin."""

from __future__ import annotations

import asyncio
import signal

from insula.errors import GuestFailed, InsulaError
from insula.isolation.vm.channel import AgentError, AgentStream, Channel, translate
from insula.isolation.vm.wire import Type, encode_fields
from insula.model.stream import Chunk

_LOST = 137  # as if killed: the VM ended under an exec


class VmStream:
    """Stdio of the main process for one client.

    `stdin_once`: the agent ends stdin when a client goes; one that never sent anything (it may have attached
    without stdin) stays, unheard, so that it does not.
    """

    def __init__(self, stream: AgentStream, *, stdin_once: bool = False) -> None:
        self._stream = stream
        self._silent = stdin_once

    async def read(self) -> Chunk | None:
        return await self._stream.read()

    async def write(self, data: bytes) -> None:
        self._silent = False
        await self._stream.write(data)

    async def close_stdin(self) -> None:
        self._silent = False
        await self._stream.close_stdin()

    async def close(self) -> None:
        if self._silent:
            self._stream.discard()
        else:
            self._stream.let_go()


class ExecStream(VmStream):
    """Stdio of an exec.  Its client may go, the exit code still comes; without a tty, input ends with it."""

    def __init__(self, stream: AgentStream, *, tty: bool) -> None:
        super().__init__(stream)
        self._tty = tty

    async def close(self) -> None:
        if not self._tty:
            await self._stream.close_stdin()
        self._stream.discard()


class VmExec:
    """`pid` is the guest's."""

    def __init__(self, channel: Channel, stream: AgentStream, pid: int, *, tty: bool) -> None:
        self.stream = ExecStream(stream, tty=tty)
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

    async def kill(self) -> None:
        try:
            await self._channel.request(
                Type.SIGNAL, ("signal", str(int(signal.SIGKILL))), ("pid", str(self.pid))
            )
        except AgentError as error:
            if error.kind != "conflict":  # it has ended
                raise translate(error) from None
