"""What a build tells its client: each step once, in order, also to who asks late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from insula.api.buildkit.progress import Progress, Steps
from insula.build.options import StepNote


async def all_of(progress: Progress) -> list[Any]:
    return [message async for message in progress.follow()]


def note(code: str, layer: int, layers: int = 3, stage: str = "") -> StepNote:
    return StepNote(number=1, total=9, code=code, stage=stage, layer=layer, layers=layers)


async def test_steps_are_vertices_if_they_make_layers() -> None:
    progress = Progress("r")
    steps = Steps(progress)
    steps.step(note("FROM busybox AS b", 1, stage="b"))
    steps.step(note("ENV A=1", 0))
    steps.step(note("RUN x", 2))
    steps.log("out", error=False)
    steps.log("err", error=True)
    steps.step(note("COPY a /", 3))
    steps.cached()
    steps.end()
    progress.close()
    messages = await all_of(progress)
    vertices = [(v.name, v.cached, v.HasField("completed")) for m in messages for v in m.vertexes]
    assert [
        ("[b 1/3] FROM busybox", False, False),
        ("[b 1/3] FROM busybox", False, True),
        ("[2/3] RUN x", False, False),
        ("[2/3] RUN x", False, True),
        ("[3/3] COPY a /", False, False),
        ("[3/3] COPY a /", True, True),
    ] == vertices
    assert [(1, b"out"), (2, b"err")] == [(log.stream, log.msg) for m in messages for log in m.logs]


async def test_what_goes_wrong_is_in_the_vertex() -> None:
    progress = Progress("r")
    with pytest.raises(ValueError, match="bad"), progress.vertex("loading"):
        raise ValueError("bad")
    progress.close()
    assert ["", "bad"] == [v.error for m in await all_of(progress) for v in m.vertexes]


async def test_who_listens_holds_the_build_back_and_who_does_not_gets_no_flood() -> None:
    progress = Progress("r")
    vertex = progress.begin("x")
    for _ in range(100):
        progress.log(vertex, b"y" * 100_000)
        await asyncio.wait_for(progress.room(), 5)  # nobody listens: it does not wait
    following = progress.follow()
    await anext(following)
    held = 0
    while (message := await asyncio.wait_for(anext(following), 5)).logs:
        held += len(message.logs[0].msg)
        if held >= 2_000_000:
            break
    for _ in range(2000):
        progress.count(vertex, "c", 1, done=True)
    waiting = asyncio.create_task(progress.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    progress.close()
    async for _ in following:
        pass
    await asyncio.wait_for(waiting, 5)
    assert held <= 2 << 20


async def test_counts_come_a_few_times_a_second_and_at_the_end() -> None:
    progress = Progress("r")
    vertex = progress.begin("x")
    for number in range(1000):
        progress.count(vertex, "copying", number)
    progress.count(vertex, "copying", 1000, done=True)
    progress.close()
    counts = [s.current for m in await all_of(progress) for s in m.statuses]
    assert (0, 1000) == (counts[0], counts[-1])
    assert len(counts) < 50
