"""`kill -9` of the daemon: instances go on, logs have no gap, exit codes are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def crashing(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    one = make_daemon()
    one.start()
    one.import_image()
    yield one
    one.stop()


def test_instances_survive_and_logs_have_no_gap(crashing: Daemon, isolation: str, name: str) -> None:
    counting = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done"
    crashing.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sh", "-c", counting))
    crashing.kill()
    crashing.start()
    assert "running" == crashing.ok("inspect", "-f", "{{.State.Status}}", name)
    assert "new" == crashing.ok("exec", name, "echo", "new")
    crashing.ok("stop", "-t", "0", name)
    numbers = [int(line) for line in crashing.ok("logs", name).splitlines()]
    assert list(range(len(numbers))) == numbers
    assert len(numbers) > 3
    crashing.ok("rm", name)


def test_exit_code_while_the_daemon_was_away(crashing: Daemon, isolation: str, name: str) -> None:
    crashing.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sh", "-c", "sleep 2; exit 42"))
    pid = int(crashing.ok("inspect", "-f", "{{.State.Pid}}", name))
    crashing.kill()
    wait_until_gone(pid)
    crashing.start()
    assert "exited 42" == crashing.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name)
    crashing.ok("rm", name)


def wait_until_gone(pid: int) -> None:
    """By its pidfd; a zombie counts as gone."""
    import os
    import select

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([fd], [], [], 60)
        assert readable
    finally:
        os.close(fd)


def test_an_instance_that_was_to_be_removed_is(crashing: Daemon, isolation: str, name: str) -> None:
    crashing.ok(*isolated(isolation, "run", "-d", "--rm", "--name", name, IMAGE, "sleep", "1"))
    pid = int(crashing.ok("inspect", "-f", "{{.State.Pid}}", name))
    crashing.kill()
    wait_until_gone(pid)
    crashing.start()
    assert 1 == crashing.docker("inspect", name).returncode
