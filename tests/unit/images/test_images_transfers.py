"""Work shared by several: done once, told to all, cancelled when nobody waits."""

from __future__ import annotations

import asyncio

import pytest

from insula.errors import CorruptData
from insula.images.transfers import SharedWork
from insula.model.progress import Progress, no_progress


async def test_two_waiters_one_run_and_both_hear() -> None:
    shared: SharedWork[int] = SharedWork()
    runs, begun, go = 0, asyncio.Event(), asyncio.Event()

    async def work(tell: Progress) -> int:
        nonlocal runs
        runs += 1
        tell("Downloading", id="x", current=1, total=2)
        await go.wait()
        tell("Done", id="x")
        return 7

    heard: list[list[str]] = [[], []]

    def listener(number: int) -> Progress:
        def told(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
            heard[number].append(status)
            begun.set()
            if len(heard[1]) == 1:
                go.set()

        return told

    first = asyncio.create_task(shared.run("k", work, listener(0)))
    await begun.wait()
    assert await shared.run("k", work, listener(1)) == 7
    assert await first == 7
    assert runs == 1
    assert heard == [["Downloading", "Done"], ["Downloading", "Done"]]


async def test_failure_reaches_every_waiter_and_the_next_starts_anew() -> None:
    shared: SharedWork[int] = SharedWork()
    fails = True

    async def work(tell: Progress) -> int:
        await asyncio.sleep(0)
        if fails:
            raise CorruptData("bad")
        return 1

    both = await asyncio.gather(
        *(shared.run("k", work, no_progress) for _ in range(2)), return_exceptions=True
    )
    assert [str(error) for error in both] == ["bad", "bad"]
    fails = False
    assert await shared.run("k", work, no_progress) == 1


async def test_one_leaving_does_not_stop_it_the_last_does() -> None:
    shared: SharedWork[int] = SharedWork()
    running, stopped = asyncio.Event(), asyncio.Event()

    async def work(tell: Progress) -> int:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return 0

    waiters = [asyncio.create_task(shared.run("k", work, no_progress)) for _ in range(2)]
    await running.wait()
    waiters[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    assert not stopped.is_set()
    waiters[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[1]
    assert stopped.is_set()
