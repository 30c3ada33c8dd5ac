from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.build.contexts import Contexts
from insula.build.mounting import CACHE_LABEL
from insula.build.prune import list_contexts, prune_caches
from insula.engine.contents import check_writable
from insula.engine.engine import Engine
from insula.errors import Conflict, Forbidden, InvalidRequest, NoSuchPath
from insula.model.instance import RestartPolicy, State
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import MountKind, MountSpec
from insula.model.reports import PruneFilters

from .rooms import IMAGE, World, spec


async def tar_of(name: str, data: bytes) -> AsyncIterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    yield buffer.getvalue()


async def names_in(pieces: AsyncIterator[bytes]) -> list[str]:
    raw = b"".join([piece async for piece in pieces])
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return [name.lstrip("./") for name in tar.getnames()]


async def test_what_is_copied_in_is_taken_in_turn(engine: Engine) -> None:
    """Two archives with one file, and the slow one of a client that goes away."""
    made = await engine.create(spec("sleep", "infinity"), None)
    begun, order = asyncio.Event(), []

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await asyncio.sleep(3600)
        yield b""

    async def quick() -> AsyncIterator[bytes]:
        order.append("read")
        async for piece in tar_of("one", b"1"):
            yield piece

    first = asyncio.create_task(engine.put_archive(made.id, "/tmp", slow()))
    await begun.wait()
    second = asyncio.create_task(engine.put_archive(made.id, "/tmp", quick()))
    await asyncio.sleep(0)
    assert [] == order
    first.cancel()
    await second
    assert 1 == (await engine.stat_path(made.id, "/tmp/one")).size


@pytest.mark.parametrize("isolation", list(Isolation))
async def test_copies_before_during_and_after_a_run(
    world: World, engine: Engine, isolation: Isolation
) -> None:
    made = await engine.create(spec("sleep", "infinity", isolation=isolation), None)
    await engine.put_archive(made.id, "/tmp", tar_of("one", b"1"))
    await engine.start_instance(made.id)
    assert (await engine.stat_path(made.id, "tmp/one")).size == 1
    await engine.kill(made.id)
    archive = await engine.get_archive(made.id, "/tmp/one")
    assert archive.stat.name == "one"
    assert await names_in(archive.pieces) == ["one"]
    assert "/tmp/one" in {change.path for change in await engine.changes(made.id)}
    assert "tmp/one" in await names_in(await engine.export(made.id))
    with pytest.raises(NoSuchPath):
        await engine.get_archive(made.id, "/nothing")
    assert world.roots.mounted == set()
    await engine.start_instance(made.id)
    await engine.remove(made.id, force=True)


async def test_where_the_kernel_shows_itself_there_is_nothing_to_copy(engine: Engine, tmp_path: Path) -> None:
    mounts = (MountSpec(kind=MountKind.BIND, source=str(tmp_path), target="/sys/fs/x", read_only=False),)
    made = await engine.create(spec("sleep", "infinity", mounts=mounts), None)
    for path in ("/proc/one", "/sys/fs/x/one"):
        top = path.rpartition("/")[0]
        await engine.put_archive(made.id, "/", tar_of(f"{top[1:]}/one", b"1"))
    await engine.start_instance(made.id)
    for path in ("/proc/one", "sys/kernel", "/etc/../proc/one"):
        for ask in (engine.stat_path, engine.get_archive):
            with pytest.raises(NoSuchPath, match=path):
                await ask(made.id, path)
    assert ["proc"] == await names_in((await engine.get_archive(made.id, "/proc/")).pieces)
    assert 1 == (await engine.stat_path(made.id, "/sys/fs/x/one")).size
    await engine.kill(made.id)
    assert 1 == (await engine.stat_path(made.id, "/proc/one")).size


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/tmp", "container rootfs is marked read-only"),
        ("etc/", "container rootfs is marked read-only"),
        ("/ro", "mounted volume is marked read-only"),
        ("/rw/../ro/below/.", "mounted volume is marked read-only"),
        ("/rw", ""),
        ("/ro/rw/x", ""),
        ("/scratch", "container rootfs is marked read-only"),
    ],
)
async def test_nothing_is_copied_to_where_nothing_may_be_written(
    engine: Engine, tmp_path: Path, path: str, why: str
) -> None:
    def bind(target: str, read_only: bool) -> MountSpec:
        return MountSpec(kind=MountKind.BIND, source=str(tmp_path), target=target, read_only=read_only)

    mounts = (
        *(bind("/ro", True), bind("/rw", False), bind("/ro/rw", False)),
        MountSpec(kind=MountKind.TMPFS, target="/scratch"),
    )
    made = await engine.create(spec("true", mounts=mounts, read_only_root=True), None)
    entry = engine._instances.find(made.id)
    if why:
        with pytest.raises(Forbidden, match=why):
            check_writable(entry, path)
    else:
        check_writable(entry, path)


