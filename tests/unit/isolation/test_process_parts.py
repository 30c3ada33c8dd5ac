"""Parts of the process backend: limits, complaints, ps, cgroup layouts, mounts, look-ups in a root."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from insula.errors import CommandNotExecutable, CommandNotFound, InvalidRequest, RuntimeFailed
from insula.isolation.plan import Device, Process
from insula.isolation.process.checks import weight_warnings
from insula.isolation.process.complaints import translate
from insula.isolation.process.mounts import tmpfs_options
from insula.isolation.process.prepare import (
    check_program,
    find_devices,
    identify,
    make_cwd,
    make_mount_points,
)
from insula.isolation.process.resources import control_writes, make_resources
from insula.isolation.process.usage import parse_blkio, parse_io_stat, parse_ps
from insula.isolation.users import Identity
from insula.model.limits import Limits, Throttle
from insula.model.mounts import Mount, MountKind
from insula.model.stream import BlockSample
from insula.system.cgroups import Layout, check_shares, parse_layout, remove
from unit.isolation.test_process_golden import MINIMAL

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (
            "executable file `nope` not found in $PATH: No such file or directory",
            CommandNotFound,
            'exec: "nope": executable file not found in $PATH: unknown',
        ),
        (
            'runc create failed: unable to start: exec: "nope": executable file not found in $PATH',
            CommandNotFound,
            'exec: "nope": executable file not found in $PATH: unknown',
        ),
        (
            'time="x" level=error msg="exec: \\"nope\\": stat nope: no such file or directory"',
            CommandNotFound,
            'exec: "nope": no such file or directory: unknown',
        ),
        (
            '{"msg":"exec: No such file or directory","level":"error","time":"2026"}',
            CommandNotFound,
            'exec: "nope": no such file or directory: unknown',
        ),
        (
            "open executable: Permission denied",
            CommandNotExecutable,
            'exec: "nope": permission denied: unknown',
        ),
        (
            "open executable: Operation not permitted",
            CommandNotExecutable,
            'exec: "nope": permission denied: unknown',
        ),
        (
            "the path `/etc/plain` exists but it is not executable: Operation not permitted",
            CommandNotExecutable,
            'exec: "nope": permission denied: unknown',
        ),
        (
            'unable to start container process: exec: "nope": permission denied',
            CommandNotExecutable,
            'exec: "nope": permission denied: unknown',
        ),
        ("exec: Exec format error", CommandNotExecutable, 'exec: "nope": exec format error: unknown'),
        (
            "2026-01-01T00:00:00.0Z: mount `proc`: Operation not permitted",
            RuntimeFailed,
            "the OCI runtime could not create the container: mount `proc`: Operation not permitted",
        ),
        (
            "mount `/etc/passwd` to `etc`: Not a directory",
            InvalidRequest,
            "the OCI runtime could not create the container: mount `/etc/passwd` to `etc`: Not a directory: "
            "Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host "
            "path exists and is the expected type",
        ),
        ("", RuntimeFailed, "the OCI runtime could not create the container: it said nothing"),
    ],
)
def test_complaints_of_runtimes(said: str, kind: type[Exception], message: str) -> None:
    error = translate(said, "nope")
    assert type(error) is kind
    assert error.message == message


@pytest.mark.parametrize(
    "said",
    [
        'executable file `["sh"]` not found in $PATH: No such file or directory',
        r'unable to start container process: exec: "[\"sh\"]": executable file not found in $PATH',
    ],
)
def test_a_program_whose_name_has_quotes_is_not_found_as_any_other(said: str) -> None:
    error = translate(said, '["sh"]')
    assert type(error) is CommandNotFound
    assert error.message == r'exec: "[\"sh\"]": executable file not found in $PATH: unknown'


def test_devices_of_a_directory_are_those_below_and_never_of_links(tmp_path: Path) -> None:
    def found(directory: Path | str) -> set[str]:
        device = Device(host_path=str(directory), path="/dev/mine", rules="r")
        security = dataclasses.replace(MINIMAL.security, devices=(device,))
        return {node.path for node in find_devices(dataclasses.replace(MINIMAL, security=security))}

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(InvalidRequest, match="not a device node"):
        found(tmp_path)
    assert {"/dev/mine/null", "/dev/mine/tty"} <= found("/dev/") - {"/dev/mine/stdin"} == found("/dev")


@pytest.mark.parametrize(
    ("shares", "words"), [(-1, "invalid argument"), (1, "minimum allowed"), (262_145, "maximum allowed")]
)
def test_shares_that_the_kernel_would_change(shares: int, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_shares(shares)
    for good in (0, 2, 262_144):
        check_shares(good)


def test_limits_as_oci_resources() -> None:
    limits = Limits(memory_bytes=64 * MIB, nano_cpus=1_500_000_000, pids=10, cpu_shares=512)
    assert make_resources(limits, swap_accounting=True) == {
        "memory": {"limit": 64 * MIB, "swap": 128 * MIB},
        "cpu": {"shares": 512, "period": 100_000, "quota": 150_000},
        "pids": {"limit": 10},
    }
    assert make_resources(limits, swap_accounting=False)["memory"] == {"limit": 64 * MIB}
    assert make_resources(Limits(), swap_accounting=True) == {}
    real_time = Limits(cpu_rt_runtime_us=400, cpu_rt_period_us=1000)
    expected = {"realtimePeriod": 1000, "realtimeRuntime": 400}
    assert expected == make_resources(real_time, swap_accounting=True)["cpu"]
    assert [("cpu", "cpu.rt_period_us", "1000"), ("cpu", "cpu.rt_runtime_us", "400")] == control_writes(
        real_time, version=1, swap_accounting=True
    )


def test_limits_as_control_files() -> None:
    limits = Limits(memory_bytes=64 * MIB, memory_swap_bytes=-1, cpu_quota_us=5000, pids=-1, cpu_shares=1024)
    assert control_writes(limits, version=1, swap_accounting=True) == [
        ("memory", "memory.memsw.limit_in_bytes", "-1"),
        ("memory", "memory.limit_in_bytes", str(64 * MIB)),
        ("cpu", "cpu.shares", "1024"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "5000"),
        ("pids", "pids.max", "max"),
    ]
    assert control_writes(limits, version=2, swap_accounting=True) == [
        ("memory", "memory.max", str(64 * MIB)),
        ("memory", "memory.swap.max", "max"),
        ("cpu", "cpu.weight", "39"),
        ("cpu", "cpu.max", "5000 100000"),
        ("pids", "pids.max", "max"),
    ]


def test_tmpfs_options_are_dockers_unless_said_otherwise() -> None:
    assert tmpfs_options(()) == ["noexec", "nosuid", "nodev"]
    assert tmpfs_options(("exec,size=64m", "mode=1777")) == [
        "nosuid",
        "nodev",
        "exec",
        "size=64m",
        "mode=1777",
    ]


def test_block_devices_are_counted_apart() -> None:
    transferred = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\n7:3 Read 1\n7:3 Total 1\nTotal 31\n"
    operations = "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"
    disk = BlockSample(major=8, minor=0, read_bytes=10, write_bytes=20, reads=1, writes=2)
    loop = BlockSample(major=7, minor=3, read_bytes=1)
    assert (disk, loop) == parse_blkio(transferred, operations)
    newer = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 cost.usage=7\n7:3 rbytes=1\n254:0\n"
    assert (disk, loop, BlockSample(major=254, minor=0)) == parse_io_stat(newer)


def test_ps_rows_are_those_of_the_container() -> None:
    text = "UID  PID PPID CMD\nroot 10 1 sh -c a b\nroot 11 1 other\nbob 12 10 sleep 5\n"
    table = parse_ps(text, {10, 12})
    assert table.titles == ("UID", "PID", "PPID", "CMD")
    assert table.rows == (("root", "10", "1", "sh -c a b"), ("bob", "12", "10", "sleep 5"))
    with pytest.raises(InvalidRequest, match="PID field"):
        parse_ps("CMD\nsh\n", {1})


HYBRID = """22 1 0:21 / /proc rw - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_cgroup_layouts() -> None:
    hybrid = parse_layout(HYBRID)
    assert (hybrid.version, hybrid.hybrid) == (1, True)
    assert hybrid.path("cpuacct", "insula/x") == "/sys/fs/cgroup/cpu,cpuacct/insula/x"
    assert hybrid.path("pids", "insula/x") is None
    assert hybrid.directories("g") == ["/sys/fs/cgroup/cpu,cpuacct/g", "/sys/fs/cgroup/systemd/g"]
    pure = parse_layout("1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "cpu memory pids")
    assert (pure.version, pure.hybrid) == (2, False)
    assert pure.path("memory", "insula/x") == "/sys/fs/cgroup/insula/x"
    assert "memory" in pure.controllers


def test_removing_a_group_that_is_not_there_is_fine(tmp_path: Path) -> None:
    assert remove(Layout(2, {"": str(tmp_path)}), "insula/none")


@pytest.fixture
def root(tmp_path: Path) -> int:
    (tmp_path / "etc").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "etc/passwd").write_text("bob:x:1000:1000::/home/bob:/bin/sh\n")
    (tmp_path / "etc/group").symlink_to("/etc/../../../../etc/passwd")
    for name, mode in (("tool", 0o755), ("private", 0o700), ("text", 0o644)):
        (tmp_path / "bin" / name).write_text("")
        (tmp_path / "bin" / name).chmod(mode)
    (tmp_path / "bin/outside").symlink_to("/" + "../" * 20 + "bin/sh")
    return os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)


