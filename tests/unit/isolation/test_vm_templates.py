"""Templates on disk and in use, with a maker that boots nothing; and the pool of clones made ahead."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from insula.errors import CorruptData, NotFound, RuntimeFailed
from insula.isolation.vm.order import Order, with_interfaces
from insula.isolation.vm.size import Size
from insula.isolation.vm.template import FORMAT, Template, TemplateStore, finalize_record, key_of
from insula.isolation.vm.templates import Templates
from insula.model.limits import Limits
from insula.system.memory_file import make_memory_file, seal
from insula.system.pool import Pool

SIZE = Size(vcpus=1, memory_mib=1)
KEY = "0123456789abcdef"


def make_template(key: str = KEY, contents: bytes = b"memory") -> Template:
    ram, state = make_memory_file("ram", 1 << 20), make_memory_file("state", 100)
    os.pwrite(ram, contents, 5000)
    os.pwrite(state, b"devices", 0)
    seal(ram)
    seal(state)
    record = finalize_record(
        ram,
        state,
        key=key,
        release="6.1",
        accelerator="tcg",
        qemu_version="7.2",
        vcpus=1,
        memory_mib=1,
        boot_ms=1,
    )
    return Template(record, ram, state)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = TemplateStore(str(tmp_path))
    made = make_template()
    store.save(made)
    loaded = store.load(KEY)
    assert loaded is not None
    assert made.record == loaded.record
    assert os.pread(made.ram, 1 << 20, 0) == os.pread(loaded.ram, 1 << 20, 0)
    assert b"devices" == os.pread(loaded.state, 7, 0)
    with pytest.raises(PermissionError):
        os.pwrite(loaded.ram, b"x", 0)
    assert os.stat(tmp_path / "templates" / KEY / "ram").st_blocks * 512 < 100_000
    assert (made.record,) == store.records()


@pytest.mark.parametrize(("part", "at"), [("ram", 5002), ("ram", 900_000), ("state", 3)])
def test_a_damaged_one_is_not_believed(tmp_path: Path, part: str, at: int) -> None:
    store = TemplateStore(str(tmp_path))
    store.save(make_template())
    with open(tmp_path / "templates" / KEY / part, "r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.raises(CorruptData, match=part):
        store.load(KEY)


def test_what_is_half_there_is_swept_away(tmp_path: Path) -> None:
    store = TemplateStore(str(tmp_path))
    store.save(make_template())
    store.save(make_template("fedcba9876543210"))
    (tmp_path / "templates" / ".half").mkdir()
    other = tmp_path / "templates" / "fedcba9876543210" / "template.json"
    other.write_text(other.read_text().replace(f'"format":{FORMAT}', '"format":0'))
    store.sweep()
    assert [KEY] == os.listdir(tmp_path / "templates")


def test_one_without_a_part_is_none(tmp_path: Path) -> None:
    store = TemplateStore(str(tmp_path))
    assert store.load(KEY) is None
    store.save(make_template())
    (tmp_path / "templates" / KEY / "state").unlink()
    assert store.load(KEY) is None
    with pytest.raises(NotFound):
        store.remove("0" * 16)
    store.remove(KEY)
    assert () == store.records()


def test_the_key_changes_with_everything_that_matters() -> None:
    base = key_of(["qemu", "-m", "256M"], ["7.2", "digest"])
    assert base == key_of(["qemu", "-m", "256M"], ["7.2", "digest"])
    others = {
        key_of(["qemu", "-m", "128M"], ["7.2", "digest"]),
        key_of(["qemu", "-m", "256M"], ["7.3", "digest"]),
        key_of(["qemu", "-m", "256M"], ["7.2", "other"]),
        key_of(["qemu", "-m", "256M", "7.2"], ["digest"]),
    }
    assert 4 == len(others - {base})


class Maker:
    def __init__(self) -> None:
        self.made = 0
        self.go = asyncio.Event()
        self.error: RuntimeFailed | None = None

    async def __call__(self, key: str, size: Size, ram: int) -> Template:
        self.made += 1
        await self.go.wait()
        os.close(ram)
        if self.error:
            raise self.error
        return make_template(key)


def templates(tmp_path: Path, maker: Callable[[str, Size, int], Awaitable[Template]]) -> Templates:
    async def key(size: Size) -> str:
        return f"{size.memory_mib:016x}"

    return Templates(str(tmp_path), key, maker)


async def test_of_many_who_need_one_the_first_makes_it(tmp_path: Path) -> None:
    maker = Maker()
    kept = templates(tmp_path, maker)
    waiting = [asyncio.create_task(kept.need(SIZE)) for _ in range(5)]
    await asyncio.sleep(0)
    maker.go.set()
    assert 1 == len({id(one) for one in await asyncio.gather(*waiting)})
    assert 1 == maker.made
    await kept.close()
    again = templates(tmp_path, maker)
    await again.need(SIZE)  # from its files
    assert 1 == maker.made
    await again.close()


async def test_who_finds_none_first_boots_and_the_next_waits_for_it(tmp_path: Path) -> None:
    maker = Maker()
    kept = templates(tmp_path, maker)
    assert await kept.find(SIZE) is None
    next_one = asyncio.create_task(kept.find(SIZE))
    maker.go.set()
    assert await next_one is not None
    assert await kept.find(Size(vcpus=1, memory_mib=2)) is None
    await kept.close()


async def test_one_that_cannot_be_made_is_not_tried_at_once_again(tmp_path: Path) -> None:
    class Failing(Maker):
        async def __call__(self, key: str, size: Size, ram: int) -> Template:
            self.made += 1
            raise RuntimeFailed("no memory")

    maker = Failing()
    kept = templates(tmp_path, maker)
    for _ in range(3):
        with pytest.raises(RuntimeFailed, match="no memory"):
            await kept.need(SIZE)
    assert 1 == maker.made
    await kept.close()


async def test_a_distrusted_or_removed_one_is_made_anew(tmp_path: Path) -> None:
    maker = Maker()
    maker.go.set()
    kept = templates(tmp_path, maker)
    first = await kept.need(SIZE)
    await kept.distrust(first)
    second = await kept.need(SIZE)
    assert first is not second
    await kept.distrust(first)  # of long ago
    assert second is await kept.need(SIZE)
    await kept.remove(second.record.key)
    assert second is not await kept.need(SIZE)
    assert 3 == maker.made
    await kept.close()


async def test_a_pool_gives_what_is_ready_or_nothing() -> None:
    made = asyncio.Event()
    dropped: list[int] = []
    numbers = iter(range(100))

    async def make() -> int:
        made.set()
        return next(numbers)

    pool = Pool(make, dropped.append, least=1, most=4, quiet_s=0.0, eager=False)
    assert pool.find() is None
    pool.start()
    await made.wait()
    while not pool.ready():  # noqa: ASYNC110  (nothing tells)
        await asyncio.sleep(0)
    assert pool.find() == 0
    pool.drop_ready()
    assert 0 == pool.ready()
    await pool.close()
    assert 0 not in dropped


def test_a_clone_without_a_network_still_has_an_interface() -> None:
    order = Order(id="a", run_dir="/r", vcpus=1, memory_mib=256, limits=Limits())
    [(link, _)] = with_interfaces(order, 1).taps
    assert 12 == len(link)
    assert with_interfaces(order, 1).taps != with_interfaces(order, 1).taps
    on = dataclasses.replace(order, taps=(("iv0", "02:00:00:00:00:02"),))
    assert on is with_interfaces(on, 1)
