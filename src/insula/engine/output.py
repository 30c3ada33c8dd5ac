"""What an instance says, to whoever asks: attached to it, or reading its log.  Async.

The log is the one source of what was; the backend's live stream is for what comes from now on, and for input.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from insula.engine.attach import ChainedStream, FilteredStream, LoggedStream, PendingStream
from insula.engine.instances import RUNNING_STATES, Entry, Instances
from insula.engine.legality import Action, check, still_running
from insula.engine.logs import await_output, read_batches
from insula.engine.rotation import Rotation
from insula.engine.types import LogBatch, LogQuery, LogRecord
from insula.errors import NotImplementedYet
from insula.model.isolation import output_delay_s
from insula.model.stream import Stream

if TYPE_CHECKING:
    from insula.engine.kit import Kit

_TICK_NS = 10_000_000  # how far a file's time may be behind


class Output:
    def __init__(self, kit: Kit, instances: Instances, rotation: Rotation) -> None:
        self._kit = kit
        self._instances = instances
        self._rotation = rotation

    async def attach(
        self, ref: str, *, stdin: bool, stdout: bool, stderr: bool, logs: bool, stream: bool
    ) -> Stream:
        """`logs`: with what was said before; `stream`: with what comes.  Legal before start: it connects when
        the instance is launched.  Raises NoSuchInstance, Conflict."""
        entry = self._instances.find(ref)
        check(Action.ATTACH, entry.record, ref)
        inner = await self._attach(entry, logs=logs, stream=stream)
        self._instances.event(entry, "attach")
        return FilteredStream(inner, stdin=stdin, stdout=stdout, stderr=stderr)

    async def _attach(self, entry: Entry, *, logs: bool, stream: bool) -> Stream:
        backend = self._kit.backend(entry.record.spec.isolation)
        logged = logs and entry.record.spec.log.driver != "none"
        if entry.alive:
            with still_running(entry):
                live = await backend.attach(entry.id) if stream else None
            if logged or live is None:
                return LoggedStream(self._pieces(entry, follow=stream, wanted=logged), live)
            return live
        if not stream:
            return LoggedStream(self._pieces(entry, follow=False, wanted=logged), None)
        pending = PendingStream(lambda gone: entry.pending.remove(gone) if gone in entry.pending else None)
        entry.pending.append(pending)
        return ChainedStream(self._pieces(entry, follow=False, wanted=True), pending) if logged else pending

    async def _pieces(self, entry: Entry, *, follow: bool, wanted: bool) -> AsyncIterator[LogRecord]:
        """The log as it was written, not joined to lines."""
        query = LogQuery(follow=follow, tail=None if wanted else 0)
        async with contextlib.aclosing(self._read(entry, query, join=False)) as batches:
            async for batch in batches:
                for record in batch.records:
                    yield record

    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogBatch]:
        """Raises NoSuchInstance, NotImplementedYet (no log is kept) at once."""
        entry = self._instances.find(ref)
        if entry.record.spec.log.driver == "none":
            raise NotImplementedYet("configured logging driver does not support reading")
        return self._read_settled(entry, query)

    async def _read_settled(self, entry: Entry, query: LogQuery) -> AsyncIterator[LogBatch]:
        """Who asks right after the start finds what the workload has said by then, in either isolation."""
        delay_s = output_delay_s(entry.record.spec.isolation)
        until_ns = entry.run.since_ns + int(delay_s * 1e9) if entry.run is not None else 0
        if not query.follow and entry.alive and time.time_ns() < until_ns:
            await await_output(
                self._kit.log_path(entry.id),
                self._kit.growth,
                since_ns=entry.record.started_ns - _TICK_NS,
                until_ns=until_ns,
                ended=lambda: _silent(entry),
            )
        async with contextlib.aclosing(self._read(entry, query, join=True)) as batches:
            async for batch in batches:
                yield batch

    async def _read(self, entry: Entry, query: LogQuery, *, join: bool) -> AsyncGenerator[LogBatch, None]:
        batches = read_batches(
            self._kit.log_path(entry.id),
            query,
            growth=self._kit.growth,
            ended=lambda: _silent(entry),
            join=join,
        )
        try:
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    yield batch
        finally:
            if query.follow:
                await self._rotation.settle(entry)

    async def resize(self, ref: str, rows: int, cols: int) -> None:
        """Of its terminal.  Raises NoSuchInstance, Conflict."""
        entry = self._instances.find(ref)
        check(Action.RESIZE, entry.record, ref)
        with still_running(entry):
            await self._kit.backend(entry.record.spec.isolation).resize(entry.id, rows, cols)
        self._instances.event(entry, "resize", height=str(rows), width=str(cols))


def _silent(entry: Entry) -> bool:
    """Nothing will be written to its log any more (unless it is started again)."""
    return entry.removed or entry.record.state not in RUNNING_STATES
