from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from insula.engine.growth import Growth
from insula.engine.logs import await_output, read_batches, read_log
from insula.engine.records import BLOCK, find_tail, parse_record
from insula.engine.turns import Turns
from insula.engine.types import LogBatch, LogQuery
from insula.model.stream import Channel

BOTH = (Channel.STDOUT, Channel.STDERR)
S = 10**9


def line(text: str, *, at: int = 0, channel: str = "stdout", tag: str = "F") -> bytes:
    return f"1970-01-01T00:{at // 60:02}:{at % 60:02}.000000000Z {channel} {tag} {text}\n".encode()


async def collect(path: Path, **options: object) -> list[bytes]:
    query = LogQuery(**{k: v for k, v in options.items() if k != "join"})  # type: ignore[arg-type]
    records = read_log(
        str(path), query, growth=Growth(), ended=lambda: True, join=bool(options.get("join", True))
    )
    return [record.data async for record in records]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1970-01-01T00:00:01.5Z", 1_500_000_000),
        (b"1970-01-01T00:00:01.000000001+00:00", 1_000_000_001),
        (b"1970-01-01T02:00:01.123456789+02:00", 1_123_456_789),
        (b"1969-12-31T19:00:01-05:00", 1_000_000_000),
        (b"yesterday", None),
        (b"", None),
        (b"1970-01-01T00:00:01.", 1_000_000_000),
        (b"1970-13-01T00:00:01Z", None),
        (b"1970-01-01T00:00:01+0", None),
        (b"2026-01-31T12:00:00.1234567891234Z", 1769860800_123456789),
    ],
)
def test_times(text: bytes, expected: int | None) -> None:
    record = parse_record(text + b" stdout F x")
    assert expected == (record.time_ns if record is not None else None)


@pytest.mark.parametrize(
    "untrusted",
    [
        b"",
        b"x",
        b"1970-01-01T00:00:01Z stdin F x",
        b"1970-01-01T00:00:01Z stdout Q x",
        b"\0" * 100,
        b"a b c d",
    ],
)
def test_what_is_no_record_is_passed_over(untrusted: bytes) -> None:
    assert parse_record(untrusted) is None


def test_a_record_may_be_empty() -> None:
    record = parse_record(b"1970-01-01T00:00:01Z stderr F ")
    assert record is not None
    assert (record.data, record.channel, record.partial) == (b"", Channel.STDERR, False)


async def test_what_is_there_comes_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("one") + line("two") + line("thr").rstrip(b"\n"))
    growth = Growth()
    batches = read_batches(str(log), LogQuery(follow=True), growth=growth, ended=lambda: False)
    assert [b"one\n", b"two\n"] == [record.data for record in (await anext(batches)).records]
    await batches.aclose()
    growth.close()


async def test_followers_share_what_they_read_alike(tmp_path: Path) -> None:
    """However they come upon it: from the beginning or its end, in the middle of a line or of its pieces."""
    log = tmp_path / "log"
    log.write_bytes(line("0"))
    growth, over = Growth(), False
    seen: dict[int, list[LogBatch]] = {}

    async def follow(number: int, **options: object) -> None:
        query = LogQuery(follow=True, **options)  # type: ignore[arg-type]
        async for batch in read_batches(str(log), query, growth=growth, ended=lambda: over):
            seen.setdefault(number, []).append(batch)

    wanted: tuple[dict[str, object], ...] = ({}, {}, {"tail": 0}, {"stderr": False})
    followers = [asyncio.create_task(follow(number, **options)) for number, options in enumerate(wanted)]
    while growth.unread(str(log)) != len(line("0")):  # noqa: ASYNC110  (nothing tells)
        await asyncio.sleep(0)
    parts = [
        line("1"),
        line("2", tag="P"),
        line("2"),
        line("3")[:20],
        line("3")[20:],
        line("4", channel="stderr"),
    ]
    with log.open("ab", buffering=0) as file:
        for part in parts:
            file.write(part)
            while growth.unread(str(log)) != file.tell():  # noqa: ASYNC110
                await asyncio.sleep(0)
    over = True
    growth.poke(str(log))
    await asyncio.gather(*followers)
    growth.close()
    lines = [[record.data for batch in seen[n] for record in batch.records] for n in range(4)]
    every = [b"0\n", b"1\n", b"22\n", b"3\n", b"4\n"]
    assert [every, every, every[1:], every[:4]] == lines
    assert 2 <= len({id(batch) for batch in seen[0]} & {id(batch) for batch in seen[1]})
    assert not {id(batch) for batch in seen[0]} & {id(batch) for batch in seen[3]}
    assert not growth.batches._kept  # nobody follows it any more


async def test_many_who_have_much_to_do_leave_time_for_others() -> None:
    turns, rounds, working = Turns(), 0, True

    async def work() -> None:
        for _ in range(3):
            await turns.take()
            until = time.monotonic() + 0.004
            while time.monotonic() < until:
                pass

    async def count() -> None:
        nonlocal rounds
        while working:
            rounds += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    crowd = [asyncio.create_task(work()) for _ in range(20)]
    await asyncio.sleep(0)
    crowd[7].cancel()  # it waits for its turn
    await asyncio.gather(*crowd, return_exceptions=True)
    working = False
    await counting
    assert rounds >= 3 * 19  # at most one of them in each