def process(*args: str, user: str = "", cwd: str = "/") -> Process:
    return Process(args=args, env=("PATH=/nowhere:/bin",), user=user, cwd=cwd)


def test_users_come_from_inside_the_root(root: int) -> None:
    assert identify(root, process("x", user="bob")) == Identity(1000, 1000, (1000,), "/home/bob")
    os.close(root)


@pytest.mark.parametrize(
    ("name", "uid", "error"),
    [
        ("tool", 1000, None),
        ("/bin/tool", 1000, None),
        ("private", 0, None),
        ("private", 1000 + os.getuid(), CommandNotExecutable),
        ("text", 0, CommandNotExecutable),
        ("/bin", 0, CommandNotExecutable),
        ("nope", 0, CommandNotFound),
        ("outside", 0, CommandNotFound),
        ("/etc/nope", 0, CommandNotFound),
    ],
)
def test_programs_are_looked_up_as_execvp_does(
    root: int, name: str, uid: int, error: type[Exception] | None
) -> None:
    identity = Identity(uid, uid, (), "/")
    try:
        if error is None:
            check_program(root, process(name), identity)
        else:
            with pytest.raises(error):
                check_program(root, process(name), identity)
    finally:
        os.close(root)


def test_working_directory_is_made_inside_the_root(root: int, tmp_path: Path) -> None:
    make_cwd(root, process("x", cwd="/a/b/../c"))
    assert (tmp_path / "a/c").is_dir()
    with pytest.raises(InvalidRequest, match="not a directory"):
        make_cwd(root, process("x", cwd="/etc/passwd/x"))
    os.close(root)


