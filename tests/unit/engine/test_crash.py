"""A daemon killed at every write of its store, one after the other: what the next one finds is whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from insula.engine.engine import Engine
from insula.engine.planner import wanted_networks
from insula.engine.types import WaitCondition
from insula.model.instance import RestartPolicy, State
from insula.model.mounts import MountKind, MountSpec
from insula.model.network import NetworkRequest, NetworkSpec

from .rooms import World, spec

MOUNTS = (
    MountSpec(kind=MountKind.VOLUME, target="/data", no_copy=True),
    MountSpec(kind=MountKind.VOLUME, target="/named", source="kept", no_copy=True),
)


async def short_life(engine: Engine) -> None:
    made = await engine.create(spec("true", mounts=MOUNTS), "web")
    ended = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    await engine.start_instance(made.id)
    await ended
    await engine.rename("web", "old")
    await engine.remove(made.id, volumes=True)


async def long_life(engine: Engine) -> None:
    made = await engine.create(spec("sleep", "infinity", mounts=MOUNTS), "web")
    await engine.start_instance(made.id)
    await engine.pause(made.id)
    await engine.unpause(made.id)
    await engine.restart(made.id, timeout_s=0)
    await engine.remove(made.id, force=True, volumes=True)


async def transient(engine: Engine) -> None:
    made = await engine.create(spec("true", mounts=MOUNTS, auto_remove=True), "web")
    gone = engine.wait(made.id, WaitCondition.REMOVED)
    await engine.start_instance(made.id)
    await gone


async def restarting(engine: Engine) -> None:
    policy = RestartPolicy(name="on-failure", maximum_retry_count=1)
    made = await engine.create(spec("false", restart=policy), "web")
    first = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    await engine.start_instance(made.id)
    await first
    await engine.wait(made.id, WaitCondition.NEXT_EXIT)


async def moving(engine: Engine) -> None:
    for name in ("one", "two"):
        await engine.networks.create(NetworkRequest(name=name))
    made = await engine.create(spec("sleep", "infinity", networks=(NetworkSpec(name="one"),)), "web")
    await engine.start_instance(made.id)
    await engine.connect(made.id, NetworkSpec(name="two", aliases=("db",)))
    await engine.disconnect(made.id, "one")
    await engine.disconnect(made.id, "two")
    await engine.connect(made.id, NetworkSpec(name="bridge"))
    await engine.remove(made.id, force=True)


@pytest.mark.parametrize("life", [short_life, long_life, transient, restarting, moving])
async def test_killed_at_every_write(tmp_path: Path, life: object) -> None:
    for writes in range(200):
        world = World(tmp_path / str(writes))
        engine = await world.engine()
        world.fate.writes_left = writes
        living = asyncio.create_task(life(engine))  # type: ignore[operator]
        dying = asyncio.create_task(world.fate.death.wait())  # perhaps in a task that nobody waits for
        await asyncio.wait([living, dying], return_when=asyncio.FIRST_COMPLETED)
        finished = not world.fate.death.is_set()
        for task in (living, dying):
            task.cancel()
        await asyncio.gather(living, dying, return_exceptions=True)
        await engine.stop()
        world.fate.writes_left = None
        world.fate.death.clear()
        await check_next_daemon(world, writes)
        for backend in world.backends.values():
            backend.reboot()
        world.store.close()
        if finished:
            assert writes > 5
            return
    pytest.fail("it never came to its end")


async def check_next_daemon(world: World, writes: int) -> None:
    engine = await world.engine()
    known = engine.list(all=True)
    running = {record.id for record in known if record.state is State.RUNNING}
    assert {record.state for record in known} <= {
        State.CREATED,
        State.RUNNING,
        State.EXITED,
        State.RESTARTING,
        State.PAUSED,
    }, writes
    alive = running | {record.id for record in known if record.state is State.PAUSED}
    assert world.backend.launched == alive, writes
    assert set(world.networks.connected) == alive, writes
    for record in known:
        if record.id in alive:
            wanted = {each.name for each in wanted_networks(record.spec)}
            assert world.backend.networks_of(record.id) == wanted, writes
            assert {e.network_name for e in world.networks.endpoints(record.id)} == wanted, writes
    assert world.store.operations() == []
    for root in (world.settings.data_root, world.settings.exec_root):
        assert set(os.listdir(f"{root}/instances")) <= {record.id for record in known}, writes
    used = {name for record in known for name in record.volumes.values()}
    assert {volume.name for volume in engine.volumes.list() if volume.anonymous} <= used, writes
    for record in known:
        if record.state is State.CREATED and "daemon ended" not in record.error:
            await engine.start_instance(record.id)
        await engine.remove(record.id, force=True, volumes=True)
    assert engine.list(all=True) == ()
    assert world.roots.mounted == set()
    assert world.networks.connected == {}
    assert world.backend.launched == set()
    assert os.listdir(f"{world.settings.data_root}/instances") == []
    await engine.create(spec("true"), "web")
    await engine.stop()
