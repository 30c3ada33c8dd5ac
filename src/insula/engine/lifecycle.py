"""Starting, watching and ending a workload.  Async.

A start acquires in order (root, network, files, processes) and gives back in reverse when a step fails;
an end gives everything back, tells who waits, and decides what comes next.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from insula.engine.health import at_start
from insula.engine.instances import Entry, Instances, Run
from insula.engine.journal import JournalFeed
from insula.engine.legality import Action, check
from insula.engine.mounting import Mounting
from insula.engine.operations import Journal, exclusive
from insula.engine.preparation import Preparation
from insula.engine.probing import Probing
from insula.engine.restarts import decide_restart
from insula.engine.rotation import Rotation
from insula.errors import CommandNotExecutable, CommandNotFound, InsulaError, NoSuchInstance
from insula.isolation.backend import Backend, Captured, Copier, TemplateKeeper
from insula.isolation.plan import LaunchPlan
from insula.model.instance import ExitStatus, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

UNKNOWN_EXIT = 255
_START_FAILED = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A start that goes on with a captured workload instead of beginning one.  `how` is for inspect; `before`
    puts its disks in place."""

    captured: Captured
    how: str
    before: Callable[[contextlib.AsyncExitStack], Awaitable[None]] | None = None


class Lifecycle:
    def __init__(
        self,
        kit: Kit,
        instances: Instances,
        mounting: Mounting,
        preparation: Preparation,
        *,
        probing: Probing,
        rotation: Rotation,
        journal: JournalFeed,
        auto_remove: Callable[[Entry], Coroutine[Any, Any, None]],
    ) -> None:
        self._kit = kit
        self._instances = instances
        self._mounting = mounting
        self._preparation = preparation
        self._probing = probing
        self._rotation = rotation
        self._journal = journal
        self._auto_remove = auto_remove
        self._tasks: set[asyncio.Task[None]] = set()

    # starting

    async def start(
        self,
        entry: Entry,
        ref: str,
        *,
        by_policy: bool = False,
        continuation: Continuation | None = None,
    ) -> None:
        """Run it.  Raises what legality says, and whatever kept it from running; the record then has the
        reason and Docker's exit code (127, 126, 128)."""
        try:
            async with exclusive(entry, "start") as undo:
                if by_policy:
                    if entry.record.state is not State.RESTARTING:
                        return  # stopped or removed while it waited
                else:
                    check(Action.START, entry.record, ref)
                    entry.backoff_ms = 0
                entry.no_restart = False
                before = State.EXITED if by_policy else entry.record.state
                undo.push(
                    lambda kind, error, trace: self._note_failure(entry, before, error, by_policy=by_policy)
                )
                await self._launch(entry, undo, by_policy=by_policy, continuation=continuation)
            await self._preparation.links.follow(entry, self._preparation)
        except BaseException:
            if entry.record.spec.auto_remove and not entry.removed:
                self._spawn(self._auto_remove(entry), f"remove {entry.id}")
            raise

    async def _launch(
        self,
        entry: Entry,
        undo: contextlib.AsyncExitStack,
        *,
        by_policy: bool,
        continuation: Continuation | None,
    ) -> None:
        kit = self._kit
        backend = kit.backend(entry.record.spec.isolation)
        self._journal.check(entry)
        entry.oom_early = False
        if continuation is not None and continuation.before is not None:
            await continuation.before(undo)
        plan = await self._preparation.prepare(entry, undo)
        if continuation is not None:
            plan = dataclasses.replace(plan, machine=continuation.captured.machine)
        with kit.store.transaction():  # what was made before needs no line: nothing of it runs
            journal = Journal(kit.store, entry.id, "start")
            self._instances.put_plan(entry, plan)
        undo.callback(journal.end)
        undo.push_async_callback(backend.discard, plan)
        if continuation is None:
            pid = await backend.launch(plan)
        else:
            assert isinstance(backend, Copier)
            pid = await backend.launch_copy(plan, continuation.captured, continuation.how)
        await _connect_pending(entry, backend)
        started_ns = time.time_ns()
        await backend.release(entry.id)
        await _connect_pending(entry, backend)
        with kit.store.transaction():
            self._instances.put(
                entry,
                state=State.RUNNING,
                pid=pid,
                started_ns=started_ns,
                finished_ns=0 if entry.record.started_ns == 0 else entry.record.finished_ns,
                exit_code=0,
                oom_killed=False,
                error="",
                stopped_by_user=False,
                health=at_start(entry.config.health, entry.record.health),
                restart_count=entry.record.restart_count if by_policy else 0,
                origin=dict(backend.origin(entry.id)) if isinstance(backend, TemplateKeeper) else {},
            )
            journal.end()
        self._instances.event(entry, "start")
        self.watch(entry)
        if entry.oom_early:
            self.note_oom(entry.id)

    def _note_failure(
        self, entry: Entry, state: State, error: BaseException | None, *, by_policy: bool
    ) -> None:
        """Everything is undone by now; keep the reason.  Who waits for the next exit waits on, as in Docker:
        nothing has run.  One that its policy cannot start again has ended for good."""
        if error is None:
            return
        end_pending(entry)
        code = _START_FAILED
        if isinstance(error, CommandNotFound | CommandNotExecutable):
            code = error.exit_code
        reason = str(error) or type(error).__name__
        self._instances.put(entry, state=state, pid=0, exit_code=code, error=reason)
        if by_policy:
            self._instances.wake(entry)

    def note_oom(self, instance_id: str) -> None:
        """Something in it was killed for want of memory, or would have been."""
        entry = self._instances.get(instance_id)
        if entry is None or not entry.alive:  # one that has just ended says so itself
            if entry is not None:
                entry.oom_early = True
            return
        if not entry.record.oom_killed:
            self._put_end(entry, oom_killed=True)
        self._instances.event(entry, "oom")

    # watching

    def watch(self, entry: Entry) -> Run:
        """Follow a workload that runs until it has ended and everything about that is done."""
        run = Run()
        entry.run = run
        run.watcher = self._spawn(self._watch(entry, run), f"watch {entry.id}")
        self._probing.watch(entry)
        self._rotation.watch(entry)
        self._journal.watch(entry)
        return run

    async def _watch(self, entry: Entry, run: Run) -> None:
        backend = self._kit.backend(entry.record.spec.isolation)
        try:
            status = await backend.wait(entry.id)
        except (InsulaError, OSError) as error:
            log.error("instance %s: its end cannot be known: %s", entry.id, error)
            status = ExitStatus(code=UNKNOWN_EXIT, finished_at_ns=time.time_ns(), error=str(error))
        await self.ended(entry, run, status)

    async def ended(self, entry: Entry, run: Run, status: ExitStatus) -> None:
        """The workload is no more: give back, record, tell, and restart or remove as asked for."""
        async with exclusive(entry, "end"):
            record = entry.record
            problems = await self._give_back(entry, entry.plan)
            await self._journal.finish(entry)
            await self._rotation.finish(entry)
            told_of_oom = entry.record.oom_killed
            ran_ns = max(0, status.finished_at_ns - entry.record.started_ns)
            decision = decide_restart(
                record.spec.restart,
                exit_code=status.code,
                stopped=entry.no_restart or entry.keep_on_exit or entry.record.stopped_by_user,
                ran_ns=ran_ns,
                backoff_ms=entry.backoff_ms,
                restarts=entry.record.restart_count,
            )
            self._put_end(
                entry,
                state=State.RESTARTING if decision.restart else State.EXITED,
                pid=0,
                exit_code=status.code,
                oom_killed=status.oom_killed or told_of_oom,
                error="; ".join(filter(None, (status.error, *problems))),
                finished_ns=status.finished_at_ns,
                health=self._probing.stop(entry),
                restart_count=entry.record.restart_count + (1 if decision.restart else 0),
            )
            entry.run = None
            if status.oom_killed and not told_of_oom:
                self._instances.event(entry, "oom")
            self._instances.event(entry, "die", exitCode=str(status.code), execDuration=str(ran_ns // 10**9))
            if decision.restart:
                self.restart_later(entry, decision.backoff_ms)
            else:
                self._kit.growth.poke(self._kit.log_path(entry.id))
        remove = record.spec.auto_remove and not decision.restart and not entry.keep_on_exit
        self._instances.wake(entry)
        run.over.set()
        if remove:
            await self._auto_remove(entry)

    def _put_end(self, entry: Entry, **changes: Any) -> None:
        """It has happened whether or not that can be written down; a later daemon finds no exit code then."""
        try:
            self._instances.put(entry, **changes)
        except InsulaError as error:
            log.error("instance %s: what became of it cannot be recorded: %s", entry.id, error)
            entry.record = dataclasses.replace(entry.record, **changes)

    async def _give_back(self, entry: Entry, plan: LaunchPlan | None) -> list[str]:
        """Processes, network and mounts; sentences about what could not be given back."""
        if plan is None:
            return []
        backend = self._kit.backend(plan.isolation)
        results: list[object] = list(
            await asyncio.gather(
                backend.discard(plan), self._kit.networks.disconnect(entry.id), return_exceptions=True
            )
        )
        for drop in (self._mounting.drop, self._mounting.volumes.drop):
            try:  # after the processes: they keep root and volumes busy
                await drop(entry)
            except (InsulaError, OSError) as error:
                results.append(error)
        problems: list[str] = []
        for result in results:
            if isinstance(result, InsulaError | OSError):
                log.error("instance %s: cleaning up after its end: %s", entry.id, result)
                problems.append(f"cleaning up: {result}")
            elif isinstance(result, BaseException):
                raise result
        return problems

    # restarting by policy

    def restart_later(self, entry: Entry, backoff_ms: int) -> None:
        entry.backoff_ms = backoff_ms

        async def restart() -> None:
            await asyncio.sleep(backoff_ms / 1000)
            entry.restart_timer = None
            await self._preparation.links.await_restarts(entry)
            try:
                await self.start(entry, entry.id, by_policy=True)
            except NoSuchInstance:
                return
            except InsulaError as error:
                log.error("instance %s: its restart policy could not start it: %s", entry.id, error)
                self._kit.growth.poke(self._kit.log_path(entry.id))

        entry.restart_timer = self._spawn(restart(), f"restart {entry.id}")

    def cancel_restart(self, entry: Entry) -> None:
        if entry.restart_timer is not None:
            entry.restart_timer.cancel()
            entry.restart_timer = None

    # life of this object

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", task.get_name(), error, exc_info=error)

    async def close(self) -> None:
        """The daemon ends: nobody watches any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _connect_pending(entry: Entry, backend: Backend) -> None:
    while entry.pending:
        await entry.pending.pop(0).connect(lambda: backend.attach(entry.id))


def end_pending(entry: Entry) -> None:
    """Who attached before there was a workload will not see one."""
    while entry.pending:
        entry.pending.pop(0).end()
