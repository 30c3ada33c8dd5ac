from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from insula.engine.engine import Engine
from insula.engine.types import LogQuery, WaitCondition
from insula.errors import (
    CommandNotFound,
    Conflict,
    Failure,
    InvalidRequest,
    NameInUse,
    NoSuchInstance,
    NotModified,
)
from insula.model.instance import State
from insula.model.isolation import Isolation
from insula.model.network import PortBinding
from insula.model.stream import Channel

from .rooms import World, read_all, shell, spec


async def run(engine: Engine, *command: str, **fields: object) -> str:
    """Created and started; its id."""
    made = await engine.create(spec(*command, **fields), None)
    await engine.start_instance(made.id)
    return made.id


async def lines(engine: Engine, ref: str, **query: object) -> list[bytes]:
    return [line.data async for batch in engine.logs(ref, LogQuery(**query)) for line in batch.records]  # type: ignore[arg-type]


async def test_create_start_wait_remove(world: World, engine: Engine) -> None:
    made = await engine.create(spec("echo", "hi"), "web")
    assert engine.find("web").state is State.CREATED
    ended = engine.wait("web", WaitCondition.NEXT_EXIT)
    await engine.start_instance("web")
    assert (await ended).code == 0
    record = engine.find(made.id)
    assert (record.state, record.exit_code, record.pid) == (State.EXITED, 0, 0)
    assert record.started_ns <= record.finished_ns
    assert await lines(engine, "web") == [b"hi\n"]
    await engine.remove("web")
    with pytest.raises(NoSuchInstance):
        engine.find(made.id)
    assert world.seen() == ["create", "start", "die", "destroy"]
    assert world.networks.connected == {}
    assert world.roots.mounted == set()
    assert os.listdir(f"{world.settings.data_root}/instances") == []
    assert world.store.operations() == []


async def test_a_running_instance_has_its_network_and_root_and_an_exited_one_not(
    world: World, engine: Engine
) -> None:
    one = await run(engine, "sleep", "infinity")
    view = engine.describe(one)
    assert [endpoint.address for endpoint in view.endpoints] == ["172.29.0.2"]
    assert view.plan is not None
    assert view.plan.endpoints == view.endpoints
    assert world.roots.mounted == {view.merged_path}
    await engine.kill(one)
    assert engine.describe(one).endpoints == ()
    assert world.roots.mounted == set()
    assert engine.find(one).exit_code == 137


async def test_etc_files_are_in_the_plan_and_on_the_host(engine: Engine) -> None:
    one = await run(engine, "sleep", "infinity", hostname="island")
    plan = engine.describe(one).plan
    assert plan is not None
    texts = {file.target: file.text for file in plan.etc_files}
    assert texts["/etc/hostname"] == "island\n"
    assert "172.29.0.2\tisland" in texts["/etc/hosts"]
    for file in plan.etc_files:
        with open(file.host_path, encoding="utf-8") as written:
            assert written.read() == file.text


async def test_the_environment_is_docker_s(engine: Engine) -> None:
    made = await engine.create(spec("env", env=("A=1", "HOME=/x"), tty=True), None)
    await engine.start_instance(made.id)
    await engine.wait(made.id)
    found = [line.rstrip() for line in await lines(engine, made.id)]
    assert found == [
        b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"HOSTNAME=" + made.id[:12].encode(),
        b"TERM=xterm",
        b"A=1",
        b"HOME=/x",
    ]


async def test_a_missing_command_leaves_a_created_instance_with_exit_code_127(
    world: World, engine: Engine
) -> None:
    made = await engine.create(spec("nonsense"), None)
    with pytest.raises(CommandNotFound):
        await engine.start_instance(made.id)
    record = engine.find(made.id)
    assert (record.state, record.exit_code) == (State.CREATED, 127)
    assert "nonsense" in record.error
    assert world.networks.connected == {}
    assert world.backend.launched == set()
    assert world.store.operations() == []


@pytest.mark.parametrize("where", ["launch", "release"])
async def test_a_start_that_fails_is_undone_and_can_be_repeated(
    world: World, engine: Engine, where: str
) -> None:
    made = await engine.create(spec("sleep", "infinity"), None)
    world.backend.break_at = where
    exited = asyncio.ensure_future(engine.wait(made.id, WaitCondition.NEXT_EXIT))
    with pytest.raises(Conflict, match=f"broken at {where}"):
        await engine.start_instance(made.id)
    assert world.networks.connected == {}
    assert world.backend.launched == set()
    assert engine.find(made.id).exit_code == 128
    await engine.start_instance(made.id)
    assert engine.find(made.id).state is State.RUNNING
    assert engine.find(made.id).error == ""
    assert not exited.done()  # nothing had run yet
    await engine.kill(made.id, "KILL")
    assert (await exited).code == 137