def test_mount_points_behind_links_to_what_is_not_there_are_made(root: int, tmp_path: Path) -> None:
    for name, link in (
        ("up", "../../../made/below"),
        ("etc/way", "../far"),
        ("programs", "/usr/nowhere"),
        ("circle", "circle"),
        ("in", "/circle/x"),
        ("text2", "/etc/passwd/x"),
    ):
        (tmp_path / name).symlink_to(link)
    mounts = tuple(
        Mount(kind=MountKind.TMPFS, target=target)
        for target in ("/up", "/etc/way/x", "/circle", "/in", "/text2", "/plain/missing")
    )
    make_mount_points(root, dataclasses.replace(MINIMAL, mounts=mounts), ("/programs/init",))
    assert (tmp_path / "made/below").is_dir()
    assert ["x"] == os.listdir(tmp_path / "far")
    assert [] == os.listdir(tmp_path / "usr/nowhere")
    assert not (tmp_path / "plain").exists()  # the runtime's, which makes it so that nothing looks changed
    assert not (tmp_path.parent / "made").exists()
    os.close(root)


def test_weights_of_block_io_are_discarded_with_a_warning_where_the_kernel_has_none(tmp_path: Path) -> None:
    layout = Layout(1, {"blkio": str(tmp_path)})
    (tmp_path / "insula").mkdir()
    device = Throttle(what="weight", path="/dev/vda", value=200)
    both = Limits(blkio_weight=300, throttles=(device,))
    reason = "Your kernel does not support Block I/O"
    assert weight_warnings(both, layout) == (
        f"{reason} weight or the cgroup is not mounted. Weight discarded.",
        f"{reason} weight_device or the cgroup is not mounted. Weight-device discarded.",
    )
    assert weight_warnings(Limits(), layout) == ()
    (tmp_path / "insula" / "blkio.bfq.weight").touch()
    assert weight_warnings(both, layout) == ()
