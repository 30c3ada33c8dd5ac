"""Health checks with the stock client, in both isolations.

One instance does for most of it: its check looks at a file, so that the test decides what comes next, and
every step waits for the event that Docker tells.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@contextmanager
def told(daemon: Daemon, name: str) -> Iterator[IO[str]]:
    """The health of one instance, as `docker events` tells it from now on."""
    filters = ("--filter", f"container={name}", "--filter", "event=health_status")
    since = daemon.client.get("/info")["SystemTime"]
    argv, environment = daemon.command(
        "docker", "events", "--since", since, *filters, "--format", "{{.Action}}"
    )
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        try:
            yield events.stdout
        finally:
            events.terminate()


def state(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ok("inspect", "-f", "{{json .State.Health}}", name))
    return found


def status(daemon: Daemon, name: str) -> str:
    return daemon.ok("ps", "-a", "--filter", f"name={name}", "--format", "{{.Status}}")


def test_the_life_of_a_check(daemon: Daemon, isolation: str, name: str) -> None:
    with told(daemon, name) as events:
        daemon.ok(
            *isolated(isolation, "run", "-d", "--name", name, "--health-cmd", "cat /tmp/fine"),
            *("--health-interval", "250ms", "--health-timeout", "20s", "--health-retries", "1"),
            *("--health-start-period", "1h", "--health-start-interval", "250ms"),
            *(IMAGE, "sh", "-c", "trap exit TERM; while :; do sleep 1; done"),
        )
        assert "(health: starting)" in status(daemon, name)
        assert "starting" == state(daemon, name)["Status"]
        daemon.ok("exec", name, "sh", "-c", "echo all well >/tmp/fine")
        assert "health_status: healthy\n" == events.readline()
        assert "(healthy)" in status(daemon, name)
        last = state(daemon, name)["Log"][-1]
        assert (0, "all well\n") == (last["ExitCode"], last["Output"])
        assert name in daemon.ok("ps", "--filter", "health=healthy", "--format", "{{.Names}}").split()
        assert name not in daemon.ok("ps", "--filter", "health=none", "--format", "{{.Names}}").split()
        daemon.ok("pause", name)
        assert "unhealthy" == state(daemon, name)["Status"]
        assert status(daemon, name).endswith("(Paused)")
        daemon.ok("unpause", name)
        assert "health_status: healthy\n" == events.readline()
        daemon.ok("exec", name, "rm", "/tmp/fine")
        assert "health_status: unhealthy\n" == events.readline()
        assert "(unhealthy)" in status(daemon, name)
        assert 1 <= state(daemon, name)["FailingStreak"]
    daemon.ok("stop", "-t", "5", name)
    assert "unhealthy" == state(daemon, name)["Status"]
    assert len(state(daemon, name)["Log"]) <= 5
    daemon.ok("rm", name)


def test_a_check_that_takes_too_long_is_killed(daemon: Daemon, isolation: str, name: str) -> None:
    with told(daemon, name) as events:
        daemon.ok(
            *isolated(isolation, "run", "-d", "--name", name, "--health-cmd", "echo begun; exec sleep 7777"),
            *("--health-interval", "200ms", "--health-timeout", "1500ms", "--health-retries", "1"),
            *(IMAGE, "sleep", "1000"),
        )
        assert "health_status: unhealthy\n" == events.readline()
    first = state(daemon, name)["Log"][0]
    assert -1 == first["ExitCode"]
    assert first["Output"].startswith("Health check exceeded timeout (1.5s)")
    # at most the next one runs by now
    assert daemon.ok("exec", name, "ps").count("sleep 7777") <= 1
    daemon.ok("rm", "-f", name)


def test_the_image_s_check(daemon: Daemon, isolation: str, name: str) -> None:
    made = daemon.ok("create", IMAGE, "sleep", "1000")
    change = 'HEALTHCHECK --interval=200ms --retries=2 CMD ["test", "-d", "/tmp"]'
    daemon.ok("commit", "-c", change, made, f"{name}:check")
    daemon.ok("rm", made)
    check = json.loads(daemon.ok("inspect", "-f", "{{json .Config.Healthcheck}}", f"{name}:check"))
    assert {"Test": ["CMD", "test", "-d", "/tmp"], "Interval": 200_000_000, "Retries": 2} == check
    with told(daemon, name) as events:
        daemon.ok(*isolated(isolation, "run", "-d", "--name", name, f"{name}:check"))
        assert "health_status: healthy\n" == events.readline()
    daemon.ok("rm", "-f", name)
    off = daemon.ok(*isolated("process", "run", "-d", "--no-healthcheck", f"{name}:check"))
    assert "<nil>" == daemon.ok("inspect", "-f", "{{.State.Health}}", off)
    assert "health" not in daemon.ok("ps", "--filter", f"id={off}", "--format", "{{.Status}}")
    daemon.ok("rm", "-f", off)
    daemon.ok("rmi", f"{name}:check")
