"""Our own modules as child processes: how they are started, fed, and how they tell what happened.

A child gets its request as one JSON argument and its data on stdin or on descriptors passed to it.  It
answers on stdout in frames (one letter, four bytes of length, payload): `D` data, `Z` so many bytes of zeros,
`P` progress (a number), `R` its result as JSON, `E` an error, raised again in the parent as the same class.
`serve` is the child's side, synchronous and light to import; `start_child` and `run_child` are the parent's,
async.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import insula
from insula import errors
from insula.system.sparse import PIECE, is_nothing, zeros

if TYPE_CHECKING:
    import asyncio

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(insula.__file__)))
_RAISED_AGAIN = {
    kind.__name__: kind
    for kind in (
        errors.CorruptData,
        errors.DiskFull,
        errors.InvalidRequest,
        errors.NotFound,
        errors.Unavailable,
    )
}
_HEAD = struct.Struct(">cI")
_PIECE, _LARGE = 1 << 19, 1 << 17
_MOST_ZEROS = 1 << 24  # in one frame
_END_S = 2.0
_MAX_FRAME = 256 << 20  # a result may carry many names


def child_argv(module: str, request: object) -> list[str]:
    """To run `module.main(request, reply)` in a fresh interpreter: isolated, no site, our own path only."""
    paths = [_PACKAGE_ROOT, *(p for p in sys.path if p.endswith("-packages") and p != _PACKAGE_ROOT)]
    code = (
        f"import sys; sys.path += {paths!r}; "
        f"from insula.system.child import serve; from {module} import main; serve(main)"
    )
    return [sys.executable, "-I", "-S", "-c", code, json.dumps(request)]


class Reply:
    """The child's end: its stdout, moved away so that nothing else writes there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def _send(self, kind: bytes, payload: bytes) -> None:
        head = _HEAD.pack(kind, len(payload))
        sent = os.writev(self._fd, (head, payload))
        rest = (
            memoryview(head[sent:] + payload) if sent < len(head) else memoryview(payload)[sent - len(head) :]
        )
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def data(self, piece: bytes) -> None:
        self._send(b"D", piece)

    def zeros(self, count: int) -> None:
        self._send(b"Z", b"%d" % count)

    def progress(self, current: int) -> None:
        self._send(b"P", b"%d" % current)

    def result(self, result: dict[str, Any]) -> None:
        self._send(b"R", json.dumps(result).encode())

    def error(self, kind: str, message: str, hint: str | None = None) -> None:
        self._send(b"E", json.dumps({"kind": kind, "message": message, "hint": hint}).encode())


