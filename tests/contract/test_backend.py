"""What every backend promises (`isolation.backend`), tried on each: fake, process and vm."""

from __future__ import annotations

import asyncio
import io
import signal
import tarfile
from collections.abc import AsyncIterator, Callable

import pytest

from contract.benches import Bench
from insula.engine.records import parse_record
from insula.errors import CommandNotExecutable, CommandNotFound, NoSuchInstance, NoSuchPath
from insula.isolation.backend import Backend, Liveness
from insula.isolation.plan import ExecPlan, LaunchPlan, Process
from insula.model.ids import make_id
from insula.model.instance import ExitStatus
from insula.model.limits import Limits
from insula.model.stream import Channel, Chunk, Stream

Make = Callable[..., LaunchPlan]

WAIT_FOREVER = "echo up; while true; do sleep 1; done"


async def drain(stream: Stream) -> dict[Channel, bytes]:
    """Everything to the end, by channel."""
    found = {Channel.STDOUT: b"", Channel.STDERR: b""}
    while (chunk := await stream.read()) is not None:
        found[chunk.channel] += chunk.data
    return found


async def until(stream: Stream, text: bytes) -> bytes:
    found = b""
    while text not in found:
        chunk = await stream.read()
        assert chunk is not None, found
        found += chunk.data
    return found


def log_of(plan: LaunchPlan) -> dict[Channel, bytes]:
    found = {Channel.STDOUT: b"", Channel.STDERR: b""}
    with open(plan.console.log_path, "rb") as file:
        for line in file.read().splitlines():
            record = parse_record(line)
            assert record is not None, line
            found[record.channel] += record.data + (b"" if record.partial else b"\n")
    return found


async def run(bench: Bench, plan: LaunchPlan) -> tuple[ExitStatus, dict[Channel, bytes]]:
    await bench.backend.launch(plan)
    stream = await bench.backend.attach(plan.id)
    await bench.backend.release(plan.id)
    output = await drain(stream)
    await stream.close()
    return await bench.backend.wait(plan.id), output


async def start(bench: Bench, plan: LaunchPlan, text: bytes = b"up\n") -> Stream:
    """Running, and it has said `text`."""
    await bench.backend.launch(plan)
    stream = await bench.backend.attach(plan.id)
    await bench.backend.release(plan.id)
    await until(stream, text.rstrip())
    return stream


def exec_plan(*args: str, **fields: object) -> ExecPlan:
    open_stdin = bool(fields.pop("open_stdin", False))
    process = Process(args=args, env=("PATH=/bin", "COLOUR=red"), **fields)  # type: ignore[arg-type]
    return ExecPlan(id=make_id(), process=process, open_stdin=open_stdin)


async def run_exec(bench: Bench, plan: LaunchPlan, *args: str) -> tuple[int, dict[Channel, bytes]]:
    running = await bench.backend.exec(plan.id, exec_plan(*args))
    output = await drain(running.stream)
    code = await running.wait()
    await running.stream.close()
    return code, output


async def restart(bench: Bench) -> Backend:
    """What the next daemon has."""
    second = bench.restarted()
    if second is not bench.backend:
        await bench.backend.stop()
        await second.start()
        bench.backend = second
    return second


async def launch_and_release(bench: Bench, plan: LaunchPlan) -> None:
    await bench.backend.launch(plan)
    await bench.backend.release(plan.id)


