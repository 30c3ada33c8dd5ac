"""What only the process backend promises: confinement, limits, the host left as it was, both runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from contract.benches import ProcessBench, make_plan, make_tree
from insula.config import Settings
from insula.errors import UnsupportedField
from insula.isolation.plan import Device, ExecPlan, LaunchPlan, Process, Security
from insula.isolation.process.backend import ProcessBackend
from insula.isolation.process.spec import cgroup_name
from insula.model.limits import Limits, Ulimit
from insula.model.mounts import EtcFile, Mount, MountKind
from insula.model.stream import Channel
from insula.security.capabilities import finalize_capabilities
from insula.security.paths import MASKED_PATHS, READONLY_PATHS
from insula.security.seccomp import read_default_profile
from insula.system import cgroups, mounts

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
MIB = 1024 * 1024
CONFINED = Security(
    capabilities=finalize_capabilities(),
    seccomp=read_default_profile(),
    masked_paths=MASKED_PATHS,
    readonly_paths=READONLY_PATHS,
)
Make = Callable[..., LaunchPlan]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = make_tree(str(tmp_path_factory.mktemp("tree") / "root"))
    for applet in ("mount", "grep", "df", "dd", "hostname", "unshare", "chroot"):
        with contextlib.suppress(FileExistsError):
            os.symlink("busybox", f"{root}/bin/{applet}")
    return root


@pytest.fixture(params=["crun", "runc"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path, tree: str) -> AsyncIterator[ProcessBench]:
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    made = ProcessBench(str(tmp_path), tree)
    made.backend = ProcessBackend(
        Settings(data_root=f"{tmp_path}/data", exec_root=f"{tmp_path}/run", runtime=request.param)
    )
    await made.backend.start()
    problem = made.backend.info().problem
    if not problem:
        yield made
    await made.backend.stop()
    if problem:
        pytest.skip(problem)
    assert mounts.mount_points(str(tmp_path)) == ()


@pytest.fixture
async def make(bench: ProcessBench, tmp_path: Path) -> AsyncIterator[Make]:
    plans: list[LaunchPlan] = []

    def one(*args: str, **fields: object) -> LaunchPlan:
        plans.append(make_plan(bench, str(tmp_path), *args, **{"security": CONFINED, **fields}))
        return plans[-1]

    yield one
    layout = cgroups.find_layout()
    for plan in plans:
        await bench.backend.discard(plan)
        bench.clean(plan)
        assert not any(os.path.exists(path) for path in layout.directories(cgroup_name(plan)))
        assert os.listdir(plan.run_dir) == []


async def say(bench: ProcessBench, plan: LaunchPlan) -> tuple[int, str]:
    """Exit code, and everything that it said on either channel."""
    await bench.backend.launch(plan)
    stream = await bench.backend.attach(plan.id)
    await bench.backend.release(plan.id)
    said = b""
    while (chunk := await stream.read()) is not None:
        said += chunk.data
    await stream.close()
    return (await bench.backend.wait(plan.id)).code, said.decode()


async def test_default_confinement(bench: ProcessBench, make: Make) -> None:
    script = (
        "exec 2>/dev/null; grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status;"
        "mount -t tmpfs x /tmp || echo no mount;"
        "unshare -m true || echo no unshare; unshare -U true || echo no user namespace;"
        "cat /proc/kcore | wc -c; echo 1 > /proc/sysrq-trigger || echo no sysrq;"
        "echo x > /sys/x || echo no sys; hostname"
    )
    code, said = await say(bench, make("sh", "-c", script))
    assert code == 0
    for line in (
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "Seccomp:\t2",
        "NoNewPrivs:\t0",
        "no mount",
        "no unshare",
        "no user namespace",
        "0",
        "no sysrq",
        "no sys",
        "isle",
    ):
        assert line in said.splitlines()


async def test_a_user_has_no_capabilities_and_its_groups(bench: ProcessBench, make: Make) -> None:
    plan = make(
        "sh", "-c", "id; pwd; echo $HOME; grep CapEff /proc/self/status", user="ann", cwd="/new/place"
    )
    plan = replace(plan, process=replace(plan.process, groups=("77",)))
    code, said = await say(bench, plan)
    assert code == 0
    assert said.splitlines() == [
        "uid=1000(ann) gid=1000(ann) groups=77,1000(ann)",
        "/new/place",
        "/home/ann",
        "CapEff:\t0000000000000000",
    ]


async def test_privileged_may_mount_and_sees_devices(bench: ProcessBench, make: Make) -> None:
    security = Security(capabilities=(), seccomp="", privileged=True)
    script = (
        "mount -t tmpfs x /tmp && echo mounted; test -e /dev/kmsg && echo kmsg;"
        "grep Seccomp: /proc/self/status"
    )
    code, said = await say(bench, make("sh", "-c", script, security=security))
    assert code == 0
    assert said.splitlines() == ["mounted", "kmsg", "Seccomp:\t0"]


async def test_limits_are_the_kernels(bench: ProcessBench, make: Make) -> None:
    limits = Limits(
        memory_bytes=64 * MIB,
        pids=50,
        nano_cpus=500_000_000,
        shm_size_bytes=MIB,
        ulimits=(Ulimit(name="nofile", soft=100, hard=200),),
    )
    plan = make("sh", "-c", "ulimit -n; ulimit -Hn; df -k /dev/shm | grep shm", limits=limits)
    await bench.backend.launch(plan)
    layout, group = cgroups.find_layout(), cgroup_name(plan)
    sample = await bench.backend.sample(plan.id)
    assert sample.memory_limit_bytes == 64 * MIB
    assert sample.pids_limit == 50
    if layout.version == 1:
        assert cgroups.read_number(f"{layout.path('cpu', group)}/cpu.cfs_quota_us") == 50_000
    await bench.backend.update(plan.id, Limits(memory_bytes=128 * MIB, pids=60))
    sample = await bench.backend.sample(plan.id)
    assert (sample.memory_limit_bytes, sample.pids_limit) == (128 * MIB, 60)
    stream = await bench.backend.attach(plan.id)
    await bench.backend.release(plan.id)
    said = b""
    while (chunk := await stream.read()) is not None:
        said += chunk.data
    await stream.close()
    assert said.decode().split()[:4] == ["100", "200", "shm", "1024"]


async def test_out_of_memory_is_reported(bench: ProcessBench, make: Make) -> None:
    plan = make("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", limits=Limits(memory_bytes=20 * MIB))
    await bench.backend.launch(plan)
    await bench.backend.release(plan.id)
    status = await bench.backend.wait(plan.id)
    assert (status.code, status.oom_killed) == (137, True)


async def test_out_of_memory_is_told_while_it_runs(bench: ProcessBench, make: Make) -> None:
    """Each time, and to the next daemon if there is none."""
    script = "dd if=/dev/zero of=/dev/null bs=200M; sleep 1000"
    told: asyncio.Queue[str] = asyncio.Queue()
    bench.backend.tell_oom(told.put_nowait)
    plan = make("sh", "-c", script, limits=Limits(memory_bytes=20 * MIB))
    await bench.backend.launch(plan)
    await bench.backend.release(plan.id)
    assert plan.id == await told.get()
    mark = Path(plan.run_dir) / "oom"
    assert not mark.exists()
    mark.touch()  # as if nobody had seen it
    assert plan.id == await told.get()
    bench.backend._oom.forget(plan.id)
    mark.touch()
    bench.backend._oom.watch(plan.id, plan.run_dir)
    bench.backend._oom.look(plan.id)
    assert plan.id == await told.get()
    assert told.empty()


async def test_one_that_may_not_be_killed_tells_that_it_stands_still(bench: ProcessBench, make: Make) -> None:
    if cgroups.find_layout().version == 2:
        pytest.skip("cgroup version 2 has no such containers")
    told: asyncio.Queue[str] = asyncio.Queue()
    bench.backend.tell_oom(told.put_nowait)
    limits = Limits(memory_bytes=20 * MIB, oom_kill_disable=True)
    plan = make("sh", "-c", "x=a; while :; do x=$x$x$x; done", limits=limits)
    await bench.backend.launch(plan)
    await bench.backend.release(plan.id)
    assert plan.id == await told.get()
    await bench.backend.discard(plan)


async def test_an_ulimit_that_the_daemon_cannot_give_is_named(
    bench: ProcessBench, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    if effective >> 24 & 1:
        pytest.skip("this process has CAP_SYS_RESOURCE")
    plan = make("true", limits=Limits(ulimits=(Ulimit(name="nofile", soft=1, hard=hard + 1),)))
    with pytest.raises(UnsupportedField, match="nofile"):
        bench.backend.check(plan)


async def test_mounts(bench: ProcessBench, make: Make, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("given\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    script = (
        "exec 2>/dev/null; cat /given/file /etc/hosts;"
        "touch /given/x || echo read-only bind; touch /x || echo read-only root;"
        "touch /scratch/x && echo scratch; cat /proc/1/comm"
    )
    plan = make(
        "sh", "-c", script,
        security=replace(CONFINED, read_only_root=True),
        init=True,
        mounts=(
            Mount(kind=MountKind.BIND, target="/given", source=str(tmp_path / "given"), read_only=True),
            Mount(kind=MountKind.TMPFS, target="/scratch"),
        ),
        etc_files=(EtcFile(target="/etc/hosts", text="", host_path=str(tmp_path / "hosts")),),
    )  # fmt: skip
    code, said = await say(bench, plan)
    assert code == 0
    assert said.splitlines() == [
        "given",
        "127.0.0.1 localhost",
        "read-only bind",
        "read-only root",
        "scratch",
        "docker-init",
    ]


async def test_a_mount_made_on_the_host_later_can_be_bound(
    bench: ProcessBench, make: Make, tmp_path: Path
) -> None:
    assert (await say(bench, make("true")))[0] == 0  # the launcher's namespace is there by now
    (tmp_path / "late").mkdir()
    mounts.mount("late", str(tmp_path / "late"), "tmpfs")
    try:
        (tmp_path / "late/file").write_text("late\n")
        bind = Mount(kind=MountKind.BIND, target="/late", source=str(tmp_path / "late"))
        assert await say(bench, make("cat", "/late/file", mounts=(bind,))) == (0, "late\n")
    finally:
        mounts.umount(str(tmp_path / "late"))


async def test_somebody_makes_all_mounts_private(bench: ProcessBench, make: Make) -> None:
    first = make("sh", "-c", "echo seen")
    assert await say(bench, first) == (0, "seen\n")
    assert first.directory is not None
    roots = os.path.dirname(os.path.dirname(first.directory.merged))
    if mounts.is_mounted(roots):  # only where the runtime has a mount namespace of its own
        mounts.make_private(roots)
    for _ in range(2):  # once found, it is mended
        plan = make("sh", "-c", "echo seen; echo kept >/kept")
        assert await say(bench, plan) == (0, "seen\n")
        assert plan.directory is not None
        assert (Path(plan.directory.upper) / "kept").read_text() == "kept\n"


async def test_a_device_is_given_with_its_rules(bench: ProcessBench, make: Make) -> None:
    device = Device(host_path="/dev/zero", path="/dev/mine", rules="r")
    script = "head -c 3 /dev/mine | wc -c; test -e /dev/kmsg || echo no kmsg"
    plan = make("sh", "-c", script, security=replace(CONFINED, devices=(device,)))
    assert await say(bench, plan) == (0, "3\nno kmsg\n")


async def test_many_execs_at_once_and_one_that_is_detached(bench: ProcessBench, make: Make) -> None:
    plan = make("sleep", "1000")
    await bench.backend.launch(plan)
    await bench.backend.release(plan.id)

    def script(text: str, **fields: bool) -> ExecPlan:
        return ExecPlan(id="e", process=Process(args=("sh", "-c", text), env=("PATH=/bin",)), **fields)

    running = await asyncio.gather(*(bench.backend.exec(plan.id, script(f"exit {n}")) for n in range(6)))
    assert await asyncio.gather(*(one.wait() for one in running)) == list(range(6))
    detached = await bench.backend.exec(plan.id, script("echo lost; exec sleep 1000", detach=True))
    await detached.stream.close()
    lost = await bench.backend.exec(plan.id, script("while :; do echo x; done"))
    await lost.stream.close()  # what it says is thrown away, and it goes on
    await bench.backend.signal(plan.id, signal.SIGKILL)
    assert await detached.wait() == 137
    assert await lost.wait() == 137
    for one in running:
        await one.stream.close()


async def test_exec_on_a_terminal(bench: ProcessBench, make: Make) -> None:
    plan = make("sleep", "1000")
    await bench.backend.launch(plan)
    await bench.backend.release(plan.id)
    process = Process(
        args=("sh", "-c", "read x; until stty size | grep '30 60'; do :; done; exit 5"),
        env=("PATH=/bin",),
        tty=True,
        console_rows=20,
        console_cols=50,
    )
    running = await bench.backend.exec(plan.id, ExecPlan(id="e", process=process, open_stdin=True))
    await running.resize(30, 60)
    await running.stream.write(b"\n")
    said = b""
    while (chunk := await running.stream.read()) is not None:
        assert chunk.channel is Channel.STDOUT
        said += chunk.data
    assert b"30 60\r\n" in said
    assert await running.wait() == 5
    await running.stream.close()


async def test_a_monitor_that_is_killed_takes_its_container_along(bench: ProcessBench, make: Make) -> None:
    plan = make("sleep", "1000")
    init = await bench.backend.launch(plan)
    await bench.backend.release(plan.id)
    monitor = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGKILL)
    status = await bench.backend.wait(plan.id)
    assert status.code == 255
    assert "conmon" in status.error


async def test_a_launch_cut_short_leaves_nothing(bench: ProcessBench, make: Make) -> None:
    plan = make("sleep", "1000")
    launching = asyncio.create_task(bench.backend.launch(plan))
    await asyncio.sleep(0)
    launching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await launching
    running = await asyncio.create_subprocess_exec("pgrep", "-f", plan.id, stdout=asyncio.subprocess.PIPE)
    assert (await running.communicate())[0] == b""


async def test_namespaces_of_the_host_when_asked(bench: ProcessBench, make: Make) -> None:
    modes = {"pid_mode": "host", "ipc_mode": "host", "uts_mode": "host", "host_network": True}
    code, said = await say(bench, make("sh", "-c", "hostname; echo $$", **modes))
    name, pid = said.split()
    assert code == 0
    assert name == os.uname().nodename
    assert int(pid) > 10
