"""Forks and restores on a backend that copies nothing: what becomes of names, files and records."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from insula.engine.copies import free_names, spec_of_copy
from insula.engine.engine import Engine
from insula.engine.snapshots import BEFORE
from insula.errors import Conflict, InvalidRequest, NameInUse, NotFound
from insula.isolation.plan import GuestMachine, LaunchPlan
from insula.model.instance import State
from insula.model.isolation import Isolation
from insula.model.network import NetworkSpec, PortBinding

from .rooms import FaultyBackend, World, spec

MACHINE = GuestMachine(vcpus=2, memory_mib=77)


@dataclass
class Machine:
    machine: GuestMachine = MACHINE
    pause_ns: int = 5


class CopyingBackend(FaultyBackend):
    """A copy begins its command anew.  `break_copies` of the next ones cannot start."""

    def __init__(self) -> None:
        super().__init__(Isolation.VM)
        self.break_copies = 0
        self.reason = ""
        self.copied: list[tuple[LaunchPlan, str]] = []

    def check_copyable(self, instance_id: str) -> None:
        if self.reason:
            raise InvalidRequest(self.reason)

    @contextlib.asynccontextmanager
    async def capture(
        self, instance_id: str, upper_disk: str, *, leave_running: bool = True
    ) -> AsyncIterator[Machine]:
        self._break("capture")
        Path(upper_disk).write_text(f"disk of {instance_id}")
        yield Machine()
        if not leave_running:
            await self.signal(instance_id, 9)

    async def save(self, captured: Machine, directory: str) -> None:
        self._break("save")
        for name in ("machine.json", "ram", "state"):
            Path(directory, name).write_text(name)

    async def load(self, directory: str) -> Machine:
        return Machine()

    async def launch_copy(self, plan: LaunchPlan, captured: Machine, how: str) -> int:
        await asyncio.sleep(0)
        if self.break_copies:
            self.break_copies -= 1
            raise Conflict("this copy is broken")
        self.copied.append((plan, how))
        return await self.launch(plan)


@pytest.fixture
def backend(world: World) -> CopyingBackend:
    made = CopyingBackend()
    made.fate = world.fate
    world.backends[Isolation.VM] = made
    return made


async def run(engine: Engine, name: str, **fields: object) -> str:
    made = await engine.create(spec("sleep", "infinity", isolation=Isolation.VM, **fields), name)
    await engine.start_instance(made.id)
    return made.id


def names(engine: Engine) -> set[str]:
    return {one.name for one in engine.list(all=True)}


async def test_each_copy_is_told_of_and_a_broken_one_leaves_nothing(
    world: World, backend: CopyingBackend
) -> None:
    engine = await world.engine()
    source = await run(engine, "web", ports=(PortBinding(container_port=80, host_port=8080),))
    backend.break_copies = 1
    forked = await engine.fork("web", count=3)
    assert ["web-1", "web-2", "web-3"] == [copy.name for copy in forked.copies]
    assert 1 == sum(bool(copy.error) for copy in forked.copies)
    assert 5 == forked.pause_ns
    assert "port 8080" in forked.warnings[0]
    there = [copy for copy in forked.copies if copy.id]
    assert {"web", *(copy.name for copy in there)} == names(engine)
    assert {source, *(copy.id for copy in there)} == set(os.listdir(f"{world.settings.data_root}/instances"))
    for copy in there:
        record, plan = engine.find(copy.id), world.store.get_plan(copy.id)
        assert State.RUNNING is record.state
        assert copy.id[:12] == record.config.hostname
        assert (0,) == tuple(port.host_port for port in record.spec.ports)
        assert plan is not None
        assert (
            f"disk of {source}"
            == Path(f"{world.settings.data_root}/instances/{copy.id}/upper.ext4").read_text()
        )
    assert {MACHINE} == {plan.machine for plan, _ in backend.copied}
    [broken] = [copy.name for copy in forked.copies if copy.error]
    assert [broken] == [copy.name for copy in (await engine.fork("web")).copies]  # its name is free
    await engine.stop()


async def test_when_no_copy_came_to_be_the_reason_is_raised(world: World, backend: CopyingBackend) -> None:
    engine = await world.engine()
    await run(engine, "web")
    backend.break_copies = 2
    with pytest.raises(Conflict, match="this copy is broken"):
        await engine.fork("web", count=2)
    backend.break_at = "capture"
    with pytest.raises(Conflict, match="broken at capture"):
        await engine.fork("web")
    assert {"web"} == names(engine)
    [directory] = os.listdir(f"{world.settings.data_root}/instances")
    assert ["upper.ext4"] == [
        n for n in os.listdir(f"{world.settings.data_root}/instances/{directory}") if "ext4" in n
    ]
    await engine.stop()


async def test_what_is_asked_wrongly_is_refused_before_anything_is_copied(
    world: World, backend: CopyingBackend
) -> None:
    engine = await world.engine()
    await run(engine, "web")
    await run(engine, "web-b-2")
    backend.break_at = "capture"  # it must not come to that
    for count in (0, 101):
        with pytest.raises(InvalidRequest, match="Count: a fork makes 1 to 100 copies"):
            await engine.fork("web", count=count)
    with pytest.raises(NameInUse):
        await engine.fork("web", name="web-b-2")
    with pytest.raises(NameInUse):
        await engine.fork("web", name="web-b", count=2)
    with pytest.raises(InvalidRequest, match="Invalid container name"):
        await engine.fork("web", name="/a/b")
    backend.reason = "its files are elsewhere"
    with pytest.raises(InvalidRequest, match="elsewhere"):
        await engine.fork("web")
    plain = await engine.create(spec("sleep", "infinity"), "plain")
    await engine.start_instance(plain.id)
    with pytest.raises(InvalidRequest, match="only a virtual machine's memory"):
        await engine.fork("plain")
    await engine.stop()


async def test_a_snapshot_that_cannot_be_kept_ends_nothing(world: World, backend: CopyingBackend) -> None:
    engine = await world.engine()
    one = await run(engine, "web")
    backend.break_at = "save"
    with pytest.raises(Conflict, match="broken at save"):
        await engine.make_snapshot("web", "first", leave_running=False)
    assert State.RUNNING is engine.find(one).state
    assert () == engine.snapshots()
    assert [] == os.listdir(f"{world.settings.data_root}/instances/{one}/snapshots")
    with pytest.raises(NotFound, match="checkpoint first does not exist"):
        await engine.restore("web", "first")
    await engine.stop()


def prepare_image(world: World, instance_id: str) -> None:
    """The plan's image disk is nowhere in this world: a snapshot needs a file."""
    image = f"{world.directory}/image.erofs"
    Path(image).write_text("image")
    text = world.store.get_plan(instance_id)
    assert text is not None
    world.store.put_plan(instance_id, text.replace("/nowhere/image.erofs", image))


