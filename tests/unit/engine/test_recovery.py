"""What the next daemon makes of what the last one left.  `abandon` is a kill -9: nothing told or undone."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sqlite3
from pathlib import Path

import pytest

from insula.engine.engine import Engine
from insula.engine.types import ExecSpec, LogQuery, WaitCondition
from insula.errors import Conflict
from insula.model.instance import RestartPolicy, State

from .rooms import World, read_all, shell, spec

ALWAYS = RestartPolicy(name="always")
UNLESS_STOPPED = RestartPolicy(name="unless-stopped")


async def abandon(engine: Engine) -> None:
    await engine.stop()


async def running(engine: Engine, *command: str, **fields: object) -> str:
    made = await engine.create(spec(*(command or ("sleep", "infinity")), **fields), None)
    await engine.start_instance(made.id)
    return made.id


async def test_a_running_instance_goes_on_and_is_watched_again(world: World) -> None:
    first = await world.engine()
    one = await running(first, "sh", "-c", "echo before; cat", open_stdin=True, stdin_once=True)
    await anext(first.logs(one, LogQuery(follow=True)))
    await abandon(first)
    second = await world.engine()
    assert second.find(one).state is State.RUNNING
    assert world.networks.recovered_with == {one}
    stream = await second.attach(one, stdin=True, stdout=True, stderr=True, logs=True, stream=True)
    ended = second.wait(one, WaitCondition.NEXT_EXIT)
    await stream.write(b"after\n")
    await stream.close_stdin()
    assert await read_all(stream) == b"before\nafter\n"
    assert (await ended).code == 0
    assert world.roots.mounted == set()
    with pytest.raises(Conflict, match="is not running"):
        await second.exec_create(one, ExecSpec(args=("true",)))
    await second.stop()


async def test_an_exec_works_after_recovery(world: World) -> None:
    first = await world.engine()
    one = await running(first)
    await abandon(first)
    second = await world.engine()
    made = await second.exec_create(one, ExecSpec(args=("echo", "hi"), attach_stdout=True))
    stream = await second.exec_start(made, detach=False, tty=False)
    assert stream is not None
    assert await read_all(stream) == b"hi\n"
    assert second.exec_inspect(made).exit_code == 0
    await second.stop()


async def test_what_ended_meanwhile_is_recorded_with_its_code(world: World) -> None:
    first = await world.engine()
    one = await running(first, "sh", "-c", "cat; exit 9", open_stdin=True, stdin_once=True)
    two = await running(first, "sh", "-c", "cat; exit 8", open_stdin=True, stdin_once=True, auto_remove=True)
    streams = [
        await first.attach(i, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
        for i in (one, two)
    ]
    await abandon(first)
    for stream in streams:
        await stream.close_stdin()
        await read_all(stream)
    second = await world.engine()
    assert (second.find(one).state, second.find(one).exit_code) == (State.EXITED, 9)
    assert [record.id for record in second.list(all=True)] == [one]
    assert world.networks.connected == {}
    await second.stop()


async def test_a_paused_instance_is_still_paused(world: World) -> None:
    first = await world.engine()
    one = await running(first)
    await first.pause(one)
    await abandon(first)
    second = await world.engine()
    assert second.find(one).state is State.PAUSED
    await second.unpause(one)
    await second.kill(one)
    await second.stop()


async def test_after_a_reboot_everything_is_exited_with_255(world: World) -> None:
    first = await world.engine()
    one, two = await running(first), await running(first, auto_remove=True)
    await abandon(first)
    world.backend.reboot()
    world.roots.mounted.clear()
    second = await world.engine()
    assert (second.find(one).state, second.find(one).exit_code) == (State.EXITED, 255)
    assert [record.id for record in second.list(all=True)] == [one]
    assert two not in world.networks.connected
    await second.start_instance(one)
    assert second.find(one).state is State.RUNNING
    await second.stop()


async def test_restart_policies_after_a_reboot(world: World) -> None:
    first = await world.engine()
    always = await running(first, restart=ALWAYS)
    stopped = await running(first, restart=UNLESS_STOPPED)
    unstopped = await running(first, restart=UNLESS_STOPPED)
    plain = await running(first)
    never = (await first.create(spec("sleep", "infinity", restart=ALWAYS), None)).id
    await first.stop_instance(stopped, timeout_s=0)
    await first.stop_instance(always, timeout_s=0)
    await abandon(first)
    world.backend.reboot()
    starts = world.seen().count("start")
    second = await world.engine()
    following = world.events.follow(since_ns=0)
    async for event in following:
        starts -= event.action == "start"
        if starts == -2:
            break
    await following.aclose()  # type: ignore[attr-defined]
    assert {i: second.find(i).state for i in (always, stopped, unstopped, plain, never)} == {
        always: State.RUNNING,
        stopped: State.EXITED,
        unstopped: State.RUNNING,
        plain: State.EXITED,
        never: State.CREATED,
    }
    await second.stop()


async def test_a_create_cut_in_its_middle_leaves_nothing(world: World) -> None:
    first = await world.engine()
    half = "a" * 64
    world.store.begin_operation(half, "create")
    os.makedirs(f"{world.settings.data_root}/instances/{half}/upper")
    os.makedirs(f"{world.settings.exec_root}/instances/{half}")
    await abandon(first)
    second = await world.engine()
    assert os.listdir(f"{world.settings.data_root}/instances") == []
    assert os.listdir(f"{world.settings.exec_root}/instances") == []
    assert world.store.operations() == []
    await second.stop()


async def test_directories_without_a_record_or_journal_go_too(world: World) -> None:
    os.makedirs(f"{world.settings.data_root}/instances/{'b' * 64}")
    os.makedirs(f"{world.settings.data_root}/instances/not-ours")
    engine = await world.engine()
    assert os.listdir(f"{world.settings.data_root}/instances") == ["not-ours"]
    await engine.stop()


async def test_a_start_cut_in_its_middle_is_undone(world: World) -> None:
    first = await world.engine()
    made = await first.create(spec("sleep", "infinity"), None)
    await first.start_instance(made.id)  # launched, and then put back to how the store was before
    await abandon(first)
    record = world.store.get_instance(made.id)
    assert record is not None
    world.store.put_instance(dataclasses.replace(record, state=State.CREATED, started_ns=0, pid=0))
    world.store.begin_operation(made.id, "start")
    second = await world.engine()
    assert second.find(made.id).state is State.CREATED
    assert "daemon ended" in second.find(made.id).error
    assert world.backend.launched == set()
    assert world.networks.connected == {}
    await second.start_instance(made.id)
    await second.stop()


async def test_a_removal_cut_in_its_middle_is_finished(world: World) -> None:
    first = await world.engine()
    made = await first.create(spec("true"), "web")
    world.store.begin_operation(made.id, "remove")
    await abandon(first)
    second = await world.engine()
    assert second.list(all=True) == ()
    await second.create(spec("true"), "web")
    await second.stop()


async def test_an_unreadable_plan_is_an_end_not_a_crash(world: World) -> None:
    first = await world.engine()
    one = await running(first)
    await abandon(first)
    world.store.put_plan(one, '{"version": "from the future"}')
    second = await world.engine()
    assert (second.find(one).state, second.find(one).exit_code) == (State.EXITED, 255)
    await second.remove(one)
    await second.stop()


async def test_an_instance_that_waits_for_its_restart_still_does(world: World) -> None:
    first = await world.engine()
    made = await first.create(shell("exit 1", restart=ALWAYS), None)
    die = first.wait(made.id, WaitCondition.NEXT_EXIT)
    await first.start_instance(made.id)
    await die
    await abandon(first)
    assert world.store.get_instance(made.id).state is State.RESTARTING  # type: ignore[union-attr]
    second = await world.engine()
    assert second.find(made.id).state is State.RESTARTING
    await second.wait(made.id, WaitCondition.NEXT_EXIT)
    assert second.find(made.id).restart_count >= 1
    await second.remove(made.id, force=True)
    await second.stop()


async def test_stopping_the_daemon_cuts_followers_short_and_leaves_instances_alone(world: World) -> None:
    engine = await world.engine()
    one = await running(engine)
    waiting = asyncio.ensure_future(engine.wait(one, WaitCondition.NEXT_EXIT))
    await engine.stop()
    assert world.backend.launched == {one}
    assert not waiting.done()
    waiting.cancel()


async def test_logs_have_no_gap_over_a_restart_of_the_daemon(world: World, tmp_path: Path) -> None:
    first = await world.engine()
    one = await running(first, "sh", "-c", "seq 1 50; cat; seq 51 100", open_stdin=True, stdin_once=True)
    stream = await first.attach(one, stdin=True, stdout=True, stderr=True, logs=False, stream=True)
    await abandon(first)
    second = await world.engine()
    following = second.logs(one, LogQuery(follow=True))
    seen: list[int] = []
    async for batch in following:
        seen += [int(record.data) for record in batch.records]
        if len(seen) == 50:
            await stream.close_stdin()
    assert seen == list(range(1, 101))
    await second.stop()


async def test_an_instance_whose_record_is_damaged_is_told_of(world: World) -> None:
    first = await world.engine()
    made = await first.create(spec("true"), None)
    await abandon(first)
    with sqlite3.connect(f"{world.settings.data_root}/insula.db") as raw:
        raw.execute("UPDATE instances SET record = '{'")
    raw.close()
    second = await world.engine()
    assert () == second.list(all=True)
    assert any(f"instances {made.id}" in warning for warning in second.info().warnings)
    await second.stop()
