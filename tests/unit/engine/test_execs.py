from __future__ import annotations

import asyncio

import pytest

from insula.engine.engine import Engine
from insula.engine.types import ExecSpec
from insula.errors import CommandNotFound, Conflict, InvalidRequest, NoSuchExec

from .rooms import World, read_all, spec


@pytest.fixture
async def one(engine: Engine) -> str:
    made = await engine.create(spec("sleep", "infinity", env=("A=1",), working_dir="/srv", user="7"), None)
    await engine.start_instance(made.id)
    return made.id


def wanted(*args: str, **fields: object) -> ExecSpec:
    return ExecSpec(args=args, attach_stdout=True, attach_stderr=True, **fields)  # type: ignore[arg-type]


async def run(engine: Engine, ref: str, what: ExecSpec) -> tuple[bytes, int | None]:
    made = await engine.exec_create(ref, what)
    stream = await engine.exec_start(made, detach=False, tty=what.tty)
    assert stream is not None
    output = await read_all(stream)
    await stream.close()
    return output, engine.exec_inspect(made).exit_code


async def test_output_and_code_are_known_together(world: World, engine: Engine, one: str) -> None:
    assert await run(engine, one, wanted("sh", "-c", "echo hi; exit 3")) == (b"hi\n", 3)
    actions = [action for action in world.seen() if action.startswith("exec")]
    assert actions == ["exec_create: sh -c echo hi; exit 3", "exec_start: sh -c echo hi; exit 3", "exec_die"]
    assert world.recent()[-1].attributes["exitCode"] == "3"


async def test_environment_directory_and_user_are_the_instance_s_unless_told_otherwise(
    engine: Engine, one: str
) -> None:
    assert (await run(engine, one, wanted("pwd")))[0] == b"/srv\n"
    assert (await run(engine, one, wanted("pwd", cwd="/")))[0] == b"/\n"
    assert (await run(engine, one, wanted("id", "-u")))[0] == b"7\n"
    assert (await run(engine, one, wanted("id", "-u", user="9:9")))[0] == b"9\n"
    output, _ = await run(engine, one, wanted("env", env=("A=2", "B=3")))
    assert {b"A=2", b"B=3"} < set(output.split())
    assert b"A=1" not in output.split()


async def test_who_has_read_its_first_words_may_come_before_its_start_is_over(
    world: World, engine: Engine
) -> None:
    made = await engine.create(spec("sh", "-c", "echo up; sleep 1000"), None)
    stream = await engine.attach(made.id, stdin=False, stdout=True, stderr=True, logs=False, stream=True)
    world.backend.answers.clear()
    starting = asyncio.create_task(engine.start_instance(made.id))
    assert await stream.read()
    execution = asyncio.create_task(run(engine, made.id, wanted("echo", "hi")))
    table = asyncio.create_task(engine.top(made.id, ()))
    await asyncio.sleep(0)
    assert not any(task.done() for task in (starting, execution, table))
    world.backend.answers.set()
    assert await execution == (b"hi\n", 0)
    assert (await table).rows
    await starting
    await stream.close()


async def test_input(engine: Engine, one: str) -> None:
    made = await engine.exec_create(one, wanted("cat", open_stdin=True, attach_stdin=True))
    stream = await engine.exec_start(made, detach=False, tty=False)
    assert stream is not None
    assert engine.exec_inspect(made).running
    await stream.write(b"hello")
    await stream.close_stdin()
    assert await read_all(stream) == b"hello"
    assert not engine.exec_inspect(made).running


async def test_detached(world: World, engine: Engine, one: str) -> None:
    made = await engine.exec_create(one, ExecSpec(args=("seq", "1", "5000")))
    following = world.events.follow()
    died = asyncio.create_task(anext(event async for event in following if event.action == "exec_die"))
    await asyncio.sleep(0)
    assert await engine.exec_start(made, detach=True, tty=False) is None
    assert (await died).attributes["execID"] == made
    await following.aclose()  # type: ignore[attr-defined]
    assert engine.exec_inspect(made).exit_code == 0


async def test_what_is_refused(engine: Engine, one: str) -> None:
    with pytest.raises(InvalidRequest, match="No exec command specified"):
        await engine.exec_create(one, ExecSpec(args=()))
    with pytest.raises(NoSuchExec):
        engine.exec_inspect("f" * 64)
    made = await engine.exec_create(one, wanted("nonsense"))
    with pytest.raises(CommandNotFound):
        await engine.exec_start(made, detach=False, tty=False)
    assert engine.exec_inspect(made).exit_code == 126
    made = await engine.exec_create(one, wanted("true"))
    await engine.exec_start(made, detach=True, tty=False)
    with pytest.raises(Conflict):
        await engine.exec_start(made, detach=True, tty=False)
    await engine.pause(one)
    with pytest.raises(Conflict, match="unpause the container before exec"):
        await engine.exec_create(one, wanted("true"))
    await engine.kill(one)
    with pytest.raises(Conflict, match="is not running"):
        await engine.exec_create(one, wanted("true"))


async def test_execs_fall_with_their_instance(engine: Engine, one: str) -> None:
    made = await engine.exec_create(one, wanted("sleep", "infinity"))
    unstarted = await engine.exec_create(one, wanted("true"))
    stream = await engine.exec_start(made, detach=False, tty=False)
    assert stream is not None
    await engine.kill(one)
    assert await read_all(stream) == b""
    assert engine.exec_inspect(made).exit_code == 137
    assert made in [view.id for view in engine.describe(one).execs]
    with pytest.raises(NoSuchExec):
        await engine.exec_start(unstarted, detach=True, tty=False)
    await engine.start_instance(one)
    with pytest.raises(NoSuchExec):
        engine.exec_inspect(unstarted)
    await engine.kill(one)
    await engine.remove(one)
    with pytest.raises(NoSuchExec):
        engine.exec_inspect(made)


async def test_only_so_many_are_remembered(engine: Engine, one: str) -> None:
    for _ in range(80):
        await run(engine, one, wanted("true"))
    assert len(engine.describe(one).execs) < 70
