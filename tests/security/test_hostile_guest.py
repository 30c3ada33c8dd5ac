"""Workloads that attack their VM and, through it, the daemon: the worst case is that VM's own end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig import IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(300)]

PROMPT_S = 20.0  # of a daemon that shares two cores with an emulated guest that runs wild
BOMB = "bomb() { bomb | bomb & }; bomb; echo lit; sleep 1000"


@pytest.fixture(scope="module")
def bystander(daemon: Daemon) -> Iterator[str]:
    """A VM that has nothing to do with it, and must not notice."""
    ident = daemon.ok("run", "-d", "--isolation", "vm", "-m", "64m", IMAGE, "sleep", "1000")
    yield ident
    daemon.ok("rm", "-f", ident)


@pytest.fixture
def unharmed(daemon: Daemon, bystander: str) -> Callable[[], None]:
    def check() -> None:
        begun = time.monotonic()
        assert "fine" == daemon.ok("exec", bystander, "echo", "fine")
        assert bystander[:12] in daemon.ok("ps")
        assert time.monotonic() - begun < PROMPT_S

    return check


@contextmanager
def machine(daemon: Daemon, *words: str) -> Iterator[str]:
    """`run -d` in a VM; at the end it is removed, however it is, and that promptly."""
    ident = daemon.ok("run", "-d", "--isolation", "vm", *words)
    try:
        yield ident
    finally:
        begun = time.monotonic()
        daemon.ok("rm", "-f", ident)
        assert time.monotonic() - begun < PROMPT_S
    assert not Path(f"{daemon.directory}/data/instances/{ident}").exists()
    assert not Path(f"{daemon.directory}/run/instances/{ident}").exists()


def shell(daemon: Daemon, ident: str, script: str) -> str:
    """Its output, errors included, whatever the exit code."""
    done = daemon.docker("exec", ident, "sh", "-c", script)
    return (done.stdout + done.stderr).decode()


def wait_for_log(daemon: Daemon, ident: str, text: str) -> None:
    limit = time.monotonic() + 60
    while text not in daemon.ok("logs", "--tail", "20", ident):
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_a_flood_of_output_is_kept_in_order(daemon: Daemon, unharmed: Callable[[], None]) -> None:
    with machine(daemon, IMAGE, "seq", "1", "1000000000") as ident:
        log = Path(f"{daemon.directory}/data/instances/{ident}/output.log")
        run = Path(f"{daemon.directory}/run/instances/{ident}")
        limit = time.monotonic() + 60
        while log.stat().st_size < 10_000_000:
            assert time.monotonic() < limit
            time.sleep(0.1)
        unharmed()
        assert "in" == daemon.ok("exec", ident, "echo", "in")
        daemon.ok("kill", ident)
        kept = log.stat().st_size
        lines = daemon.ok("logs", ident).splitlines()
        assert lines[:-1] == [str(number) for number in range(1, len(lines))]
        assert str(len(lines)).startswith(lines[-1])  # cut where it was killed
        # the records and nothing else: 45 bytes of time and stream around each line
        assert kept == log.stat().st_size
        assert kept < sum(map(len, lines)) + 60 * len(lines)
        assert sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) < 1_000_000


@pytest.mark.parametrize("limit", ["100", "-1"])
def test_a_fork_bomb_stays_in_its_machine(daemon: Daemon, unharmed: Callable[[], None], limit: str) -> None:
    with machine(daemon, "--pids-limit", limit, IMAGE, "sh", "-c", BOMB) as ident:
        wait_for_log(daemon, ident, "lit")
        unharmed()
        refused = shell(daemon, ident, "echo in")
        assert refused == "in\n" or "OCI runtime exec failed" in refused
        if limit == "100":
            stats = daemon.client.get(f"/containers/{ident}/stats", stream=False)
            assert stats["pids_stats"]["current"] <= 100
        assert "running" == daemon.ok("inspect", "-f", "{{.State.Status}}", ident)


def test_a_full_disk_is_the_machines_own(
    daemon: Daemon, unharmed: Callable[[], None], tmp_path: Path
) -> None:
    before = os.statvfs(daemon.directory)
    with machine(daemon, IMAGE, "sleep", "1000") as ident:
        shell(daemon, ident, "echo hello > /full; sync")
        room = int(shell(daemon, ident, "df -P / | tail -1").split()[3])
        assert "" == shell(daemon, ident, f"busybox fallocate -l {room - 4096}k /most")
        assert "No space left on device" in shell(daemon, ident, "dd if=/dev/zero of=/rest bs=64k")
        assert "in\n" == shell(daemon, ident, "echo in")
        assert "hello\n" == shell(daemon, ident, "cat /full")
        (tmp_path / "big").write_bytes(b"x" * 3_000_000)
        refused = daemon.docker("cp", str(tmp_path / "big"), f"{ident}:/big")
        assert 0 != refused.returncode
        assert b"no space left on device" in refused.stderr.lower()
        daemon.ok("cp", f"{ident}:/full", str(tmp_path / "full"))
        assert "hello\n" == (tmp_path / "full").read_text()
        after = os.statvfs(daemon.directory)
        assert (before.f_bfree - after.f_bfree) * before.f_frsize < 1 << 30  # space that was only promised
        unharmed()
        daemon.ok("stop", "-t", "0", ident)
        daemon.ok("start", ident)
        assert "in\n" == shell(daemon, ident, "rm /most; echo more > /now && echo in")


@pytest.fixture(scope="module")
def ordinary(daemon: Daemon) -> Iterator[str]:
    with machine(
        daemon, IMAGE, "sh", "-c", "trap '' TERM HUP INT; echo up; while :; do sleep 1; done"
    ) as one:
        yield one


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("for n in 1 2 3; do mknod /p$n c $(cat /sys/class/virtio-ports/vport0p$n/dev | tr : ' ')"
         " && echo x > /p$n; done", "Operation not permitted"),
        ("mknod /disk b $(cat /sys/block/vdb/dev | tr : ' ') && head -c 1 /disk", "Operation not permitted"),
        ("mknod /kmsg c 1 11 && echo x > /kmsg", "Operation not permitted"),
        ("mknod /mem c 1 1 && head -c 1 /mem", "Operation not permitted"),
        ("echo b > /proc/sysrq-trigger", "Read-only file system"),
        ("echo '|/bin/sh' > /proc/sys/kernel/core_pattern", "Read-only file system"),
        ("echo max > /sys/fs/cgroup/memory.max", "Read-only file system"),
        ("echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/unbind", "Read-only file system"),
        ("mount -t proc proc /tmp", "permission denied"),
        ("kill -9 1; kill -9 -1; echo still", "still"),
        ("cat /proc/1/environ | tr '\\0' '\\n' | grep -c PATH=; ls /proc/1/root/../files", "No such file"),
    ],
)  # fmt: skip
def test_an_ordinary_workload_cannot(daemon: Daemon, ordinary: str, script: str, refused: str) -> None:
    assert refused in shell(daemon, ordinary, script)
    assert "in\n" == shell(daemon, ordinary, "echo in")


def test_a_privileged_workload_can_end_only_its_machine(
    daemon: Daemon, unharmed: Callable[[], None], tmp_path: Path
) -> None:
    """It is root of its kernel.  The disk that it has overwritten is read by no kernel but a guest's."""
    with machine(daemon, "--privileged", IMAGE, "sleep", "1000") as ident:
        said = shell(daemon, ident, "for n in 1 2 3; do echo x > /dev/vport0p$n; done")
        assert 3 == said.lower().count("busy"), said
        assert "not permitted" in shell(daemon, ident, "dd if=/dev/zero of=/dev/vda bs=4k count=1")
        image = shell(daemon, ident, "head -c 4096 /dev/vda | md5sum")
        shell(daemon, ident, "dd if=/dev/urandom of=/dev/vdb bs=1M count=32; sync")
        daemon.docker("exec", ident, "sh", "-c", "echo b > /proc/sysrq-trigger")
        assert "137" == daemon.ok("wait", ident)
        state = daemon.client.get(f"/containers/{ident}/json")["State"]
        assert ("exited", False) == (state["Status"], state["OOMKilled"])
        assert "ended without saying" in state["Error"]
        for attempt in (["start", ident], ["cp", f"{ident}:/etc/passwd", str(tmp_path)]):
            refused = daemon.docker(*attempt)
            assert 0 != refused.returncode
            assert b"mount disk" in refused.stderr, refused.stderr
        assert image.split()[0] in daemon.ok(
            "run",
            "--rm",
            "--isolation",
            "vm",
            "--privileged",
            IMAGE,
            "sh",
            "-c",
            "head -c 4096 /dev/vda | md5sum",
        )
        unharmed()
