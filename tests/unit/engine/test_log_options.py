"""Log drivers' options, and logs whose beginning has been given back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from insula.engine.growth import Growth
from insula.engine.log_options import check_log, log_attributes, log_limit, render_attributes
from insula.engine.logs import read_log
from insula.engine.types import LogQuery
from insula.errors import InvalidRequest
from insula.model.instance import Instance, LogConfig, MergedConfig, State
from insula.system.holes import can_punch, find_data, keep_end

from .rooms import World, shell, spec


def config(driver: str = "json-file", **options: str) -> LogConfig:
    return LogConfig(driver=driver, options={name.replace("_", "-"): text for name, text in options.items()})


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (config(), 0),
        (config(max_file="3"), 0),
        (config(max_size="10m"), 10_000_000),
        (config(max_size="1.5kb", max_file="4"), 6_000),
        (config("local"), 100_000_000),
        (config("local", max_size="1k"), 5_000),
        (config("journald"), 100_000_000),
        (config("none", max_size="1k"), 0),
        (config(mode="non-blocking", max_buffer_size="4m"), 0),
    ],
)
def test_how_much_is_kept(given: LogConfig, limit: int) -> None:
    check_log(given)
    assert log_limit(given) == limit


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (config("syslog"), "log driver 'syslog' is not supported"),
        (config("journald", max_size="1m"), "unknown log opt 'max-size' for journald log driver"),
        (config(odd="1"), "unknown log opt 'odd' for json-file log driver"),
        (config("local", tag="x"), "unknown log opt 'tag' for local log driver"),
        (config(max_size="big"), "invalid size: 'big'"),
        (config(max_size="0"), "max-size must be a positive number"),
        (config(max_file="0"), "max-file cannot be less than 1"),
        (config(max_file="x"), "invalid max-file"),
        (config(compress="true"), "compress cannot be true"),
        (config(max_size="1m", max_file="2", compress="perhaps"), "invalid value for compress"),
        (config(mode="sometimes"), "logging mode not supported: sometimes"),
        (config(max_buffer_size="1m"), "only supported with 'mode=non-blocking'"),
        (config(mode="non-blocking", max_buffer_size="big"), "invalid size: 'big'"),
        (config(labels_regex="("), "invalid labels-regex"),
        (config(tag="{{.Odd}}"), "log opt tag: template: there is no .Odd"),
        (config(tag="{{if .ID}}x"), "log opt tag: template parsing error"),
    ],
)
def test_what_is_refused(given: LogConfig, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_log(given)


def test_what_details_show() -> None:
    log = config(
        labels="kind,missing",
        labels_regex="^my",
        env="A",
        env_regex="^B",
        tag='{{.Name}}/{{ .ID }} of {{.ImageName}} {{with index .ContainerLabels "my"}}{{upper .}}{{end}}',
    )
    record = Instance(
        id="5" * 64,
        name="one",
        spec=spec("true", log=log),
        image_id="sha256:" + "6" * 64,
        state=State.CREATED,
        created_ns=1,
        config=MergedConfig(labels={"kind": "a b", "my": "c", "other": "d"}, env=("A=1", "BB=2", "C=3")),
    )
    check_log(log)
    found = log_attributes(record)
    tag = f"one/{'5' * 12} of {record.spec.image} C"
    assert found == {"kind": "a b", "my": "c", "A": "1", "BB": "2", "tag": tag}
    assert render_attributes({"b": "1,2", "a": "x y"}) == "a=x+y,b=1%2C2"


def lines(first: int, last: int) -> bytes:
    return b"".join(b"1970-01-01T00:00:01Z stdout F %07d\n" % number for number in range(first, last))


async def read(path: Path, **query: object) -> list[int]:
    wanted = LogQuery(**query)  # type: ignore[arg-type]
    return [
        int(record.data) async for record in read_log(str(path), wanted, growth=Growth(), ended=lambda: True)
    ]


async def test_the_end_is_kept_in_whole_lines_and_the_rest_takes_no_space(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(lines(0, 10_000))
    whole = path.stat().st_size
    keep_end(str(path), whole)
    assert await read(path) == list(range(10_000))
    keep_end(str(path), 100_000)
    assert path.stat().st_size == whole
    assert path.stat().st_blocks * 512 <= 100_000
    kept = await read(path)
    assert kept == list(range(kept[0], 10_000))
    assert 70_000 <= len(kept) * 38 <= 100_000
    assert await read(path, tail=3) == [9_997, 9_998, 9_999]
    assert await read(path, tail=1_000_000) == kept
    keep_end(str(path), 100_000)  # it has less now
    assert await read(path) == kept
    with open(path, "ab") as file:
        file.write(lines(10_000, 10_010))
    assert await read(path) == [*kept, *range(10_000, 10_010)]


async def test_a_forged_record_at_the_cut_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    forged = b"1970-01-01T00:00:01Z stdout F 7777777"
    head = b"1970-01-01T00:00:01Z stdout F "
    path.write_bytes(head.ljust(4096 * 2, b"x") + forged + b"\n" + lines(1, 3))
    keep_end(str(path), 4096)
    with open(path, "rb") as file:
        assert find_data(file.fileno(), 0) == 4096 * 2
    assert await read(path) == [1, 2]


async def test_who_follows_is_not_disturbed_and_who_is_late_goes_on_behind_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(lines(0, 1000))
    growth, over = Growth(), asyncio.Event()
    following = read_log(str(path), LogQuery(follow=True), growth=growth, ended=over.is_set)
    seen = [int((await anext(following)).data) for _ in range(1000)]
    keep_end(str(path), 8192)
    with open(path, "ab") as file:
        file.write(lines(1000, 2000))
    seen += [int((await anext(following)).data) for _ in range(1000)]
    assert seen == list(range(2000))
    with open(path, "ab") as file:
        file.write(lines(2000, 9000))
    keep_end(str(path), 8192)
    over.set()
    growth.poke(str(path))
    late = [int(record.data) async for record in following]
    assert late == list(range(late[0], 9000))
    assert len(late) * 38 < 8192
    growth.close()


async def test_an_instance_s_log_is_cut_while_it_runs_and_when_it_has_ended(world: World) -> None:
    engine = await world.engine()
    script = "seq 1 20000; cat; seq 20001 40000"
    wanted = shell(script, log=config(max_size="20k", max_file="2"), open_stdin=True, stdin_once=True)
    made = await engine.create(wanted, None)
    stream = await engine.attach(made.id, stdin=True, stdout=False, stderr=False, logs=False, stream=True)
    await engine.start_instance(made.id)
    path = engine.describe(made.id).log_path
    growth = Growth()
    with growth.watch(path) as changed:  # by what is written, and by what is given back
        async with asyncio.timeout(20):
            while os.stat(path).st_blocks * 512 > 41_000 or os.stat(path).st_size < 20_000 * 30:
                await changed.wait()
                changed.clear()
    growth.close()
    ended = engine.wait(made.id)
    await stream.close_stdin()
    await ended
    assert os.stat(path).st_blocks * 512 <= 41_000
    found = [int(line.data) async for batch in engine.logs(made.id, LogQuery()) for line in batch.records]
    assert found == list(range(found[0], 40_001))
    await engine.remove(made.id)
    await engine.stop()


def test_a_directory_is_tried_once(tmp_path: Path) -> None:
    assert can_punch(str(tmp_path))
    assert os.listdir(tmp_path) == []


async def test_what_a_slow_follower_has_not_read_is_spared_up_to_as_much_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(lines(0, 1000))
    growth, over = Growth(), asyncio.Event()
    following = read_log(str(path), LogQuery(follow=True), growth=growth, ended=over.is_set)
    seen = [int((await anext(following)).data) for _ in range(1000)]
    assert growth.unread(str(path)) is not None
    with open(path, "ab") as file:
        file.write(lines(1000, 1300))  # 11,400 bytes, of which 8,192 are kept without a follower
    keep_end(str(path), 8192, growth.unread(str(path)))
    seen += [int((await anext(following)).data) for _ in range(300)]
    assert seen == list(range(1300))
    with open(path, "ab") as file:
        file.write(lines(1300, 9000))
    keep_end(str(path), 8192, growth.unread(str(path)))
    assert path.stat().st_blocks * 512 <= 2 * 8192 + 4096
    await following.aclose()  # type: ignore[attr-defined]
    assert growth.unread(str(path)) is None
    keep_end(str(path), 8192, growth.unread(str(path)))
    assert path.stat().st_blocks * 512 <= 8192