async def test_too_little_memory_is_told_at_once_and_once(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await engine.create(spec("sleep", "infinity"), None)
    world.backend.oom(made.id)  # it does not run: nobody can mean it
    events = world.events.follow(since_ns=0)
    await engine.start_instance(made.id)
    assert not engine.find(made.id).oom_killed
    for _ in range(2):
        world.backend.oom(made.id)
    assert engine.find(made.id).oom_killed
    await engine.kill(made.id, "KILL")
    assert engine.find(made.id).oom_killed
    seen = []
    async for event in events:
        seen.append(event.action)
        if event.action == "die":
            break
    await events.aclose()  # type: ignore[attr-defined]
    assert 2 == seen.count("oom")  # and not a third time at the end
    await engine.start_instance(made.id)
    assert not engine.find(made.id).oom_killed
    await engine.kill(made.id, "KILL")
    release = world.backend.release

    async def at_once(instance_id: str) -> None:
        await release(instance_id)
        world.backend.oom(instance_id)  # before its start is recorded

    monkeypatch.setattr(world.backend, "release", at_once)
    await engine.start_instance(made.id)
    assert engine.find(made.id).oom_killed


async def test_a_taken_port_undoes_the_start(world: World, engine: Engine) -> None:
    ports = (PortBinding(container_port=80, host_port=8080),)
    await run(engine, "sleep", "infinity", ports=ports)
    made = await engine.create(spec("sleep", "infinity", ports=ports), None)
    with pytest.raises(Failure, match="port is already allocated"):
        await engine.start_instance(made.id)
    assert list(world.networks.connected) != [made.id]
    assert made.id not in world.networks.connected


async def test_a_create_that_fails_leaves_nothing(world: World, engine: Engine) -> None:
    world.roots.broken = "no root today"
    with pytest.raises(Failure, match="no root today"):
        await engine.create(spec("true"), "web")
    assert os.listdir(f"{world.settings.data_root}/instances") == []
    assert os.listdir(f"{world.settings.exec_root}/instances") == []
    assert world.store.operations() == []
    world.roots.broken = ""
    await engine.create(spec("true"), "web")


async def test_names(engine: Engine) -> None:
    await engine.create(spec("true"), "web")
    with pytest.raises(NameInUse):
        await engine.create(spec("true"), "/web")
    with pytest.raises(InvalidRequest):
        await engine.create(spec("true"), "no spaces")
    made = await engine.create(spec("true"), None)
    assert "_" in engine.find(made.id).name
    await engine.rename("web", "shop")
    assert engine.find("/shop").name == "shop"
    await engine.create(spec("true"), "web")
    with pytest.raises(NameInUse):
        await engine.rename("shop", "web")
    with pytest.raises(InvalidRequest):
        await engine.rename("shop", "shop")


async def test_two_creates_of_one_name_at_once(engine: Engine) -> None:
    results = await asyncio.gather(
        *(engine.create(spec("true"), "web") for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(result, NameInUse) for result in results) == 3


async def test_stop_uses_the_stop_signal_then_kills(world: World, engine: Engine) -> None:
    polite = await run(engine, "sh", "-c", "trap 'exit 7' TERM; echo up; sleep infinity")
    await anext(engine.logs(polite, LogQuery(follow=True)))
    await engine.stop_instance(polite)
    assert engine.find(polite).exit_code == 7
    stubborn = await run(engine, "sleep", "infinity")
    await engine.stop_instance(stubborn, timeout_s=0)
    assert engine.find(stubborn).exit_code == 137
    with pytest.raises(NotModified):
        await engine.stop_instance(stubborn)
    assert world.seen().count("stop") == 2


async def test_a_kill_gets_through_while_a_stop_waits(engine: Engine) -> None:
    one = await run(engine, "sleep", "infinity")
    stopping = asyncio.create_task(engine.stop_instance(one, timeout_s=-1))
    await asyncio.sleep(0)
    await engine.kill(one)
    await stopping
    assert engine.find(one).exit_code == 137


async def test_what_docker_refuses(engine: Engine) -> None:
    made = await engine.create(spec("sleep", "infinity"), "web")
    with pytest.raises(Conflict, match=f"Cannot kill container: web: Container {made.id} is not running"):
        await engine.kill("web")
    with pytest.raises(Conflict, match="is not running"):
        await engine.pause("web")
    await engine.start_instance("web")
    with pytest.raises(NotModified):
        await engine.start_instance("web")
    with pytest.raises(
        Conflict,
        match=r'You cannot remove a running container \w+ \("/web"\): .*: stop the container before removing',
    ):
        await engine.remove("web")
    await engine.pause("web")
    assert engine.find("web").state is State.PAUSED
    with pytest.raises(Conflict, match="already paused"):
        await engine.pause("web")
    with pytest.raises(Conflict, match="try unpause instead"):
        await engine.start_instance("web")
    await engine.unpause("web")
    with pytest.raises(Conflict, match="is not paused"):
        await engine.unpause("web")
    with pytest.raises(InvalidRequest, match="invalid signal: NOPE"):
        await engine.kill("web", "NOPE")


async def test_a_paused_instance_can_be_killed_and_removed_by_force(engine: Engine) -> None:
    one = await run(engine, "sleep", "infinity")
    await engine.pause(one)
    await engine.kill(one)
    assert engine.find(one).state is State.EXITED
    two = await run(engine, "sleep", "infinity")
    await engine.pause(two)
    await engine.remove(two, force=True)
    with pytest.raises(NoSuchInstance):
        engine.find(two)


async def test_auto_remove(world: World, engine: Engine) -> None:
    made = await engine.create(spec("sh", "-c", "exit 3", auto_remove=True), None)
    gone = engine.wait(made.id, WaitCondition.REMOVED)
    await engine.start_instance(made.id)
    assert (await gone).code == 3
    assert engine.list(all=True) == ()
    assert world.seen() == ["create", "start", "die", "destroy"]


async def test_auto_remove_after_a_failed_start(engine: Engine) -> None:
    made = await engine.create(spec("nonsense", auto_remove=True), None)
    gone = engine.wait(made.id, WaitCondition.REMOVED)
    with pytest.raises(CommandNotFound):
        await engine.start_instance(made.id)
    assert (await gone).code == 127


async def test_auto_remove_after_a_start_for_which_another_is_missing(engine: Engine) -> None:
    made = await engine.create(spec("true", auto_remove=True, network_mode="container:gone"), None)
    removed = engine.wait(made.id, WaitCondition.REMOVED)
    with pytest.raises(NoSuchInstance):
        await engine.start_instance(made.id)
    async with asyncio.timeout(20):
        await removed  # `docker run --rm` waits for it


async def test_restart_keeps_an_auto_removed_instance(engine: Engine) -> None:
    made = await engine.create(spec("sleep", "infinity", auto_remove=True), None)
    await engine.start_instance(made.id)
    await engine.restart(made.id, timeout_s=0)
    assert engine.find(made.id).state is State.RUNNING
    assert engine.find(made.id).restart_count == 0


async def test_who_is_told_of_an_end_sees_that_it_restarts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await engine.create(spec("sleep", "infinity"), None)
    await engine.start_instance(made.id)
    seen: list[State] = []
    starts = engine._lifecycle.start

    async def start(entry: Any, ref: str) -> Any:
        seen.append(engine.describe(made.id).instance.state)
        return await starts(entry, ref)

    monkeypatch.setattr(engine._lifecycle, "start", start)
    await engine.restart(made.id, timeout_s=0)
    assert [State.RESTARTING] == seen
    assert State.RUNNING is engine.describe(made.id).instance.state
    await engine.stop_instance(made.id, timeout_s=0)
    assert State.EXITED is engine.describe(made.id).instance.state


async def test_wait_conditions(engine: Engine) -> None:
    made = await engine.create(spec("sh", "-c", "exit 4"), None)
    assert (await engine.wait(made.id)).code == 0  # not running: at once
    next_exit = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    removed = engine.wait(made.id, WaitCondition.REMOVED)
    await engine.start_instance(made.id)
    assert (await next_exit).code == 4
    assert (await engine.wait(made.id)).code == 4
    later = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    await engine.remove(made.id)
    assert (await removed).code == 4
    assert (await later).code == 4
    with pytest.raises(NoSuchInstance):
        engine.wait(made.id)


async def test_lookup(engine: Engine) -> None:
    ids = [(await engine.create(spec("true"), f"web{n}")).id for n in range(20)]
    assert engine.find(ids[0][:12]).id == ids[0]
    first = next(d for d in "0123456789abcdef" if sum(i.startswith(d) for i in ids) > 1)
    with pytest.raises(InvalidRequest, match="Multiple IDs found"):
        engine.find(first)
    assert engine.list() == ()
    assert [record.name for record in engine.list(all=True)][:2] == ["web19", "web18"]


async def test_attach_before_start_sees_everything(engine: Engine) -> None:
    made = await engine.create(spec("cat", open_stdin=True, stdin_once=True), None)
    stream = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    writing = asyncio.create_task(stream.write(b"hello"))
    await engine.start_instance(made.id)
    await writing
    await stream.close_stdin()
    assert await read_all(stream) == b"hello"
    assert (await engine.wait(made.id)).code == 0
    await stream.close()


async def test_who_leaves_a_terminal_ends_nothing(engine: Engine) -> None:
    made = await engine.create(spec("cat", tty=True, open_stdin=True, stdin_once=True), None)
    first = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    await engine.start_instance(made.id)
    await first.close_stdin()
    await first.close()
    second = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    await second.write(b"back\n")
    chunk = await second.read()
    assert chunk is not None
    assert b"back" in chunk.data
    await engine.kill(made.id)
    await second.close()


async def test_attach_shows_only_what_was_asked_for(engine: Engine) -> None:
    made = await engine.create(shell("echo out; echo err >&2"), None)
    stream = await engine.attach(made.id, stdin=False, stdout=False, stderr=True, logs=False, stream=True)
    await engine.start_instance(made.id)
    chunk = await stream.read()
    assert chunk is not None
    assert (chunk.channel, chunk.data) == (Channel.STDERR, b"err\n")
    assert await stream.read() is None


async def test_attach_ends_when_the_instance_cannot_start_or_is_removed(engine: Engine) -> None:
    made = await engine.create(spec("nonsense"), None)
    stream = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    with pytest.raises(CommandNotFound):
        await engine.start_instance(made.id)
    assert await stream.read() is None
    second = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    await engine.remove(made.id)
    assert await second.read() is None


async def test_attach_with_logs_has_the_past_and_the_present_once(engine: Engine) -> None:
    made = await engine.create(spec("sh", "-c", "echo past; cat", open_stdin=True, stdin_once=True), None)
    first = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    await engine.start_instance(made.id)
    assert (await first.read()) is not None
    second = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=True, stream=True)
    await first.write(b"one\n")
    await second.write(b"two\n")
    await first.close_stdin()
    assert await read_all(second) == b"past\none\ntwo\n"
    await second.close()
    again = await engine.attach(made.id, stdin=False, stdout=True, stderr=True, logs=True, stream=False)
    assert await read_all(again) == b"past\none\ntwo\n"


async def test_logs_follow_to_the_end(engine: Engine) -> None:
    made = await engine.create(spec("sh", "-c", "echo a; cat", open_stdin=True), None)
    await engine.start_instance(made.id)
    following = asyncio.create_task(lines(engine, made.id, follow=True))
    stream = await engine.attach(made.id, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    await stream.write(b"b\n")
    while (chunk := await stream.read()) is not None and b"b" not in chunk.data:
        pass
    await engine.kill(made.id)
    assert await following == [b"a\n", b"b\n"]
    assert await lines(engine, made.id, tail=1) == [b"b\n"]
    assert await lines(engine, made.id, stdout=False) == []
    await stream.close()


async def test_removal_by_force_while_it_starts(engine: Engine) -> None:
    made = await engine.create(spec("sleep", "infinity"), None)
    starting = asyncio.create_task(engine.start_instance(made.id))
    await asyncio.sleep(0)
    await engine.remove(made.id, force=True)
    await asyncio.gather(starting, return_exceptions=True)
    assert engine.list(all=True) == ()


async def test_both_isolations_go_the_same_way(world: World, engine: Engine) -> None:
    made = await engine.create(spec("echo", "hi", isolation=Isolation.VM), None)
    ended = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    await engine.start_instance(made.id)
    await ended
    view = engine.describe(made.id)
    assert view.plan is not None
    assert view.plan.machine is not None
    assert (view.plan.machine.memory_mib, view.plan.machine.vcpus) == (256, 1)
    assert view.upper_disk
    assert await lines(engine, made.id) == [b"hi\n"]
    await engine.remove(made.id)