class Pieces:
    """Data that comes in bits, sent some hundred KiB at a time; `flush` sends what is left."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._held = bytearray()
        self._zeros = 0  # after what is held

    def put(self, data: bytes) -> None:
        if _LARGE <= len(data) <= PIECE and is_nothing(data):
            self._zeros += len(data)
            if self._zeros >= _MOST_ZEROS - PIECE:
                self.flush()
            return
        if self._zeros or len(data) >= _LARGE:
            self.flush()
        if len(data) >= _LARGE:  # not copied once more
            self._reply.data(data)
            return
        self._held += data
        if len(self._held) >= _PIECE:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._reply.data(bytes(self._held))
            self._held.clear()
        if self._zeros:
            self._reply.zeros(self._zeros)
            self._zeros = 0


def serve(main: Callable[[Any, Reply], dict[str, Any]]) -> None:
    """Run in the child: `main`, its result or its error, and the end."""
    reply = Reply(os.dup(1))
    os.dup2(2, 1)
    status = 1
    try:
        reply.result(main(json.loads(sys.argv[1]), reply))
        status = 0
    except errors.InsulaError as error:
        kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _RAISED_AGAIN), "Failure")
        reply.error(kind, error.message, error.hint)
    except MemoryError:
        reply.error("CorruptData", "the archive wants too much memory")
    except BrokenPipeError:  # the parent has gone, or does not want more
        pass
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__, limit=-1)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        reply.error("Failure", f"{type(error).__name__} at {where}: {error}")
    finally:
        os._exit(status)


class Child:
    """A running child, in its parent.  `result` is set when `frames` has ended."""

    def __init__(self, process: asyncio.subprocess.Process, module: str, stderr: int) -> None:
        self.process = process
        self.result: dict[str, Any] | None = None
        self._module = module
        self._stderr = stderr

    async def frames(self, on_progress: Callable[[int], None] | None = None) -> AsyncIterator[bytes]:
        """The data that the child sends, until its result.  Raises what the child raised."""
        import asyncio

        assert self.process.stdout is not None
        while self.result is None:
            try:
                kind, length = _HEAD.unpack(await self.process.stdout.readexactly(_HEAD.size))
                if length > _MAX_FRAME:
                    raise errors.Failure(f"the child process {self._module} answered nonsense")
                payload = await self.process.stdout.readexactly(length)
            except asyncio.IncompleteReadError:
                status = await self.process.wait()
                end = os.pread(self._stderr, 2000, max(0, os.fstat(self._stderr).st_size - 2000))
                raise errors.Failure(
                    f"the child process {self._module} ended with {status} before it had answered: "
                    + end.decode(errors="replace").strip()
                ) from None
            if kind == b"D":
                yield payload
            elif kind == b"Z":
                left = int(payload)
                if left > _MOST_ZEROS:
                    raise errors.Failure(f"the child process {self._module} answered nonsense")
                while left > 0:
                    yield zeros() if left >= PIECE else bytes(left)
                    left -= PIECE
            elif kind == b"P":
                if on_progress is not None:
                    on_progress(int(payload))
            elif kind == b"R":
                self.result = json.loads(payload)
            else:
                error = json.loads(payload)
                raise _RAISED_AGAIN.get(error["kind"], errors.Failure)(error["message"], hint=error["hint"])

    async def feed(self, data: AsyncIterator[bytes]) -> None:
        """`data` to its stdin, then the end.  A child that stops reading has said why, or will."""
        assert self.process.stdin is not None
        async for piece in data:
            try:
                self.process.stdin.write(piece)
                await self.process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                break
        self.process.stdin.close()


@contextlib.asynccontextmanager
async def start_child(
    module: str, request: object, *, stdin: int | None = None, pass_fds: Sequence[int] = ()
) -> AsyncIterator[Child]:
    """Killed and waited for when the context is left.  `stdin`: a descriptor, or asyncio.subprocess.PIPE."""
    import asyncio

    from insula.system.run import fixed_environment

    stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        process = await asyncio.create_subprocess_exec(
            *child_argv(module, request),
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=fixed_environment(),
            pass_fds=tuple(pass_fds),
            limit=1 << 20,
        )
        child = Child(process, module, stderr)
        try:
            yield child
        finally:
            if child.result is not None:  # it is about to end by itself
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_S):
                        await process.wait()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.shield(process.wait())
    finally:
        os.close(stderr)


async def run_child(
    module: str,
    request: object,
    *,
    stdin: int | AsyncIterator[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run to the end; its result.  `stdin` may be a stream: what that raises ends the child and is raised."""
    import asyncio

    streamed = stdin is not None and not isinstance(stdin, int)
    async with start_child(
        module,
        request,
        stdin=asyncio.subprocess.PIPE if streamed else stdin,  # type: ignore[arg-type]
        pass_fds=pass_fds,
    ) as child:
        feeding = asyncio.create_task(child.feed(stdin)) if streamed else None  # type: ignore[arg-type]
        reading = asyncio.create_task(_last(child, on_progress))
        try:
            if feeding is not None:
                await asyncio.wait({feeding, reading}, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done() and not reading.done():
                    feeding.result()
            return await reading
        finally:
            for task in (feeding, reading):
                if task is not None and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task


async def _last(child: Child, on_progress: Callable[[int], None] | None) -> dict[str, Any]:
    async for _ in child.frames(on_progress):
        pass
    assert child.result is not None
    return child.result