async def test_pieces_are_joined_by_channel(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        line("one ", tag="P")
        + line("err ", tag="P", channel="stderr")
        + line("two")
        + line("done", channel="stderr")
        + line("prompt", tag="P")
    )
    assert await collect(log) == [b"one two\n", b"err done\n", b"prompt"]
    assert await collect(log, join=False) == [b"one ", b"err ", b"two\n", b"done\n", b"prompt"]
    assert await collect(log, stderr=False) == [b"one two\n", b"prompt"]


async def test_since_and_until(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(line(str(n), at=n) for n in range(10)))
    assert await collect(log, since_ns=3 * S, until_ns=5 * S) == [b"3\n", b"4\n"]
    assert await collect(log, tail=2, since_ns=9 * S) == [b"9\n"]


@pytest.mark.parametrize("count", [0, 1, 7, 5000, 20_000, 30_000])
async def test_tail(tmp_path: Path, count: int) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(line(str(n)) for n in range(20_000)))
    expected = [f"{n}\n".encode() for n in range(20_000)]
    assert await collect(log, tail=count) == (expected[-count:] if count else [])


async def test_tail_counts_lines_not_pieces_and_only_wanted_ones(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        line("a")
        + line("b1 ", tag="P")
        + line("noise", channel="stderr")
        + line("b2")
        + line("noise", channel="stderr")
        + line("c1 ", tag="P")
        + line("c2 ", tag="P")
    )
    assert await collect(log, tail=2, stderr=False) == [b"b1 b2\n", b"c1 c2 "]
    assert await collect(log, tail=1, stdout=False) == [b"noise\n"]


def test_tail_reads_only_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("x" * 100) * 50_000)
    with log.open("r+b") as file:
        file.write(b"\0" * BLOCK)  # what would be read at the front is no record
    fd = os.open(log, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        assert find_tail(fd, size, 3, BOTH) == size - 3 * len(line("x" * 100))
    finally:
        os.close(fd)


async def test_a_line_longer_than_a_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("first") + line("y" * (BLOCK * 3)) + line("last"))
    assert [len(data) for data in await collect(log, tail=2)] == [BLOCK * 3 + 1, 5]
    assert len(await collect(log)) == 3


async def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("z" * 8000, tag="P") * 100)
    pieces = await collect(log)
    assert sum(map(len, pieces)) == 800_000
    assert len(pieces) > 1


async def test_a_torn_last_record_is_kept_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("whole") + line("torn").rstrip(b"\n"))
    assert await collect(log) == [b"whole\n", b"torn"]


async def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert await collect(tmp_path / "missing", follow=True) == []


async def test_following_sees_every_record_once_and_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("0"))
    growth, over = Growth(), False
    records = read_log(str(log), LogQuery(follow=True), growth=growth, ended=lambda: over)
    seen = [(await anext(records)).data]

    async def write() -> None:
        nonlocal over
        for n in range(1, 500):
            half = line(str(n))
            with log.open("ab") as file:  # in two writes: a reader may see half a record
                file.write(half[:20])
            if n % 7 == 0:
                await asyncio.sleep(0)
            with log.open("ab") as file:
                file.write(half[20:])
        over = True
        growth.poke(str(log))

    writing = asyncio.create_task(write())
    seen += [record.data async for record in records]
    await writing
    growth.close()
    assert seen == [f"{n}\n".encode() for n in range(500)]


async def test_following_stops_at_until(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line("0"))
    growth = Growth()
    until = time.time_ns() + 50_000_000
    records = read_log(str(log), LogQuery(follow=True, until_ns=until), growth=growth, ended=lambda: False)
    assert [record.data async for record in records] == [b"0\n"]
    growth.close()


async def test_many_followers_share_one_descriptor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    growth, over = Growth(), False
    before = len(os.listdir("/proc/self/fd"))

    async def follow() -> list[bytes]:
        records = read_log(str(log), LogQuery(follow=True), growth=growth, ended=lambda: over)
        return [record.data async for record in records]

    followers = [asyncio.create_task(follow()) for _ in range(50)]
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before + 51  # each has the log open, and one inotify
    log.write_bytes(line("x"))
    over = True
    growth.poke(str(log))
    assert await asyncio.gather(*followers) == [[b"x\n"]] * 50
    growth.close()


async def test_the_first_output_is_waited_for_or_the_end_or_a_moment(tmp_path: Path) -> None:
    path, growth = tmp_path / "log", Growth()
    path.write_bytes(line("of an earlier run"))
    os.utime(path, (1, 1))
    over = False

    async def wait(seconds: float = 3600) -> None:
        until = time.time_ns() + int(seconds * S)
        await await_output(str(path), growth, since_ns=2 * S, until_ns=until, ended=lambda: over)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    path.write_bytes(line("now"))
    await waiting
    await wait()  # there is something already
    os.utime(path, (1, 1))
    await wait(0.01)
    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    over = True
    growth.poke(str(path))
    await waiting
    growth.close()
