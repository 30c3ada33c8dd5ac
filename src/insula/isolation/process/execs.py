"""Further programs in a running container: `crun exec` as a child of ours, with its stdio in our hands.

Async.  conmon is not asked (its exec costs twice the time): when the daemon dies, the pipes of an exec break
and it ends as after a hang-up; a detached one has no pipes and goes on.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from insula.errors import InsulaError, RuntimeFailed
from insula.isolation.plan import ExecPlan
from insula.isolation.process import complaints
from insula.isolation.process.attach import DescriptorStream, settle
from insula.isolation.process.launcher import Launcher
from insula.isolation.process.runtimes import Runtime
from insula.model.stream import Channel, Chunk, Stream
from insula.system.pidfd import Watch, make_ordinary, spawn
from insula.system.run import fixed_environment

_CONSOLE_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlace:
    """Where an exec is started: `directory` is the instance's run directory, `lives` tells whether its
    first process does."""

    launcher: Launcher
    runtime: Runtime
    instance_id: str
    directory: str
    lives: Callable[[], bool]


class ProcessExec:
    """`stream` ends when the program has ended and its output is read."""

    def __init__(
        self, place: ExecPlace, plan: ExecPlan, watch: Watch, stream: DescriptorStream, *, stem: str
    ) -> None:
        self._place = place
        self._plan = plan
        self._watch = watch
        self._output = stream
        self._stem = stem
        self.stream: Stream = stream
        self._code: asyncio.Task[int] = asyncio.create_task(self._follow())

    @property
    def pid(self) -> int:
        """Of the program, as the host sees it; of the runtime while the program is not there yet."""
        pid = self._watch.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                children = file.read().split()
        except OSError:
            return pid
        return int(children[0]) if children else pid

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def resize(self, rows: int, cols: int) -> None:
        self._output.resize(rows, cols)
        if self._place.runtime.name == "runc":
            self._watch.signal(signal.SIGWINCH)  # it copies the size of our terminal to the one inside

    async def kill(self) -> None:
        if self._code.done():
            return
        pid = self.pid
        if pid == self._watch.pid:  # the program is not there yet
            self._watch.signal(signal.SIGKILL)
            return
        # its number is not given to another one while the runtime, its parent, has not been told of its end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def _follow(self) -> int:
        ended = await self._watch.wait()
        self._watch.close()
        code = 255 if ended is None else 128 - ended if ended < 0 else ended
        problem = _read_problem(self._stem, self._plan)
        _remove_files(self._stem)
        words = None
        unlucky = isinstance(problem, RuntimeFailed) or code == 255
        if unlucky and not self._place.lives():
            code = 128 + signal.SIGKILL  # the instance ended while the runtime was entering it
        elif problem is not None:
            code = problem.exit_code
            channel = Channel.STDOUT if self._plan.process.tty else Channel.STDERR
            words = Chunk(channel, f"OCI runtime exec failed: {problem.message}\n".encode())
        self._output.finish(words)
        return code


async def start_exec(place: ExecPlace, plan: ExecPlan, document: str) -> ProcessExec:
    """`document` is the OCI process.  Raises CommandNotFound and the like only as far as the runtime says so
    before the program runs; `prepare.check_program` has looked already."""
    stem = f"{place.directory}/exec-{secrets.token_hex(4)}"
    with open(f"{stem}.json", "w", encoding="utf-8") as file:
        file.write(document)
    argv = [place.runtime.program, *place.runtime.options(), f"--log={stem}.log", "--log-format=json"]
    argv += ["exec", "--process", f"{stem}.json"]
    try:
        if plan.process.tty and place.runtime.name == "runc":
            watch, stream = await _start_on_own_terminal(place, plan, argv)
        elif plan.process.tty:
            watch, stream = await _start_on_terminal(place, plan, argv, stem)
        else:
            watch, stream = await _start_on_pipes(place.launcher, [*argv, place.instance_id], plan)
    except BaseException:
        _remove_files(stem)
        raise
    return ProcessExec(place, plan, watch, stream, stem=stem)


async def _start_on_pipes(
    launcher: Launcher, argv: list[str], plan: ExecPlan
) -> tuple[Watch, DescriptorStream]:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    theirs: list[int] = [null]
    ours: list[int] = []

    def pipe(*, to_program: bool) -> int:
        reader, writer = os.pipe()
        theirs.append(reader if to_program else writer)
        ours.append(writer if to_program else reader)
        return theirs[-1]

    try:
        stdin = pipe(to_program=True) if plan.open_stdin else null
        stdin_end = ours[-1] if plan.open_stdin else -1
        if plan.detach:
            stdout = stderr = null
            outputs = (-1, -1)
        else:
            stdout, stderr = pipe(to_program=False), pipe(to_program=False)
            outputs = (ours[-2], ours[-1])
        pid = await launcher.run(
            lambda: spawn(argv, fixed_environment(), stdio=(stdin, stdout, stderr), new_session=True)
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    stream = DescriptorStream(stdin=stdin_end, stdout=outputs[0], stderr=outputs[1])
    return Watch(pid, child=True), stream


async def _start_on_terminal(
    place: ExecPlace, plan: ExecPlan, argv: list[str], stem: str
) -> tuple[Watch, DescriptorStream]:
    """The runtime makes the terminal in the container and sends its master through a socket of ours."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        )
        held = os.open(place.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, held)
        short = f"/proc/{os.getpid()}/fd/{held}/{os.path.basename(stem)}.tty"
        listener.bind(short)
        listener.listen(1)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        argv = [*argv, "--console-socket", short, "--tty", place.instance_id]
        # crun lets the program go and then sets the terminal's size (src/libcrun/container.c,
        # libcrun_container_exec): what it wakes must not take its CPU in between
        pid = await place.launcher.run(
            lambda: spawn(argv, fixed_environment(), stdio=(null, null, null), new_session=True, urgent=True)
        )
        watch = Watch(pid, child=True)
        accepting = asyncio.ensure_future(_accept_master(listener))
        ending = asyncio.ensure_future(watch.wait())
        try:
            await asyncio.wait(
                (accepting, ending), timeout=_CONSOLE_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not accepting.done():
                watch.signal(signal.SIGKILL)
                await ending
                watch.close()
                raise _read_problem(stem, plan) or RuntimeFailed("the runtime sent no terminal")
            master = accepting.result()
            make_ordinary(pid)  # it waits for the program now; until then nobody else reaps it
        finally:
            accepting.cancel()
            ending.cancel()
    stream = DescriptorStream(stdin=master, stdout=master, stderr=-1, tty=True)
    if plan.process.console_rows and plan.process.console_cols:
        stream.resize(plan.process.console_rows, plan.process.console_cols)
    return watch, stream


async def _start_on_own_terminal(
    place: ExecPlace, plan: ExecPlan, argv: list[str]
) -> tuple[Watch, DescriptorStream]:
    """For runc, which takes a console socket only when it need not wait for the program.  It copies between
    our terminal and the one that it makes inside."""
    master, slave = os.openpty()
    stream = DescriptorStream(stdin=master, stdout=master, stderr=-1, tty=True)
    try:
        stream.resize(plan.process.console_rows, plan.process.console_cols)
        argv = [*argv, "--tty", place.instance_id]
        pid = await place.launcher.run(
            lambda: spawn(argv, fixed_environment(), stdio=(slave, slave, slave), new_session=True)
        )
    except BaseException:
        stream.finish()
        await stream.close()
        raise
    finally:
        os.close(slave)
    return Watch(pid, child=True), stream


async def _accept_master(listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    with connection:
        while True:
            try:
                _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                ready: asyncio.Future[None] = loop.create_future()
                loop.add_reader(connection, settle, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(connection)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data[:4])[0]
    raise RuntimeFailed("the runtime sent no terminal")


def _read_problem(stem: str, plan: ExecPlan) -> InsulaError | None:
    """What the runtime logged: it could not start the program."""
    try:
        with open(f"{stem}.log", encoding="utf-8", errors="replace") as file:
            said = file.read(65536)
    except OSError:
        return None
    if not said.strip():
        return None
    return complaints.translate(said, plan.process.args[0], doing="run the program")


def _remove_files(stem: str) -> None:
    for suffix in ("json", "log", "tty"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{stem}.{suffix}")
