"""The VM backend with real QEMU, the real guest and the real agent.  Boots are shared where possible."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import signal
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from insula.config import Settings
from insula.errors import (
    CommandNotExecutable,
    CommandNotFound,
    Conflict,
    InsulaError,
    NoSuchPath,
    UnsupportedField,
)
from insula.isolation.backend import Files, Liveness
from insula.isolation.plan import ExecPlan, LaunchPlan, Process, Security
from insula.isolation.vm.backend import VmBackend
from insula.isolation.vm.record import read_record
from insula.model.files import ChangeKind
from insula.model.instance import ExitStatus
from insula.model.limits import Limits, Ulimit
from insula.model.mounts import EtcFile, Mount, MountKind
from insula.model.stream import Channel, Stream
from insula.security import capabilities
from insula.system.pidfd import Watch
from integration.isolation.machines import Workshop, make_image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.vm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, guest_cache: Path) -> Workshop:
    base = tmp_path_factory.mktemp("vm")
    (base / "data").mkdir()
    for name in ("guest", "templates"):
        (base / "data" / name).symlink_to(guest_cache.parent / name)
    return Workshop(str(base), make_image(str(base)))


def settings_of(workshop: Workshop) -> Settings:
    return Settings(
        data_root=f"{workshop.base}/data", exec_root=f"{workshop.base}/run", accel="tcg", vm_disk_gib=1
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(workshop: Workshop) -> AsyncIterator[VmBackend]:
    one = VmBackend(settings_of(workshop))
    await one.start()
    assert one.info().problem == ""
    yield one
    await one.stop()


@contextlib.asynccontextmanager
async def started(backend: VmBackend, plan: LaunchPlan) -> AsyncIterator[Stream]:
    """Launched, attached, released; discarded at the end."""
    backend.check(plan)
    try:
        await backend.launch(plan)
        stream = await backend.attach(plan.id)
        await backend.release(plan.id)
        yield stream
    finally:
        await backend.discard(plan)


async def drain(stream: Stream) -> tuple[bytes, bytes]:
    out, err = bytearray(), bytearray()
    while (chunk := await stream.read()) is not None:
        (err if chunk.channel is Channel.STDERR else out).extend(chunk.data)
    return bytes(out), bytes(err)


async def until(stream: Stream, text: bytes) -> bytes:
    seen = bytearray()
    while text not in seen:
        chunk = await stream.read()
        assert chunk is not None, bytes(seen)
        seen += chunk.data
    return bytes(seen)


async def run_exec(
    backend: VmBackend, plan: LaunchPlan, *args: str, stdin: bytes | None = None, **more: object
) -> tuple[int, bytes, bytes]:
    process = Process(args=args, env=("PATH=/bin",), **more)  # type: ignore[arg-type]
    one = await backend.exec(plan.id, ExecPlan(id="e", process=process, open_stdin=stdin is not None))
    if stdin is not None:
        await one.stream.write(stdin)
        await one.stream.close_stdin()
    out, err = await drain(one.stream)
    code = await one.wait()
    await one.stream.close()
    return code, out, err


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(backend: VmBackend, workshop: Workshop) -> AsyncIterator[LaunchPlan]:
    """One VM that sleeps, for the tests that only look or exec."""
    share = Path(workshop.base) / "share"
    (share / "below").mkdir(parents=True)
    (share / "note").write_text("from the host\n")
    only = Path(workshop.base) / "only.conf"
    only.write_text("one file\n")
    plan = workshop.plan(
        "sh", "-c", "echo up; exec sleep 1000",
        limits=Limits(pids=200, ulimits=(Ulimit(name="nofile", soft=777, hard=888),)),
        mounts=(
            Mount(kind=MountKind.BIND, target="/share", source=str(share), tag="m0"),
            Mount(kind=MountKind.BIND, target="/fixed", source=str(share), tag="m1", read_only=True),
            Mount(kind=MountKind.BIND, target="/etc/only.conf", source=str(only), tag="m2"),
            Mount(kind=MountKind.TMPFS, target="/scratch", options=("size=1m",)),
        ),
        etc_files=(EtcFile(target="/etc/hosts", text="127.0.0.1\tlocalhost\n", host_path=""),),
    )  # fmt: skip
    async with started(backend, plan) as stream:
        await until(stream, b"up")
        yield plan


async def test_a_run_gives_output_log_and_exit_code(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sh", "-c", "cat /etc/greeting; hostname; uname -r; echo bad >&2; exit 3")
    before = time.time_ns()
    async with started(backend, plan) as stream:
        out, err = await drain(stream)
        status = await backend.wait(plan.id)
        log = Path(plan.console.log_path).read_text()
    assert out.splitlines()[:2] == [b"hello from the image", b"isle"]
    assert out.splitlines()[2].decode() != os.uname().release
    assert err == b"bad\n"
    assert (3, False, "") == (status.code, status.oom_killed, status.error)
    assert before <= status.finished_at_ns <= time.time_ns()
    assert ["stdout F hello from the image", "stderr F bad"] == [
        line.partition(" ")[2] for line in log.splitlines() if "hello" in line or "bad" in line
    ]
    assert not os.path.exists(f"{plan.run_dir}/vm.json")


async def test_execs_have_codes_users_and_input(backend: VmBackend, shared: LaunchPlan) -> None:
    assert (7, b"", b"") == await run_exec(backend, shared, "sh", "-c", "exit 7")
    assert (0, b"x" * 300_000, b"") == await run_exec(backend, shared, "cat", stdin=b"x" * 300_000)
    code, out, _ = await run_exec(backend, shared, "id", user="ann")
    assert code == 0
    assert b"uid=1000(ann) gid=1000(ann)" in out
    assert b"friends" in out
    several = await asyncio.gather(
        *(run_exec(backend, shared, "sh", "-c", f"sleep 0.2; echo {n}; exit {n}") for n in range(5))
    )
    assert [(n, f"{n}\n".encode(), b"") for n in range(5)] == several


async def test_a_missing_or_unexecutable_command_says_so(backend: VmBackend, shared: LaunchPlan) -> None:
    with pytest.raises(CommandNotFound):
        await run_exec(backend, shared, "no-such-thing")
    with pytest.raises(CommandNotExecutable):
        await run_exec(backend, shared, "/etc/greeting")


async def test_an_exec_with_a_terminal_is_resized_and_merged(backend: VmBackend, shared: LaunchPlan) -> None:
    process = Process(args=("sh",), env=("PATH=/bin",), tty=True, console_rows=20, console_cols=70)
    one = await backend.exec(shared.id, ExecPlan(id="t", process=process, open_stdin=True))
    await one.stream.write(b"stty size\n")
    await until(one.stream, b"20 70")
    await one.resize(33, 99)
    await one.stream.write(b"stty size; exit 4\n")
    await until(one.stream, b"33 99")
    assert 4 == await one.wait()


async def test_limits_mounts_and_rights_reach_the_workload(
    backend: VmBackend, shared: LaunchPlan, workshop: Workshop
) -> None:
    async def shell(text: str, **more: object) -> str:
        code, out, err = await run_exec(backend, shared, "sh", "-c", text, **more)
        assert code == 0, err
        return out.decode().strip()

    assert "777" == await shell("ulimit -Sn")
    assert "from the host" == await shell("cat /share/note")
    await shell("echo back > /share/below/answer")
    assert "back\n" == (Path(workshop.base) / "share" / "below" / "answer").read_text()
    assert "refused" == await shell("echo x 2>/dev/null > /fixed/note || echo refused")
    assert "refused" == await shell("mount -o remount,rw /fixed 2>/dev/null || echo refused")
    assert "one file" == await shell("cat /etc/only.conf")
    assert "127.0.0.1\tlocalhost" == await shell("cat /etc/hosts")
    assert "1" == await shell("dd if=/dev/zero of=/scratch/big bs=1M count=2 2>/dev/null; echo $?")
    mask = int(
        await shell("while read k v; do [ $k = CapEff: ] && echo $v; done < /proc/self/status; true"), 16
    )
    assert mask.bit_count() == len(capabilities.DEFAULT)


async def test_read_only_mounts_hold_against_the_guests_root(
    backend: VmBackend, shared: LaunchPlan, workshop: Workshop
) -> None:
    """A privileged exec may remount what its kernel sees; the host still refuses to write."""
    process = Process(
        args=("sh", "-c", "mount -o remount,rw /fixed; echo x > /fixed/note"), env=("PATH=/bin",)
    )
    one = await backend.exec(shared.id, ExecPlan(id="p", process=process, privileged=True))
    await drain(one.stream)
    assert 0 != await one.wait()
    assert "from the host\n" == (Path(workshop.base) / "share" / "note").read_text()


async def test_qemu_is_confined(backend: VmBackend, shared: LaunchPlan) -> None:
    record = read_record(shared.run_dir)
    assert record is not None
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{record.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(record.uid)] * 4
    assert record.uid >= 1_500_000
    assert {"0000000000000000"} == {status[k] for k in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")}
    assert ("1", "2") == (status["NoNewPrivs"], status["Seccomp"])
    for namespace in ("mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{record.pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
    assert not os.path.exists(f"/proc/{record.pid}/root/etc/passwd")
    assert not os.path.exists(f"/proc/{record.pid}/root{shared.run_dir}")


async def test_samples_and_processes_are_told(backend: VmBackend, shared: LaunchPlan) -> None:
    sample = await backend.sample(shared.id)
    assert sample.memory_bytes > 32 << 20
    assert sample.memory_limit_bytes == 128 << 20
    assert sample.cpu_total_ns > 0
    assert sample.pids >= 1
    table = await backend.processes(shared.id, ["-ef"])
    assert ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD") == table.titles
    assert any("sleep 1000" in row[-1] for row in table.rows)
    with pytest.raises(UnsupportedField):
        await backend.processes(shared.id, ["--forest"])


async def test_a_paused_vm_stands_still_and_goes_on(backend: VmBackend, shared: LaunchPlan) -> None:
    await backend.freeze(shared.id, True)
    with pytest.raises(Conflict):
        await run_exec(backend, shared, "true")
    await backend.freeze(shared.id, False)
    assert (0, b"", b"") == await run_exec(backend, shared, "true")


async def test_limits_change_live_as_far_as_the_guest_reaches(backend: VmBackend, shared: LaunchPlan) -> None:
    same = shared.limits

    async def maximum(name: str) -> str:
        return (await run_exec(backend, shared, "cat", f"/sys/fs/cgroup/{name}.max"))[1].decode().strip()

    least = dataclasses.replace(same, pids=40, memory_bytes=32 << 20, nano_cpus=500_000_000)
    before = [await maximum(name) for name in ("memory", "pids")]
    assert () == await backend.update(shared.id, least)
    assert [str(32 << 20), "40"] == [await maximum(name) for name in ("memory", "pids")]
    (warning,) = await backend.update(shared.id, dataclasses.replace(same, memory_bytes=1 << 40))
    assert "MiB for its workload until its next start" in warning
    assert int(await maximum("memory")) < 1 << 32
    with pytest.raises(Conflict, match="shm size"):
        await backend.update(shared.id, dataclasses.replace(same, shm_size_bytes=1))
    assert () == await backend.update(shared.id, same)
    assert before == [await maximum(name) for name in ("memory", "pids")]


async def test_input_is_half_closed_and_reaches_its_end(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sh", "-c", "wc -c; echo after", open_stdin=True, stdin_once=True)
    async with started(backend, plan) as stream:
        await stream.write(b"y" * 1_000_000)
        await stream.close_stdin()
        out, _ = await drain(stream)
        assert [b"1000000", b"after"] == out.split()
        assert 0 == (await backend.wait(plan.id)).code


async def test_a_signal_reaches_the_workload(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sh", "-c", "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.1; done")
    async with started(backend, plan) as stream:
        await until(stream, b"up")
        await backend.signal(plan.id, signal.SIGTERM)
        await until(stream, b"caught")
        assert 5 == (await backend.wait(plan.id)).code


async def test_a_killed_vm_ends_with_137_and_keeps_what_it_wrote(
    backend: VmBackend, workshop: Workshop
) -> None:
    plan = workshop.plan("sh", "-c", "echo kept > /root/note; echo up; sleep 1000")
    async with started(backend, plan) as stream:
        await until(stream, b"up")
        await backend.signal(plan.id, signal.SIGKILL)
        status = await backend.wait(plan.id)
    assert (137, "") == (status.code, status.error)
    again = dataclasses.replace(plan.process, args=("cat", "/root/note"))
    async with started(backend, dataclasses.replace(plan, process=again)) as stream:
        assert (b"kept\n", b"") == await drain(stream)


async def test_a_paused_vm_can_be_killed(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sleep", "1000")
    async with started(backend, plan):
        await backend.freeze(plan.id, True)
        await backend.signal(plan.id, signal.SIGKILL)
        assert 137 == (await backend.wait(plan.id)).code


async def test_a_command_that_is_not_there_fails_the_start(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("no-such-program")
    try:
        await backend.launch(plan)
        with pytest.raises(CommandNotFound):
            await backend.release(plan.id)
        assert isinstance(await backend.wait(plan.id), ExitStatus)
    finally:
        await backend.discard(plan)


async def test_running_out_of_memory_is_reported(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sh", "-c", "tail /dev/zero", memory_mib=96)
    async with started(backend, plan):
        status = await backend.wait(plan.id)
    assert status.oom_killed
    assert 137 == status.code


async def test_a_guest_panic_is_reported(backend: VmBackend, workshop: Workshop) -> None:
    rights = Security(capabilities=capabilities.ALL, seccomp="", privileged=True)
    plan = workshop.plan(
        "sh", "-c", "mount -t proc proc /tmp; echo 1 > /tmp/sys/kernel/sysrq; echo c > /tmp/sysrq-trigger",
        security=rights,
    )  # fmt: skip
    async with started(backend, plan):
        status = await backend.wait(plan.id)
    assert 137 == status.code
    assert "panicked" in status.error


async def archive_of(files: Files, path: str) -> dict[str, bytes]:
    raw = b"".join([piece async for piece in files.get(path)])
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {m.name: tar.extractfile(m).read() if m.isfile() else b"" for m in tar}  # type: ignore[union-attr]


def make_archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 100_000):
        yield data[at : at + 100_000]


async def test_files_go_in_and_out_of_a_running_vm(backend: VmBackend, shared: LaunchPlan) -> None:
    async with backend.files(shared) as files:
        found = await files.stat("/etc/greeting")
        assert ("greeting", 21, 0o644) == (found.name, found.size, found.mode)
        assert {"greeting": b"hello from the image\n"} == await archive_of(files, "/etc/greeting")
        big = os.urandom(1_500_000)
        await files.put(
            "/root", pieces(make_archive(big=big, small=b"s")), no_overwrite_dir=False, copy_owner=False
        )
        assert {"big": big} == await archive_of(files, "/root/big")
        with pytest.raises(NoSuchPath):
            await files.stat("/nowhere")
        with pytest.raises(NoSuchPath):
            await archive_of(files, "/nowhere")
        with pytest.raises(NoSuchPath):
            await files.put("/nowhere", pieces(make_archive(a=b"")), no_overwrite_dir=False, copy_owner=False)
        changed = {change.path: change.kind for change in await files.changes()}
        assert ChangeKind.ADDED is changed["/root/big"]
        assert ChangeKind.MODIFIED is changed["/root"]


async def test_files_of_a_stopped_vm_come_from_a_helper(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sh", "-c", "echo kept > /root/note; rm /etc/greeting")
    async with started(backend, plan) as stream:
        await drain(stream)
        assert 0 == (await backend.wait(plan.id)).code
    async with backend.files(plan) as files:
        assert {"note": b"kept\n"} == await archive_of(files, "/root/note")
        await files.put("/root", pieces(make_archive(more=b"m")), no_overwrite_dir=False, copy_owner=False)
    async with backend.files(plan) as files:
        changed = [(change.path, change.kind) for change in await files.changes()]
        assert ("/etc/greeting", ChangeKind.DELETED) in changed
        layer = b"".join([piece async for piece in files.layer()])
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            names = {member.name.removeprefix("./") for member in tar}
        assert {"etc/.wh.greeting", "root/note", "root/more"} <= names
        whole = b"".join([piece async for piece in files.export()])
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            names = {member.name.removeprefix("./") for member in tar}
        assert {"bin/busybox", "root/note"} <= names
        assert "etc/greeting" not in names
    async with started(backend, dataclasses.replace(plan, process=dataclasses.replace(
        plan.process, args=("cat", "/root/more")
    ))) as stream:  # fmt: skip
        assert (b"m", b"") == await drain(stream)
    assert [] == os.listdir(plan.run_dir)


async def test_a_vm_that_ended_while_nobody_looked_is_known(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sh", "-c", "read x; exit 9", open_stdin=True, stdin_once=True)
    first = VmBackend(settings_of(workshop))
    await first.start()
    pid = await first.launch(plan)
    stream = await first.attach(plan.id)
    await first.release(plan.id)
    await stream.close_stdin()
    watch = Watch(pid)
    await first.stop()
    await watch.wait()
    watch.close()
    assert Liveness.EXITED is await backend.recover(plan)
    assert 9 == (await backend.wait(plan.id)).code
    await backend.discard(plan)
    assert [] == os.listdir(plan.run_dir)


async def test_a_hypervisor_that_was_killed_is_an_error(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sleep", "1000")
    async with started(backend, plan):
        record = read_record(plan.run_dir)
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        status = await backend.wait(plan.id)
    assert 137 == status.code
    assert "without saying" in status.error


async def test_a_launch_that_fails_leaves_nothing(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("true", user="nobody-of-that-name")
    with pytest.raises(InsulaError):
        async with started(backend, plan):
            pass
    assert [] == os.listdir(plan.run_dir)
    assert [] == list(Path("/sys/fs/cgroup").glob(f"**/insula/{plan.id}"))


async def test_vms_outlive_the_daemon_and_are_found_again(backend: VmBackend, workshop: Workshop) -> None:
    """Everything that a new backend knows it reads from the run directory and asks the agent."""
    plan = workshop.plan("sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.1; done")
    first = VmBackend(settings_of(workshop))
    await first.start()
    await first.launch(plan)
    stream = await first.attach(plan.id)
    await first.release(plan.id)
    await until(stream, b"up")
    await first.stop()

    second = VmBackend(settings_of(workshop))
    await second.start()
    try:
        assert Liveness.RUNNING is await second.recover(plan)
        assert (0, b"again\n", b"") == await run_exec(second, plan, "echo", "again")
        await second.freeze(plan.id, True)
        await second.stop()

        third = VmBackend(settings_of(workshop))
        await third.start()
        assert Liveness.PAUSED is await third.recover(plan)
        await third.freeze(plan.id, False)
        await third.signal(plan.id, signal.SIGTERM)
        assert 6 == (await third.wait(plan.id)).code
        await third.stop()

        assert Liveness.EXITED is await second.recover(plan)
        assert 6 == (await second.wait(plan.id)).code
    finally:
        await second.discard(plan)
    assert Liveness.GONE is await second.recover(plan)
    await second.stop()
