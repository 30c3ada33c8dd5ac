"""The fake backend keeps the promises of the seam that engine tests rely on."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from insula.errors import CommandNotExecutable, CommandNotFound, NoSuchInstance
from insula.isolation.backend import Liveness
from insula.isolation.fake import FakeBackend
from insula.isolation.plan import Console, ExecPlan, LaunchPlan, Process, Security
from insula.model.files import Change, ChangeKind
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.root import DirectoryRoot
from insula.model.stream import Channel, Stream

ROOT = DirectoryRoot(merged="/m", lowers=(), upper="/u", work="/w")


def make_plan(*args: str, log: Path | None = None, stdin: bool = False, init: bool = False) -> LaunchPlan:
    return LaunchPlan(
        id="a" * 64,
        isolation=Isolation.PROCESS,
        state_dir="/s",
        run_dir="/r",
        hostname="h",
        process=Process(args=args, env=("PATH=/bin", "NAME=x")),
        console=Console(open_stdin=stdin, stdin_once=stdin, log_path=str(log or "")),
        limits=Limits(),
        security=Security(capabilities=(), seccomp=""),
        directory=ROOT,
        init=init,
    )


async def drain(stream: Stream) -> list[tuple[Channel, bytes]]:
    found = []
    while chunk := await stream.read():
        found.append((chunk.channel, chunk.data))
    return found


async def run(*args: str, log: Path | None = None) -> tuple[int, list[tuple[Channel, bytes]]]:
    backend, plan = FakeBackend(), make_plan(*args, log=log)
    await backend.launch(plan)
    stream = await backend.attach(plan.id)
    await backend.release(plan.id)
    output = await drain(stream)
    status = await backend.wait(plan.id)
    await backend.discard(plan)
    return status.code, output


async def test_output_and_exit_code_of_a_shell_script() -> None:
    code, output = await run("sh", "-c", "echo $NAME; echo oops >&2; false || exit 7")
    assert code == 7
    assert output == [(Channel.STDOUT, b"x\n"), (Channel.STDERR, b"oops\n")]


async def test_log_is_in_the_cri_format(tmp_path: Path) -> None:
    await run("sh", "-c", "echo one; printf two", log=tmp_path / "log")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["stdout F one", "stdout P two"]


async def test_stdin_reaches_its_end_when_the_client_half_closes() -> None:
    backend, plan = FakeBackend(), make_plan("cat", stdin=True)
    await backend.launch(plan)
    stream = await backend.attach(plan.id)
    await backend.release(plan.id)
    await stream.write(b"hello")
    await stream.close_stdin()
    assert await drain(stream) == [(Channel.STDOUT, b"hello")]
    assert (await backend.wait(plan.id)).code == 0


async def test_a_reader_that_does_not_read_stops_the_program() -> None:
    backend, plan = FakeBackend(), make_plan("yes")
    await backend.launch(plan)
    stream = await backend.attach(plan.id)
    await backend.release(plan.id)
    for _ in range(2000):
        await asyncio.sleep(0)
    assert stream._size <= 300_000
    await backend.signal(plan.id, signal.SIGKILL)
    assert (await backend.wait(plan.id)).code == 137


@pytest.mark.parametrize(("init", "expected"), [(True, 143), (False, 137)])
async def test_first_process_ignores_term_unless_there_is_an_init(init: bool, expected: int) -> None:
    backend, plan = FakeBackend(), make_plan("sleep", "infinity", init=init)
    await backend.launch(plan)
    await backend.release(plan.id)
    await asyncio.sleep(0)
    await backend.signal(plan.id, signal.SIGTERM)
    await backend.signal(plan.id, signal.SIGKILL)
    assert (await backend.wait(plan.id)).code in (expected, 137)


async def test_a_trap_handles_a_signal() -> None:
    backend, plan = (
        FakeBackend(),
        make_plan("sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; sleep infinity"),
    )
    await backend.launch(plan)
    stream = await backend.attach(plan.id)
    await backend.release(plan.id)
    assert await stream.read() is not None
    await asyncio.sleep(0)
    await backend.signal(plan.id, signal.SIGTERM)
    assert await drain(stream) == [(Channel.STDOUT, b"bye\n")]
    assert (await backend.wait(plan.id)).code == 3


async def test_exec_runs_beside_and_ends_with_the_instance() -> None:
    backend, plan = FakeBackend(), make_plan("sleep", "infinity")
    await backend.launch(plan)
    await backend.release(plan.id)
    one = await backend.exec(plan.id, ExecPlan(id="e", process=Process(args=("sh", "-c", "exit 4"), env=())))
    assert await one.wait() == 4
    two = await backend.exec(plan.id, ExecPlan(id="f", process=Process(args=("sleep", "infinity"), env=())))
    await backend.signal(plan.id, signal.SIGKILL)
    assert await two.wait() == 137
    with pytest.raises(CommandNotFound):
        await backend.launch(make_plan("nonesuch").__class__(**{**_fields(make_plan("nonesuch")), "id": "b"}))


def _fields(plan: LaunchPlan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


async def test_programs_that_cannot_run() -> None:
    backend = FakeBackend()
    with pytest.raises(CommandNotFound):
        await backend.launch(make_plan("nonesuch"))
    with pytest.raises(CommandNotExecutable):
        await backend.launch(make_plan("/etc/passwd"))
    with pytest.raises(NoSuchInstance):
        await backend.release("a" * 64)


async def test_files_survive_the_process_and_are_diffed() -> None:
    backend, plan = FakeBackend(), make_plan("sh", "-c", "echo hi > /tmp/new; rm /etc/os-release")
    await backend.launch(plan)
    await backend.release(plan.id)
    await backend.wait(plan.id)
    await backend.discard(plan)
    async with backend.files(plan) as files:
        assert await files.changes() == (
            Change("/etc", ChangeKind.MODIFIED),
            Change("/etc/os-release", ChangeKind.DELETED),
            Change("/tmp", ChangeKind.MODIFIED),
            Change("/tmp/new", ChangeKind.ADDED),
        )
        pieces = [piece async for piece in files.get("/tmp/new")]
        assert b"hi\n" in b"".join(pieces)


async def test_recover_after_a_restart_and_after_a_reboot() -> None:
    backend, plan = FakeBackend(), make_plan("sleep", "infinity")
    assert await backend.recover(plan) is Liveness.GONE
    await backend.launch(plan)
    await backend.release(plan.id)
    assert await backend.recover(plan) is Liveness.RUNNING
    await backend.freeze(plan.id, True)
    assert await backend.recover(plan) is Liveness.PAUSED
    backend.reboot()
    assert await backend.recover(plan) is Liveness.GONE
