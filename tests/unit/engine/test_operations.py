"""What is begun is ended, whoever goes away meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from insula.engine.operations import uncut


async def test_work_ends_before_the_cancellation_goes_on() -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()
        ended.set()

    task = asyncio.create_task(uncut(work()))
    await begun.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_its_result_and_its_error_are_the_callers() -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise ValueError("no")

    assert 7 == await uncut(good())
    with pytest.raises(ValueError, match="no"):
        await uncut(bad())
