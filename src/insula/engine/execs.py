"""Further programs in a running instance: created, started once, remembered for a while.  Async."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from insula.engine.attach import FilteredStream
from insula.engine.health import MOST_OUTPUT
from insula.engine.instances import Entry, Instances, Run
from insula.engine.legality import Action, check, still_running
from insula.engine.links import Links
from insula.engine.merge import process_env, replace_env
from insula.engine.types import ExecSpec, ExecView
from insula.errors import (
    Conflict,
    ExecStarted,
    InsulaError,
    InvalidRequest,
    NoSuchExec,
)
from insula.isolation.backend import Exec
from insula.isolation.plan import ExecPlan, Process
from insula.model.ids import make_id
from insula.model.stream import Chunk, Stream

if TYPE_CHECKING:
    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

_CANNOT_START = 126  # whatever the reason: Docker tells them apart since 28 (moby/moby#48552)
_REMEMBERED = 64
_BROKEN = 137
_KILLED_S = 10.0
_LAST_WORDS_S = 1.0


@dataclass(slots=True, eq=False)
class ExecEntry:
    id: str
    owner: Entry
    spec: ExecSpec
    run: Run | None  # of its owner, when it was made
    running: Exec | None = None
    started: bool = False
    exit_code: int | None = None
    watcher: asyncio.Task[None] | None = None

    def view(self) -> ExecView:
        return ExecView(
            id=self.id,
            instance_id=self.owner.id,
            spec=self.spec,
            running=self.running is not None and self.exit_code is None,
            exit_code=self.exit_code,
            pid=self.running.pid if self.running is not None else 0,
            user=self.spec.user or self.owner.config.user,
        )


class Execs:
    def __init__(self, kit: Kit, instances: Instances, links: Links) -> None:
        self._kit = kit
        self._links = links
        self._instances = instances
        self._all: dict[str, ExecEntry] = {}

    def find(self, exec_id: str) -> ExecEntry:
        """By id or a unique prefix of it.  Raises NoSuchExec, also for one that was never started before its
        instance's run ended, as Docker."""
        matches = [self._all[exec_id]] if exec_id in self._all else []
        if not matches and exec_id:
            matches = [found for known, found in self._all.items() if known.startswith(exec_id)]
        if len(matches) != 1 or (not matches[0].started and matches[0].run is not matches[0].owner.run):
            raise NoSuchExec(exec_id)
        return matches[0]

    def create(self, ref: str, spec: ExecSpec) -> str:
        entry = self._instances.find(ref)
        check(Action.EXEC, entry.record, ref)
        if not spec.args:
            raise InvalidRequest("No exec command specified")
        made = ExecEntry(make_id(), entry, spec, entry.run)
        self._forget_oldest(entry)
        self._all[made.id] = entry.execs[made.id] = made
        self._instances.event(entry, f"exec_create: {_shown(spec)}", execID=made.id)
        return made.id

    async def start(
        self, exec_id: str, *, detach: bool, tty: bool, console_rows: int = 0, console_cols: int = 0
    ) -> Stream | None:
        made = self.find(exec_id)
        entry = made.owner
        if made.exit_code is not None:
            raise ExecStarted(made.id, "has already run")
        if made.started:
            raise ExecStarted(made.id, "is already running")
        check(Action.EXEC, entry.record, entry.id)
        made.started = True
        spec = made.spec
        if tty and not spec.tty:
            spec = dataclasses.replace(spec, tty=True)
        plan = self._plan(made, spec, detach=detach, rows=console_rows, cols=console_cols)
        self._instances.event(entry, f"exec_start: {_shown(spec)}", execID=made.id)
        try:
            with still_running(entry):
                running = await self._kit.backend(entry.record.spec.isolation).exec(entry.id, plan)
        except BaseException:
            made.exit_code = _CANNOT_START
            raise
        made.running = running
        made.watcher = asyncio.create_task(self._watch(made, running), name=f"exec {made.id}")
        if detach:
            drain = asyncio.create_task(_drain(running.stream), name=f"exec output {made.id}")
            drain.add_done_callback(_swallow)
            return None
        return _ExecStream(
            FilteredStream(
                running.stream,
                stdin=spec.attach_stdin,
                stdout=spec.attach_stdout,
                stderr=spec.attach_stderr,
            ),
            made.watcher,
        )

    async def probe(
        self, entry: Entry, args: tuple[str, ...], *, timeout_s: float
    ) -> tuple[int | None, bytes]:
        """Run a health check's program: exit code and the beginning of its output, both channels together.

        Code None: it took longer than `timeout_s` from its start on, and was killed.  So is one that this
        is cancelled in.  Raises what `start` does.
        """
        exec_id = self.create(entry.id, ExecSpec(args=args, attach_stdout=True, attach_stderr=True))
        made = self._all[exec_id]
        output = bytearray()
        starting = asyncio.ensure_future(self.start(exec_id, detach=False, tty=False))
        stream: Stream | None = None
        try:
            try:
                stream = await asyncio.shield(starting)
            finally:
                await asyncio.wait([starting])  # one half started would be nobody's
            assert stream is not None
            async with asyncio.timeout(timeout_s):
                while (chunk := await stream.read()) is not None:
                    output += chunk.data[: MOST_OUTPUT + 1 - len(output)]
            return made.exit_code, bytes(output)
        except TimeoutError:
            await self._kill(made)
            if stream is not None:
                await _read_rest(stream, output)
            return None, bytes(output)
        finally:
            await self._put_down(made)
            entry.execs.pop(exec_id, None)
            self._all.pop(exec_id, None)

    async def _put_down(self, made: ExecEntry) -> None:
        """Kill it unless it has ended, and see its end."""
        await self._kill(made)
        if made.running is not None:
            await made.running.stream.close()

    async def _kill(self, made: ExecEntry) -> None:
        if made.running is None or made.watcher is None or made.exit_code is not None:
            return
        with contextlib.suppress(InsulaError):  # it has just ended, alone or with its instance
            await made.running.kill()
            await asyncio.wait([made.watcher], timeout=_KILLED_S)

    async def resize(self, exec_id: str, rows: int, cols: int) -> None:
        made = self.find(exec_id)
        if made.running is None or made.exit_code is not None:
            raise Conflict(f"exec {made.id} is not running")
        await made.running.resize(rows, cols)

    def forget(self, entry: Entry) -> None:
        """The instance is no more."""
        for exec_id in entry.execs:
            self._all.pop(exec_id, None)
        entry.execs.clear()

    def close(self) -> None:
        """The daemon ends: nobody watches any more, the programs go on."""
        for made in self._all.values():
            if made.watcher is not None:
                made.watcher.cancel()

    def _plan(self, made: ExecEntry, spec: ExecSpec, *, detach: bool, rows: int, cols: int) -> ExecPlan:
        entry = made.owner
        config = entry.config
        env = process_env(config.env, config.hostname, tty=spec.tty, linked=self._links.environment(entry))
        return ExecPlan(
            id=made.id,
            process=Process(
                args=spec.args,
                env=replace_env(env, spec.env),
                cwd=spec.cwd or config.working_dir or "/",
                user=spec.user or config.user,
                groups=entry.record.spec.groups,
                tty=spec.tty,
                console_rows=rows or spec.console_rows,
                console_cols=cols or spec.console_cols,
            ),
            privileged=spec.privileged,
            open_stdin=spec.open_stdin or spec.attach_stdin,
            detach=detach,
        )

    async def _watch(self, made: ExecEntry, running: Exec) -> None:
        try:
            made.exit_code = await running.wait()
        except InsulaError as error:
            if made.owner.alive:  # otherwise it fell together with its instance
                log.error("exec %s: %s", made.id, error)
            made.exit_code = _BROKEN
        self._instances.event(made.owner, "exec_die", execID=made.id, exitCode=str(made.exit_code))

    def _forget_oldest(self, entry: Entry) -> None:
        ended = [made for made in entry.execs.values() if made.exit_code is not None]
        for made in ended[: max(0, len(ended) - _REMEMBERED)]:
            del entry.execs[made.id]
            self._all.pop(made.id, None)


class _ExecStream:
    """Its end comes after the exit code is known: clients ask for it as soon as they see the end."""

    def __init__(self, inner: Stream, watcher: asyncio.Task[None]) -> None:
        self._inner = inner
        self._watcher = watcher

    async def read(self) -> Chunk | None:
        chunk = await self._inner.read()
        if chunk is None:
            await asyncio.wait([self._watcher])
        return chunk

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)

    async def close_stdin(self) -> None:
        await self._inner.close_stdin()

    async def close(self) -> None:
        await self._inner.close()


def _shown(spec: ExecSpec) -> str:
    return " ".join(spec.args)


async def _drain(stream: Stream) -> None:
    try:
        while await stream.read() is not None:
            pass
    finally:
        await stream.close()


def _swallow(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


async def _read_rest(stream: Stream, output: bytearray) -> None:
    """What a program had written when it was killed.  What it has left in the background may write on."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            while (chunk := await stream.read()) is not None:
                output += chunk.data[: MOST_OUTPUT + 1 - len(output)]
