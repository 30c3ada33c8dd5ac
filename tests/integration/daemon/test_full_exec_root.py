"""A daemon that finds no room below its exec root must not lose what runs there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.system import mounts
from insula.system.pidfd import is_alive, start_time
from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture
def small(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    one = make_daemon("--vm-pool", "0")
    run = one.directory / "run"
    run.mkdir()
    mounts.mount("tmpfs", str(run), "tmpfs", options="size=16m,nr_inodes=2000")
    one.start()
    one.import_image()
    yield one
    one.stop()
    for path in reversed(mounts.mount_points(str(run))):
        mounts.umount(path)


@contextlib.contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Not a byte, and not an inode, is left."""
    waste = directory / "waste"
    waste.mkdir()
    with open(waste / "all", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(OSError):
        for number in range(10**6):
            os.close(os.open(waste / str(number), os.O_CREAT | os.O_WRONLY))
    yield
    for path in waste.iterdir():
        path.unlink()
    waste.rmdir()


def test_what_runs_is_not_lost(small: Daemon, isolation: str, name: str) -> None:
    small.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sleep", "1000"))
    state = small.client.get(f"/containers/{name}/json")["State"]
    pid, started = state["Pid"], start_time(state["Pid"])
    assert started
    small.kill()
    with filled(small.directory / "run"):
        with contextlib.suppress(AssertionError):  # it may start, or end with a sentence
            small.start()
        if small.child is not None and small.child.poll() is None:
            small.kill()
        else:
            assert "No space left on device" in small.log.splitlines()[-1]
            small.child = None
    assert is_alive(pid, started)
    small.start()
    after = small.client.get(f"/containers/{name}/json")["State"]
    assert ("running", pid, state["StartedAt"]) == (after["Status"], after["Pid"], after["StartedAt"])
    assert "here" == small.ok("exec", name, "echo", "here")
    small.ok("rm", "-f", name)
