from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.errors import Conflict, InvalidRequest, NoSuchPlugin, NoSuchVolume
from insula.events import EventBus
from insula.model.reports import PruneFilters
from insula.store.store import Store
from insula.volumes.volumes import Volumes, tree_size


def nobody(_: str) -> tuple[str, ...]:
    return ()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(str(tmp_path / "db"))
    yield store
    store.close()


@pytest.fixture
def events() -> EventBus:
    return EventBus()


async def open_volumes(tmp_path: Path, store: Store, events: EventBus) -> Volumes:
    volumes = Volumes(str(tmp_path / "volumes"), store, events)
    await volumes.start()
    return volumes


async def test_create_find_list_remove(tmp_path: Path, store: Store, events: EventBus) -> None:
    volumes = await open_volumes(tmp_path, store, events)
    made = await volumes.create("data", labels={"k": "v"})
    assert made.mountpoint == str(tmp_path / "volumes/data/_data")
    assert os.path.isdir(made.mountpoint)
    assert await volumes.create("data") == made
    anonymous = await volumes.create(anonymous=True)
    assert len(anonymous.name) == 64
    assert [volume.name for volume in volumes.list()] == sorted(["data", anonymous.name])
    assert (await open_volumes(tmp_path, store, events)).find("data") == made
    await volumes.remove("data", users=nobody)
    with pytest.raises(NoSuchVolume):
        volumes.find("data")
    with pytest.raises(NoSuchVolume):
        await volumes.remove("data", users=nobody)
    await volumes.remove("data", force=True, users=nobody)
    assert os.listdir(tmp_path / "volumes") == [anonymous.name]
    assert [event.action for event in events.recent(0, 2**63)] == ["create", "create", "destroy"]


async def test_what_is_refused(tmp_path: Path, store: Store, events: EventBus) -> None:
    volumes = await open_volumes(tmp_path, store, events)
    for name in ("../up", "a/b", ".hidden", "a" * 300):
        with pytest.raises(InvalidRequest, match="invalid characters"):
            await volumes.create(name)
    with pytest.raises(InvalidRequest, match="too short"):
        await volumes.create("x")
    with pytest.raises(NoSuchPlugin, match='plugin "nfs" not found'):
        await volumes.create("data", driver="nfs")
    with pytest.raises(InvalidRequest, match='missing required option: "device"'):
        await volumes.create("data", options={"type": "tmpfs"})
    assert volumes.list() == ()
    await volumes.create("data")
    with pytest.raises(Conflict, match="volume is in use"):
        await volumes.remove("data", users=lambda name: ("a" * 64,))


async def test_a_removal_that_a_crash_has_cut(tmp_path: Path, store: Store, events: EventBus) -> None:
    volumes = await open_volumes(tmp_path, store, events)
    for name in ("early", "late"):
        made = await volumes.create(name)
        Path(made.mountpoint, "file").write_text("kept")
    # cut after the rename, before the record went: nothing is lost
    os.rename(tmp_path / "volumes/early", tmp_path / "volumes/.removing-early")
    # cut after the record went: the rest goes too
    os.rename(tmp_path / "volumes/late", tmp_path / "volumes/.removing-late")
    store.delete_volume("late")
    again = await open_volumes(tmp_path, store, events)
    assert [volume.name for volume in again.list()] == ["early"]
    assert Path(again.find("early").mountpoint, "file").read_text() == "kept"
    assert os.listdir(tmp_path / "volumes") == ["early"]


async def test_prune(tmp_path: Path, store: Store, events: EventBus) -> None:
    volumes = await open_volumes(tmp_path, store, events)
    named = await volumes.create("named")
    used, unused = await volumes.create(anonymous=True), await volumes.create(anonymous=True)
    Path(unused.mountpoint, "file").write_bytes(b"x" * 100_000)

    def users(name: str) -> tuple[str, ...]:
        return ("one",) if name == used.name else ()

    report = await volumes.prune(PruneFilters(), users=users)
    assert report.deleted == (unused.name,)
    assert report.reclaimed_bytes >= 100_000
    spared = await volumes.prune(PruneFilters(labels=("k",)), all=True, users=users)
    assert spared.deleted == ()
    assert (await volumes.prune(PruneFilters(), all=True, users=users)).deleted == (named.name,)
    assert [volume.name for volume in volumes.list()] == [used.name]


async def test_prunes_at_once_share_what_there_is(tmp_path: Path, store: Store, events: EventBus) -> None:
    volumes = await open_volumes(tmp_path, store, events)
    names = {(await volumes.create(anonymous=True)).name for _ in range(5)}
    reports = await asyncio.gather(*(volumes.prune(PruneFilters(), users=nobody) for _ in range(4)))
    assert names == {name for report in reports for name in report.deleted}
    assert 5 == sum(len(report.deleted) for report in reports)


def test_the_size_of_a_tree_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    before = tree_size(str(tmp_path))
    (tmp_path / "d/file").write_bytes(b"x" * 65536)
    with_file = tree_size(str(tmp_path))
    assert with_file >= before + 65536
    os.link(tmp_path / "d/file", tmp_path / "d/again")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert tree_size(str(tmp_path)) < with_file + 65536
    assert tree_size(str(tmp_path / "missing")) == 0


async def test_many_at_once_are_one(tmp_path: Path, store: Store, events: EventBus) -> None:
    volumes = await open_volumes(tmp_path, store, events)
    made = await asyncio.gather(*(volumes.create("data") for _ in range(5)))
    assert len(set(map(id, made))) == 1