async def test_output_log_and_exit_code(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo $COLOUR; echo oops >&2; exit 7")
    status, output = await run(bench, plan)
    assert status.code == 7
    assert not status.oom_killed
    assert output == {Channel.STDOUT: b"blue\n", Channel.STDERR: b"oops\n"}
    assert log_of(plan) == output
    again = await asyncio.gather(*(bench.backend.wait(plan.id) for _ in range(3)))
    assert [each.code for each in again] == [7, 7, 7]


async def test_nothing_runs_before_release(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo ran")
    await bench.backend.launch(plan)
    await bench.backend.discard(plan)
    with pytest.raises(NoSuchInstance):
        await bench.backend.release(plan.id)
    try:
        assert log_of(plan)[Channel.STDOUT] == b""
    except FileNotFoundError:
        pass


async def test_user_directory_and_host_name(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "id -u; pwd; hostname", user="1000:1000", cwd="/home/ann")
    status, output = await run(bench, plan)
    assert (status.code, output[Channel.STDOUT]) == (0, b"1000\n/home/ann\nisle\n")


async def test_input_to_its_end(bench: Bench, make: Make) -> None:
    plan = make("cat", open_stdin=True, stdin_once=True)
    await bench.backend.launch(plan)
    stream = await bench.backend.attach(plan.id)
    await bench.backend.release(plan.id)
    reading = asyncio.create_task(drain(stream))
    sent = b"0123456789abcdef" * 4096
    for _ in range(8):
        await stream.write(sent)
    await stream.close_stdin()
    assert (await reading)[Channel.STDOUT] == sent * 8
    assert (await bench.backend.wait(plan.id)).code == 0
    await stream.close()


async def test_much_output_is_complete_in_stream_and_log(bench: Bench, make: Make) -> None:
    plan = make("seq", "1", "20000")
    _, output = await run(bench, plan)
    expected = b"".join(b"%d\n" % n for n in range(1, 20001))
    assert output[Channel.STDOUT] == expected
    assert log_of(plan)[Channel.STDOUT] == expected


async def test_every_client_sees_the_output_and_a_client_that_goes_does_no_harm(
    bench: Bench, make: Make
) -> None:
    plan = make("sh", "-c", "echo up; cat; echo end", open_stdin=True)
    first = await start(bench, plan)
    second, third = await bench.backend.attach(plan.id), await bench.backend.attach(plan.id)
    await third.close()
    await first.write(b"one\n")
    assert await until(second, b"one") == b"one\n"
    await first.close()
    await bench.backend.signal(plan.id, signal.SIGKILL)
    await drain(second)
    assert (await bench.backend.wait(plan.id)).code == 137
    await second.close()


async def test_a_program_that_is_not_there(bench: Bench, make: Make) -> None:
    plan = make("nonsense", "--help")
    with pytest.raises(CommandNotFound, match="nonsense"):
        await launch_and_release(bench, plan)
    await bench.backend.discard(plan)


async def test_a_program_that_cannot_be_executed(bench: Bench, make: Make) -> None:
    plan = make("/etc/greeting")
    if isinstance(bench.backend, _fake()):
        async with bench.backend.files(plan) as files:
            await files.put("/etc", tar_of("greeting", b"hello"), no_overwrite_dir=False, copy_owner=False)
    with pytest.raises(CommandNotExecutable, match="greeting"):
        await launch_and_release(bench, plan)
    await bench.backend.discard(plan)


async def test_signals(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", f"trap 'exit 9' TERM; {WAIT_FOREVER}")
    if isinstance(bench.backend, _fake()):  # its shell has no loops
        plan = make("sh", "-c", "trap 'exit 9' TERM; echo up; sleep 1000")
    stream = await start(bench, plan)
    await bench.backend.signal(plan.id, signal.SIGTERM)
    assert (await bench.backend.wait(plan.id)).code == 9
    await stream.close()


async def test_execs(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; cat", open_stdin=True)
    stream = await start(bench, plan)
    assert await run_exec(bench, plan, "sh", "-c", "echo $COLOUR; echo oops >&2; exit 5") == (
        5,
        {Channel.STDOUT: b"red\n", Channel.STDERR: b"oops\n"},
    )
    several = await asyncio.gather(*(run_exec(bench, plan, "echo", str(n)) for n in range(4)))
    assert [output[Channel.STDOUT] for _, output in several] == [b"0\n", b"1\n", b"2\n", b"3\n"]
    with pytest.raises(CommandNotFound):
        await bench.backend.exec(plan.id, exec_plan("nonsense"))

    echo = await bench.backend.exec(plan.id, exec_plan("cat", open_stdin=True))
    await echo.stream.write(b"to and fro")
    await echo.stream.close_stdin()
    assert (await drain(echo.stream))[Channel.STDOUT] == b"to and fro"
    assert await echo.wait() == 0

    killed = await bench.backend.exec(plan.id, exec_plan("sh", "-c", "echo begun; exec sleep 1000"))
    assert await killed.stream.read() == Chunk(Channel.STDOUT, b"begun\n")
    await killed.kill()
    assert await killed.wait() == 137
    await killed.kill()  # it has ended
    assert await killed.stream.read() is None

    hanging = await bench.backend.exec(plan.id, exec_plan("sleep", "1000"))
    assert hanging.pid > 0
    await bench.backend.signal(plan.id, signal.SIGKILL)
    assert (await bench.backend.wait(plan.id)).code == 137
    assert await hanging.wait() != 0
    await stream.close()


async def test_terminals(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; cat", tty=True, open_stdin=True)
    stream = await start(bench, plan, b"up")
    await bench.backend.resize(plan.id, 33, 99)
    running = await bench.backend.exec(
        plan.id, exec_plan("stty", "size", tty=True, console_rows=40, console_cols=120)
    )
    assert (await drain(running.stream))[Channel.STDOUT] == b"40 120\r\n"
    assert await running.wait() == 0
    await bench.backend.signal(plan.id, signal.SIGKILL)
    await bench.backend.wait(plan.id)
    await stream.close()


async def test_a_terminal_outlives_who_sits_at_it(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; cat", tty=True, open_stdin=True)
    first = await start(bench, plan, b"up")
    await first.close_stdin()
    await first.close()
    second = await bench.backend.attach(plan.id)
    await second.write(b"back\n")
    await until(second, b"back")
    await bench.backend.signal(plan.id, signal.SIGKILL)
    assert (await bench.backend.wait(plan.id)).code == 137
    await second.close()


async def test_usage_and_processes(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; cat", open_stdin=True)
    stream = await start(bench, plan)
    sample = await bench.backend.sample(plan.id)
    assert sample.memory_bytes > 0
    assert sample.cpu_total_ns > 0
    assert sample.taken_ns > 0
    table = await bench.backend.processes(plan.id, ())
    assert all(len(row) == len(table.titles) for row in table.rows)
    assert any("cat" in cell for row in table.rows for cell in row)
    await bench.backend.update(plan.id, Limits())
    await bench.backend.signal(plan.id, signal.SIGKILL)
    await bench.backend.wait(plan.id)
    await stream.close()


async def test_files_running_and_stopped(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; cat", open_stdin=True, stdin_once=True)
    stream = await start(bench, plan)
    async with bench.backend.files(plan) as files:
        await files.put("/tmp", tar_of("one", b"first"), no_overwrite_dir=False, copy_owner=False)
        assert (await files.stat("/tmp/one")).size == 5
        with pytest.raises(NoSuchPath):
            await files.stat("/tmp/nothing")
    code, output = await run_exec(bench, plan, "cat", "/tmp/one")
    assert (code, output[Channel.STDOUT]) == (0, b"first")
    await run_exec(bench, plan, "sh", "-c", "echo second > /tmp/two")
    await stream.close_stdin()
    assert (await bench.backend.wait(plan.id)).code == 0
    await stream.close()
    await bench.backend.discard(plan)
    async with bench.backend.files(plan) as files:
        assert await members(files.get("/tmp/two")) == {"two": b"second\n"}
        assert {change.path for change in await files.changes()} >= {"/tmp/one", "/tmp/two"}
        names = await members(files.export())
        assert names["tmp/one"] == b"first"


async def test_recovery_of_one_that_runs(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; cat", open_stdin=True)
    stream = await start(bench, plan)
    await stream.write(b"x")
    await until(stream, b"x")
    second = await restart(bench)
    await stream.close()
    assert await second.recover(plan) is Liveness.RUNNING
    code, output = await run_exec(bench, plan, "echo", "hi")
    assert (code, output[Channel.STDOUT]) == (0, b"hi\n")
    fresh = await second.attach(plan.id)
    await fresh.write(b"again\n")
    await until(fresh, b"again")
    await second.freeze(plan.id, True)
    await fresh.close()
    third = await restart(bench)
    assert await third.recover(plan) is Liveness.PAUSED
    await third.freeze(plan.id, False)
    await third.signal(plan.id, signal.SIGKILL)
    assert (await third.wait(plan.id)).code == 137


async def test_recovery_of_one_that_ended_meanwhile(bench: Bench, make: Make) -> None:
    plan = make("sh", "-c", "echo up; exit 6")
    await run(bench, plan)
    second = await restart(bench)
    assert await second.recover(plan) is Liveness.EXITED
    assert (await second.wait(plan.id)).code == 6
    await second.discard(plan)
    assert await second.recover(plan) is Liveness.GONE


async def test_discard_at_any_time(bench: Bench, make: Make) -> None:
    never = make("true")
    await bench.backend.discard(never)
    assert await bench.backend.recover(never) is Liveness.GONE
    running = make("sh", "-c", "echo up; cat", open_stdin=True)
    stream = await start(bench, running)
    await bench.backend.discard(running)
    await bench.backend.discard(running)
    assert await bench.backend.recover(running) is Liveness.GONE
    await stream.close()


async def test_what_is_not_launched_is_not_there(bench: Bench) -> None:
    nobody = make_id()
    for verb in (
        bench.backend.signal(nobody, signal.SIGTERM),
        bench.backend.wait(nobody),
        bench.backend.attach(nobody),
        bench.backend.resize(nobody, 1, 1),
        bench.backend.freeze(nobody, True),
        bench.backend.exec(nobody, exec_plan("true")),
        bench.backend.sample(nobody),
        bench.backend.processes(nobody, ()),
    ):
        with pytest.raises(NoSuchInstance):
            await verb


def _fake() -> type:
    from insula.isolation.fake import FakeBackend

    return FakeBackend


async def tar_of(name: str, data: bytes) -> AsyncIterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))
    yield buffer.getvalue()


async def members(pieces: AsyncIterator[bytes]) -> dict[str, bytes]:
    """Regular files of an archive, without a leading `./`."""
    raw = b"".join([piece async for piece in pieces])
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {
            member.name.removeprefix("./").lstrip("/"): tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in tar.getmembers()
            if member.isfile()
        }
