"""Work that several ask for at once and that is done once: one layer wanted by two pulls.  Async."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from insula.model.progress import Progress

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Job(Generic[_T]):
    task: asyncio.Task[_T]
    listeners: list[Progress] = field(default_factory=list)
    last: tuple[str, str, int, int] | None = None

    def tell(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        self.last = (status, id, current, total)
        for listener in self.listeners:
            listener(status, id=id, current=current, total=total)


class SharedWork(Generic[_T]):
    """At most one task per key; whoever comes later waits for it and hears of its progress.  It is cancelled
    when nobody waits any more."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, _Job[_T]] = {}

    async def run(self, key: Hashable, work: Callable[[Progress], Awaitable[_T]], progress: Progress) -> _T:
        job = self._jobs.get(key)
        if job is None:
            job = self._start(key, work)
        elif job.last is not None:
            status, about, current, total = job.last
            progress(status, id=about, current=current, total=total)
        job.listeners.append(progress)
        try:
            return await asyncio.shield(job.task)
        finally:
            job.listeners.remove(progress)
            if not job.listeners and not job.task.done():
                self._jobs.pop(key, None)
                job.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([job.task])

    def _start(self, key: Hashable, work: Callable[[Progress], Awaitable[_T]]) -> _Job[_T]:
        job: _Job[_T]

        async def run() -> _T:
            return await work(job.tell)

        job = _Job(asyncio.create_task(run()))
        self._jobs[key] = job

        def ended(task: asyncio.Task[_T]) -> None:
            if self._jobs.get(key) is job:
                del self._jobs[key]
            if not task.cancelled():
                task.exception()  # each waiter raises it; with none left nobody needs it

        job.task.add_done_callback(ended)
        return job
