"""A program of the fake backend while it runs: its stdio, its clients, its log, its end.  Async.

Not for what the programs do (`fake_programs`), nor for instances (`fake`).
"""

from __future__ import annotations

import asyncio
import datetime
import signal
import time
from collections import deque

from insula.isolation.fake_files import FakeTree
from insula.isolation.fake_programs import Context, run_program
from insula.isolation.plan import Process
from insula.model.stream import Channel, Chunk, Stream

_ROOM = 256 * 1024
KILLED = 128 + signal.SIGKILL


class _Stdin:
    """Bounded bytes from clients to a program."""

    def __init__(self, open_: bool) -> None:
        self._data = bytearray()
        self._ended = not open_
        self._changed = asyncio.Condition()

    async def read(self) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._data or self._ended)
            data = bytes(self._data[:65536])
            del self._data[:65536]
            self._changed.notify_all()
            return data

    async def write(self, data: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or len(self._data) < _ROOM)
            if not self._ended:
                self._data += data
                self._changed.notify_all()

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()


class FakeStream:
    """One client of a program's stdio."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._chunks: deque[Chunk] = deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def read(self) -> Chunk | None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._chunks or self._ended)
            if not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._size -= len(chunk.data)
            self._changed.notify_all()
            return chunk

    async def put(self, chunk: Chunk) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._size < _ROOM)
            if not self._ended:
                self._chunks.append(chunk)
                self._size += len(chunk.data)
                self._changed.notify_all()

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def write(self, data: bytes) -> None:
        await self._job.stdin.write(data)

    async def close_stdin(self) -> None:
        if self._job.stdin_once:
            await self._job.stdin.end()

    async def close(self) -> None:
        self._job.clients.discard(self)
        self._chunks.clear()
        await self.end()
        await self.close_stdin()


class Job:
    """One running program: the main one of an instance, or an exec."""

    def __init__(
        self,
        process: Process,
        hostname: str,
        tree: FakeTree,
        *,
        pid: int,
        open_stdin: bool,
        stdin_once: bool,
        log_path: str,
    ) -> None:
        self.process = process
        self.pid = pid
        self.stdin = _Stdin(open_stdin)
        self.stdin_once = stdin_once
        self.clients: set[FakeStream] = set()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.running = asyncio.Event()
        self.running.set()
        self.rows, self.cols = process.console_rows, process.console_cols
        self.context = Context(
            args=process.args,
            env=dict(e.partition("=")[::2] for e in process.env),
            cwd=process.cwd,
            user=process.user,
            hostname=hostname,
            stdin=self.stdin,
            write=self._write,
            tree=tree,
            size=lambda: (self.rows, self.cols),
        )
        self._log_path = log_path
        self._code = KILLED
        self.task: asyncio.Task[None] | None = None
        if log_path:
            with open(log_path, "ab"):
                pass

    def begin(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run())
        # a task that is cancelled before its first step never reaches its `finally`
        self.task.add_done_callback(self._make_sure)

    def _make_sure(self, _: asyncio.Task[None]) -> None:
        if not self.ended.done():
            self._finishing = asyncio.get_running_loop().create_task(self.finish(self._code))

    async def _run(self) -> None:
        code = KILLED
        try:
            code = await run_program(self.context)
        except asyncio.CancelledError:
            code = self._code
        finally:
            await self.finish(code)

    def kill(self, code: int = KILLED) -> None:
        self._code = code
        self.running.set()
        if self.task is not None:
            self.task.cancel()

    async def finish(self, code: int) -> None:
        for client in list(self.clients):
            await client.end()
        await self.stdin.end()
        if not self.ended.done():
            self.ended.set_result(code)

    async def _write(self, channel: Channel, data: bytes) -> None:
        await self.running.wait()
        if not data:
            return
        if self.process.tty:
            channel, data = Channel.STDOUT, data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if self._log_path:
            with open(self._log_path, "ab") as log:
                log.write(make_log_records(channel, data, time.time_ns()))
        for client in list(self.clients):
            await client.put(Chunk(channel, data))
        await asyncio.sleep(0)

    def attach(self) -> FakeStream:
        stream = FakeStream(self)
        self.clients.add(stream)
        return stream


def make_log_records(channel: Channel, data: bytes, time_ns: int) -> bytes:
    """CRI records, one per line, `P` for what does not end in a newline."""
    second = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    head = f"{second:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09}Z {channel.name.lower()}".encode()
    return b"".join(
        head + (b" F " if line.endswith(b"\n") else b" P ") + line.removesuffix(b"\n") + b"\n"
        for line in data.splitlines(keepends=True)
    )


class FakeExec:
    def __init__(self, job: Job, stream: FakeStream) -> None:
        self._job = job
        self.stream: Stream = stream
        self.pid = job.pid

    async def wait(self) -> int:
        return await asyncio.shield(self._job.ended)

    async def resize(self, rows: int, cols: int) -> None:
        self._job.rows, self._job.cols = rows, cols

    async def kill(self) -> None:
        self._job.kill()
