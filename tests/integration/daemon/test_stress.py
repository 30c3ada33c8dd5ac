"""What goes wrong on a bad day: little memory, clients that vanish, many at once, a cut commit."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from insula.system import mounts
from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

AT_ONCE = 25


@pytest.fixture(scope="module")
def stressed(
    make_daemon: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Its exec root lies behind a symbolic link, as one under /var/run does."""
    one = make_daemon()
    (one.directory / "run").symlink_to(tmp_path_factory.mktemp("exec-root"))
    one.start()
    one.import_image()
    yield one
    one.stop()


def descriptors(daemon: Daemon) -> int:
    assert daemon.child is not None
    return len(os.listdir(f"/proc/{daemon.child.pid}/fd"))


def opened(daemon: Daemon, method: str, path: str) -> socket.socket:
    """A request that is sent, and nothing read."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(daemon.socket)
    upgrade = "Upgrade: tcp\r\nConnection: Upgrade\r\n" if method == "POST" else ""
    sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{upgrade}Content-Length: 0\r\n\r\n".encode())
    return sock


@pytest.mark.vm
def test_the_memory_of_a_small_machine_is_the_workloads(stressed: Daemon) -> None:
    """The guest's kernel comes on top: with 64 MiB for both it does not boot."""
    shown = stressed.ok(
        *isolated("vm", "run", "--rm", "-m", "64m", IMAGE, "grep", "MemAvailable", "/proc/meminfo")
    )
    assert int(shown.split()[1]) > 56_000  # KiB


def test_a_memory_limit_is_the_workloads_and_its_end_is_told(
    stressed: Daemon, isolation: str, name: str
) -> None:
    script = (
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; tail /dev/zero; exit 9"
    )
    begun = time.monotonic()
    done = stressed.docker(
        *isolated(isolation, "run", "--name", name, "-m", "32m", IMAGE, "sh", "-c", script)
    )
    took = time.monotonic() - begun
    assert str(32 << 20).encode() in done.stdout
    assert 9 == done.returncode  # one process is killed, not all of the instance
    assert "exited true" == stressed.ok("inspect", "-f", "{{.State.Status}} {{.State.OOMKilled}}", name)
    assert took < 60
    stressed.ok("rm", name)


@pytest.mark.vm
@pytest.mark.parametrize("limit_mib", [6, 2500])
def test_the_guest_is_large_enough_for_a_limit(stressed: Daemon, limit_mib: int) -> None:
    """The tightest that were measured: a kernel with the least, and one with bounce buffers."""
    shown = stressed.ok(
        *isolated("vm", "run", "--rm", "-m", f"{limit_mib}m", IMAGE, "cat", "/sys/fs/cgroup/memory.max")
    )
    assert limit_mib << 20 == int(shown)


@pytest.mark.vm
def test_a_machine_that_the_host_has_no_room_for(stressed: Daemon, name: str) -> None:
    refused = stressed.docker(*isolated("vm", "run", "--rm", "--name", name, "-m", "900g", IMAGE, "true"))
    assert 125 == refused.returncode
    assert b"QEMU could not start the virtual machine" in refused.stderr
    assert b"Cannot allocate memory" in refused.stderr
    assert 1 == stressed.docker("inspect", name).returncode


def test_many_at_once(stressed: Daemon) -> None:
    def one(number: int) -> str:
        return stressed.ok("run", "--rm", IMAGE, "echo", str(number))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [str(number) for number in range(AT_ONCE)] == list(pool.map(one, range(AT_ONCE)))


def test_clients_that_vanish_leave_nothing_behind(stressed: Daemon, name: str) -> None:
    talking = "while true; do echo tick; sleep 0.05; done"
    stressed.ok("run", "-d", "-i", "--name", name, IMAGE, "sh", "-c", talking)
    before = descriptors(stressed)
    requests = (
        ("GET", f"/containers/{name}/logs?follow=1&stdout=1"),
        ("POST", f"/containers/{name}/attach?stream=1&stdin=1&stdout=1"),
        ("GET", "/events"),
        ("GET", f"/containers/{name}/stats"),
        ("GET", f"/containers/{name}/archive?path=/"),
        ("POST", f"/containers/{name}/wait"),
    )
    sockets = [opened(stressed, *request) for request in requests for _ in range(20)]
    assert stressed.client.get("/version")["ApiVersion"]
    for sock in sockets:
        sock.close()
    limit = time.monotonic() + 30
    while descriptors(stressed) > before + 4:
        assert time.monotonic() < limit, f"{descriptors(stressed)} descriptors, {before} before"
        time.sleep(0.1)
    assert "ok" == stressed.ok("exec", name, "echo", "ok")
    assert "Error handling request" not in stressed.log
    stressed.ok("rm", "-f", name)


def test_system_prune(stressed: Daemon) -> None:
    assert "Total reclaimed space" in stressed.ok("system", "prune", "-f")


def test_one_that_ended_while_the_disk_was_full_is_exited(
    make_daemon: Callable[..., Daemon], tmp_path: Path, name: str
) -> None:
    one = make_daemon("--subnet", "172.31.251.0/24")
    (one.directory / "data" / "guest").unlink()
    mounts.mount("tmpfs", str(one.directory / "data"), "tmpfs", options="size=96m")
    try:
        one.start()
        one.import_image()
        one.ok("run", "-d", "--name", name, IMAGE, "sleep", "1000")
        ballast = one.directory / "data" / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            while os.statvfs(ballast).f_bfree:
                file.write(b"\0" * 4096)
        refused = one.docker("commit", name, "full")
        assert b"no space left" in refused.stderr
        one.ok("kill", name)
        assert "exited 137" == one.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name)
        one.ok("rm", name)
        ballast.unlink()
        assert "again" == one.ok("run", "--rm", IMAGE, "echo", "again")
    finally:
        one.stop()
        mounts.umount(str(one.directory / "data"), lazy=True)
