"""The pool: ready ones at once, a burst makes it grow, nobody's is lost."""

from __future__ import annotations

import asyncio

import pytest

from insula.errors import Failure
from insula.system.pool import Pool


class Maker:
    """Makes numbers; `gate` holds it back."""

    def __init__(self) -> None:
        self.made = 0
        self.dropped: list[int] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Condition()
        self.three_dropped = asyncio.Event()

    async def make(self) -> int:
        self.begun.set()
        await self.gate.wait()
        self.made += 1
        async with self.news:
            self.news.notify_all()
        return self.made

    def drop(self, number: int) -> None:
        self.dropped.append(number)
        if len(self.dropped) == 3:
            self.three_dropped.set()

    async def until(self, made: int) -> None:
        async with self.news:
            await self.news.wait_for(lambda: self.made >= made)


async def test_it_fills_itself_and_refills_after_a_take() -> None:
    maker = Maker()
    pool = Pool(maker.make, maker.drop, least=2, most=4)
    pool.start()
    await maker.until(2)
    assert await pool.take() == 1
    await maker.until(3)
    await pool.close()
    assert maker.dropped == [2, 3]


async def test_a_burst_is_served_and_makes_it_keep_more() -> None:
    maker = Maker()
    pool = Pool(maker.make, maker.drop, least=2, most=4)
    pool.start()
    await maker.until(2)
    taken = await asyncio.gather(*(pool.take() for _ in range(6)))
    assert len(set(taken)) == 6
    await maker.until(6 + 4)
    await pool.close()
    assert len(maker.dropped) == 4


async def test_one_made_for_a_taker_who_went_away_is_kept() -> None:
    maker = Maker()
    pool = Pool(maker.make, maker.drop, least=1, most=1)
    maker.gate.clear()
    taker = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    taker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taker
    maker.gate.set()
    await pool.close()
    assert maker.dropped == [1]


async def test_a_failure_reaches_the_taker_and_ends_nothing() -> None:
    maker = Maker()
    broken = True

    async def make() -> int:
        if broken:
            raise Failure("no memory")
        return await maker.make()

    pool = Pool(make, maker.drop, least=1, most=1)
    pool.start()
    with pytest.raises(Failure, match="no memory"):
        await pool.take()
    broken = False
    assert await pool.take() == 1
    await maker.until(2)
    await pool.close()
    assert maker.dropped == [2]


async def test_it_shrinks_when_nobody_came_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.system.pool._SHRINK_S", 0.01)
    monkeypatch.setattr("insula.system.pool._QUIET_S", 0.0)
    maker = Maker()
    pool = Pool(maker.make, maker.drop, least=1, most=4)
    await asyncio.gather(*(pool.take() for _ in range(3)))
    pool.start()
    await maker.until(3 + 4)
    await maker.three_dropped.wait()
    assert pool.ready() == 1
    await pool.close()
    assert len(maker.dropped) == 4


@pytest.mark.parametrize("gives_up", [False, True])
async def test_what_is_being_made_is_waited_for_or_given_up(gives_up: bool) -> None:
    maker = Maker()
    maker.gate.clear()
    pool = Pool(maker.make, maker.drop, least=1, most=1, gives_up=gives_up)
    taking = asyncio.create_task(pool.take())
    await maker.begun.wait()
    closing = asyncio.create_task(pool.close())
    if not gives_up:
        maker.gate.set()
    await closing
    assert (0 if gives_up else 1) == maker.made
    [taken] = await asyncio.gather(taking, return_exceptions=True)
    assert isinstance(taken, asyncio.CancelledError) if gives_up else taken == 1


@pytest.mark.parametrize("steps", range(5))
async def test_one_just_made_when_it_closes_is_not_lost(steps: int) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    dropped: list[str] = []

    async def make() -> str:
        begun.set()
        await gate.wait()
        for _ in range(steps):  # of the loop, in which the pool is being closed
            await asyncio.sleep(0)
        return "made"

    pool = Pool(make, dropped.append, least=1, most=1)
    pool.start()
    await begun.wait()
    gate.set()
    await pool.close()
    assert dropped == ["made"]
