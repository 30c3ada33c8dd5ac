"""One named action per instance at a time, with an undo stack.  Async.

Waiting for a workload to end is never done inside: a stop that waits ten seconds must not keep a kill out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from insula.engine.instances import Entry
from insula.errors import NoSuchInstance

if TYPE_CHECKING:
    from insula.store.store import Store

A = TypeVar("A")
B = TypeVar("B")


@contextlib.asynccontextmanager
async def exclusive(entry: Entry, name: str) -> AsyncIterator[AsyncExitStack]:
    """Hold the instance for the action `name`.

    What the action acquires it pushes on the stack: released in reverse when the body raises, kept
    when it does not.  Raises NoSuchInstance when the instance was removed while this waited.
    """
    async with entry.lock:
        if entry.removed:
            raise NoSuchInstance(entry.id)
        entry.holder = name
        try:
            async with AsyncExitStack() as undo:
                yield undo
                undo.pop_all()
        finally:
            entry.holder = ""


async def begun(entry: Entry) -> None:
    """While it is being started, wait until that is over: what it says first can be read before it counts as
    running, in a virtual machine long before, and whoever has read it may come at once."""
    if entry.holder == "start" and not entry.alive:
        async with entry.lock:
            pass


async def uncut(work: Coroutine[Any, Any, A]) -> A:
    """`work` to its end, also when whoever waits for it is cancelled meanwhile; the cancellation follows.

    For giving back what others may want to take at once: half given back is neither.
    """
    task = asyncio.ensure_future(work)
    cut = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cut = error
    if cut is not None:
        task.exception()  # the cancellation counts more
        raise cut
    return task.result()


class Journal:
    """A line in the store while something is half done, so that a crash in the middle can be repaired."""

    def __init__(self, store: Store, instance_id: str, kind: str, detail: str = "") -> None:
        self._store = store
        self._number = store.begin_operation(instance_id, kind, detail)

    def end(self) -> None:
        """Completed, or undone."""
        self._store.end_operation(self._number)


async def together(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Both at once; when one raises the other is cancelled and its end awaited before the error goes on.

    As asyncio.TaskGroup, with the error itself instead of a group of one.
    """
    tasks = (asyncio.ensure_future(first), asyncio.ensure_future(second))
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
