"""`kill -9` of the daemon: instances go on, logs have no gap, exit codes are right."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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
    check = ("--health-cmd", "true", "--health-interval", "300ms")
    crashing.ok(*isolated(isolation, "run", "-d", "--name", name, *check, IMAGE, "sh", "-c", counting))
    wait_for_probes(crashing, name)
    crashing.kill()
    crashing.start()
    before = json.loads(crashing.ok("inspect", "-f", "{{json .State.Health}}", name))
    assert "healthy" == before["Status"]
    wait_for_probes(crashing, name)
    after = json.loads(crashing.ok("inspect", "-f", "{{json .State.Health}}", name))
    assert after["Log"][-1]["Start"] > before["Log"][-1]["Start"]
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


def test_a_build_ends_with_its_daemon(crashing: Daemon) -> None:
    dockerfile = f"FROM {IMAGE}\nLABEL build=cut\nRUN echo begun; sleep 1000\n"
    argv, environment = crashing.command("docker", "build", "-")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(dockerfile.encode())
        client.stdin.close()
        while b"begun\n" != (line := client.stdout.readline()):
            assert line, "the build has ended"
        crashing.kill()
    crashing.start()
    assert "" == crashing.ok("ps", "-aq", "-f", "label=build=cut")
    assert [] == [
        str(found) for root in ("run", "data") for found in (crashing.directory / root / "build").glob("*")
    ]


def test_a_bridge_that_was_lost_meanwhile_is_found_again(crashing: Daemon, isolation: str, name: str) -> None:
    """Also by a VM that was made ahead, whose tap is not the one that the network room has made for it."""
    serve = "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www"
    words = ("run", "-d", "--name", name, "-p", "8188:80", IMAGE, "sh", "-c", serve)
    crashing.ok(*isolated(isolation, *words))
    for _ in range(3):  # the daemon makes one ahead when it finds the time
        if isolation == "process" or crashing.inspect(name)["Insula"]["Start"] == "ready clone":
            break
        crashing.ok("rm", "-f", name)
        crashing.ok(*isolated(isolation, *words))
    assert "served" == fetch(crashing, "http://127.0.0.1:8188/")
    crashing.kill()
    subprocess.run(["ip", "-n", crashing.netns, "link", "delete", crashing.bridge], check=True)
    crashing.start()
    for host in ("127.0.0.1", "[::1]"):
        assert "served" == fetch(crashing, f"http://{host}:8188/")
    crashing.ok("rm", "-f", name)


def fetch(daemon: Daemon, url: str) -> str:
    """From the daemon's own host, once somebody answers."""
    script = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=10).read().decode())"
    for _ in range(50):
        argv = daemon.inside("/usr/bin/python3", "-c", script)
        done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
        if done.returncode == 0:
            return done.stdout.decode().strip()
    raise AssertionError(done.stderr.decode())


def wait_for_probes(daemon: Daemon, name: str) -> None:
    """Until a health check has ended and what it said is recorded: the next one has begun, too."""
    filters = ("--filter", f"container={name}", "--filter", "event=exec_create")
    argv, environment = daemon.command("docker", "events", *filters)
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        try:
            assert all(events.stdout.readline() for _ in range(2))
        finally:
            events.terminate()


def wait_until_gone(pid: int) -> None:
    """By its pidfd; a zombie counts as gone."""
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


def test_what_volumes_have_mounted_is_kept_and_given_back(
    crashing: Daemon, isolation: str, name: str
) -> None:
    """A volume with driver options and a pinned part of another, of one that runs on and of one that ends."""
    crashing.ok("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", f"{name}-t")
    point, plain = (
        crashing.ok("volume", "inspect", "-f", "{{.Mountpoint}}", volume)
        for volume in (f"{name}-t", crashing.ok("volume", "create", f"{name}-p"))
    )
    os.mkdir(f"{plain}/part")
    words = ("-v", f"{name}-t:/t", "--mount", f"src={name}-p,dst=/p,volume-subpath=part")
    crashing.ok(*isolated(isolation, "run", "-d", "--name", name, *words, IMAGE, "sleep", "1000"))
    crashing.ok("exec", name, "sh", "-c", "echo kept >/t/file; echo part >/p/file")
    pins = Path(crashing.directory, "run/mounts", crashing.ok("inspect", "-f", "{{.Id}}", name))
    crashing.kill()
    crashing.start()
    assert ["kept", "part"] == crashing.ok("exec", name, "cat", "/t/file", "/p/file").splitlines()
    assert "kept\n" == Path(point, "file").read_text()
    assert os.path.ismount(point)
    assert pins.is_dir()
    pid = int(crashing.ok("inspect", "-f", "{{.State.Pid}}", name))
    crashing.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    crashing.start()
    assert "exited" == crashing.ok("inspect", "-f", "{{.State.Status}}", name)
    assert not os.path.ismount(point)
    assert not pins.exists()
    assert "part\n" == Path(plain, "part/file").read_text()
    crashing.ok("rm", name)
    crashing.ok("volume", "rm", f"{name}-t", f"{name}-p")


def test_who_is_started_again_after_a_crash(crashing: Daemon, isolation: str, name: str) -> None:
    """What ended while the daemon was away is; what a user stopped before is not, unless it is `always`."""
    policies = ("unless-stopped", "always", "on-failure:3")
    for policy in policies:
        words = ("-d", "--name", f"{name}-{policy[:2]}", "--restart", policy, IMAGE, "sleep", "1000")
        crashing.ok(*isolated(isolation, "run", *words))
    crashing.ok("stop", "-t", "0", f"{name}-un")
    form = "{{.State.Pid}}"
    pids = [int(crashing.ok("inspect", "-f", form, f"{name}-{which}")) for which in ("al", "on")]
    crashing.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
    with_events = crashing.command("docker", "events", "--since", "1", "--filter", "event=start")
    crashing.start()
    with subprocess.Popen(with_events[0], env=with_events[1], stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        try:
            told = {line.split("name=")[1].rstrip(")\n") for line in (events.stdout.readline() for _ in "ab")}
        finally:
            events.terminate()
    assert {f"{name}-al", f"{name}-on"} == told
    assert "exited" == crashing.ok("inspect", "-f", "{{.State.Status}}", f"{name}-un")
    crashing.ok("rm", "-f", *(f"{name}-{policy[:2]}" for policy in policies))