async def test_what_is_missing_is_named_as_it_was_asked_for(engine: Engine) -> None:
    await engine.create(spec("true"), "named")
    with pytest.raises(NoSuchPath, match=r"^Could not find the file none/here in container named"):
        await engine.stat_path("named", "none/here")


async def test_a_copy_that_is_let_go_gives_everything_back(world: World, engine: Engine) -> None:
    made = await engine.create(spec("true", isolation=Isolation.VM), None)
    await engine.put_archive(made.id, "/tmp", tar_of("one", b"1" * 3_000_000))
    archive = await engine.get_archive(made.id, "/tmp/one")
    await archive.pieces.aclose()  # type: ignore[attr-defined]
    await engine.start_instance(made.id)  # it would wait for ever if the copy still held it
    await engine.wait(made.id)
    await engine.remove(made.id)
    assert world.roots.mounted == set()


async def test_volumes_of_an_instance(engine: Engine) -> None:
    mounts = (
        MountSpec(kind=MountKind.VOLUME, target="/anonymous", no_copy=True),
        MountSpec(kind=MountKind.VOLUME, target="/named", source="data", no_copy=True, read_only=True),
        MountSpec(kind=MountKind.TMPFS, target="/scratch", options=("size=1m",)),
    )
    made = await engine.create(spec("true", mounts=mounts), None)
    views = {view.target: view for view in engine.describe(made.id).mounts}
    assert views["/named"].name == "data"
    assert views["/named"].source.endswith("/volumes/data/_data")
    assert not views["/named"].writable
    assert len(views["/anonymous"].name) == 64
    assert views["/scratch"].source == ""
    with pytest.raises(Conflict, match="volume is in use"):
        await engine.remove_volume("data")
    assert (await engine.prune_volumes(PruneFilters(), all=True)).deleted == ()
    usage = await engine.disk_usage()
    assert [volume.references for volume in usage.volumes] == [1, 1]
    assert [made.id] == [view.instance.id for view in usage.instances]
    assert {usage.images[0].id: 0} == usage.shared_bytes
    await engine.remove(made.id, volumes=True)
    assert [volume.name for volume in engine.volumes.list()] == ["data"]


async def test_an_image_in_use(engine: Engine) -> None:
    made = await engine.create(spec("true"), None)
    with pytest.raises(Conflict, match="is using its referenced image"):
        await engine.remove_image(IMAGE)
    await engine.remove(made.id)
    await engine.remove_image(IMAGE)


async def test_which_caches_of_builds_are_pruned(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: 100 * number for number, name in enumerate(("one", "two", "three", "four"), start=1)}

    async def size(name: str) -> int:
        return sizes[name]

    monkeypatch.setattr(engine.volumes, "size", size)
    for name in sizes:
        await engine.volumes.create(name, labels={CACHE_LABEL: "", name: ""})
    await engine.volumes.create("data")

    async def pruned(*labels: str, ids: tuple[str, ...] = (), keep_bytes: int = 0) -> tuple[str, ...]:
        filters = PruneFilters(labels=labels)
        report = await prune_caches(
            engine, filters, chosen=lambda cache: not ids or cache.ident in ids, keep_bytes=keep_bytes
        )
        return report.deleted

    assert () == await pruned(ids=("none", "data"))
    assert ("two",) == await pruned(ids=("two", "data"))
    assert () == await pruned(keep_bytes=800)
    assert ("one",) == await pruned(keep_bytes=700)
    assert () == await pruned("two")
    context = Contexts(engine.settings).take("key", "context")
    context.size_bytes = 100
    Contexts(engine.settings).give_back(context)
    assert ["local source for context"] == [c.description for c in await list_contexts(engine)]
    assert () == await pruned(keep_bytes=800)
    assert ("three", "four", context.ident) == await pruned()
    assert ["data"] == [volume.name for volume in engine.volumes.list()]


async def test_prune_takes_what_does_not_run(engine: Engine) -> None:
    running = await engine.create(spec("sleep", "infinity"), None)
    await engine.start_instance(running.id)
    kept = await engine.create(spec("true", labels={"keep": "yes"}), None)
    gone = await engine.create(spec("true"), None)
    report = await engine.prune_instances(PruneFilters(not_labels=("keep",)))
    assert report.deleted == (gone.id,)
    assert {record.id for record in engine.list(all=True)} == {running.id, kept.id}
    info = engine.info()
    assert (info.running, info.paused, info.stopped, info.images) == (1, 0, 1, 1)
    assert info.id == engine.info().id


async def test_update(engine: Engine) -> None:
    made = await engine.create(spec("sleep", "infinity"), None)
    await engine.start_instance(made.id)
    limits = Limits(memory_bytes=64 * 1024 * 1024)
    await engine.update(made.id, limits=limits, restart=RestartPolicy(name="always"))
    record = engine.find(made.id)
    assert (record.spec.limits, record.spec.restart.name, record.state) == (limits, "always", State.RUNNING)
    assert (await engine.sample(made.id)).memory_limit_bytes == limits.memory_bytes
    with pytest.raises(InvalidRequest):
        await engine.update(made.id, limits=Limits(memory_bytes=1))