async def test_a_restore_that_fails_or_is_cut_leaves_the_disk_as_it_was(
    world: World, backend: CopyingBackend
) -> None:
    first = await world.engine()
    one = await run(first, "web", stop_timeout_s=0)
    prepare_image(world, one)
    await first.stop()
    engine = await world.engine()
    await engine.make_snapshot("web", "first", leave_running=False)
    assert (State.EXITED, 137) == (engine.find(one).state, engine.find(one).exit_code)
    disk = Path(f"{world.settings.data_root}/instances/{one}/upper.ext4")
    disk.write_text("newer")
    backend.break_copies = 1
    with pytest.raises(Conflict, match="this copy is broken"):
        await engine.restore("web", "first")
    assert "newer" == disk.read_text()
    await engine.restore("web", "first")
    assert f"disk of {one}" == disk.read_text()
    assert "snapshot first" == backend.copied[-1][1]
    await engine.kill("web")
    await engine.stop()
    # a daemon that died between putting the old disk aside and the workload's running
    os.rename(disk, f"{disk}{BEFORE}")
    disk.write_text("half")
    world.store.begin_operation(one, "start", "")
    after = await world.engine()
    assert f"disk of {one}" == disk.read_text()
    assert not os.path.exists(f"{disk}{BEFORE}")
    assert 128 == after.find(one).exit_code
    await after.remove("web")
    assert () == after.snapshots()
    await after.stop()


def test_names_and_what_two_cannot_have() -> None:
    assert ["a-2", "a-4"] == list(free_names("a", 2, {"a-1", "a-3"}))
    before = spec("true", isolation=Isolation.VM, mac_address="02:00:00:00:00:09")
    assert replace(before, mac_address="") == spec_of_copy(before)
    chosen = NetworkSpec(
        name="lan", ipv4_address="10.0.0.2", ipv6_address="fd00::2", link_local=("fe80::2",), aliases=("web",)
    )
    (left,) = spec_of_copy(replace(before, networks=(chosen,))).networks or ()
    assert left == NetworkSpec(name="lan", aliases=("web",))
