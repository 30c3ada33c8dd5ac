"""Debian's compose 1 and 2 with a web server, a PostgreSQL and a cache in a VM: the how-to's own files."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import stack
from rig import Daemon

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(600)]

_HOW_TO = Path(__file__).parents[3] / "docs/how-to/compose.md"
_SQL = "/usr/lib/postgresql/15/bin/psql -h db -U postgres postgres -Atc"
# it may not listen yet
_PING = "until redis-cli -h cache ping 2>/dev/null; do :; done"
_ports = itertools.count(18080)


@dataclass(slots=True)
class Project:
    """A directory with the how-to's files, and one of the two programs pointed at the daemon."""

    daemon: Daemon
    directory: Path
    program: list[str]
    port: int
    dash: str

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """What it prints; the exit code must be as said."""
        done = subprocess.run(
            self.daemon.inside(*self.program, *words),
            cwd=self.directory,
            env={
                **os.environ,
                "DOCKER_HOST": self.daemon.host,
                "DOCKER_CONFIG": str(self.directory),
                "WEB_PORT": str(self.port),
                "COMPOSE_HTTP_TIMEOUT": "300",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert code == done.returncode, f"{words}: {done.stdout}{done.stderr}\n{self.daemon.log[-2000:]}"
        return done.stdout

    def inside(self, service: str, script: str, code: int = 0) -> str:
        return self.run("exec", "-T", service, "bash", "-c", script, code=code).rstrip("\n")

    def name(self, service: str, number: int = 1) -> str:
        return self.dash.join((self.directory.name, service, str(number)))

    def state(self, service: str, number: int = 1) -> str:
        return str(self.daemon.inspect(self.name(service, number))["State"]["Status"])


@pytest.fixture(scope="module")
def image(daemon: Daemon, guest_cache: Path) -> str:
    tar = stack.stack_tar(guest_cache.parent)
    if tar is None:
        pytest.skip("Debian's archive cannot be reached")
    daemon.ok("import", str(tar), stack.IMAGE)
    return stack.IMAGE


@pytest.fixture(params=["compose-1", "compose-2"])
def project(
    daemon: Daemon, image: str, guest_cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Project]:
    first = request.param == "compose-1"
    program = stack.find_compose_1() if first else stack.find_compose_2(guest_cache.parent)
    if program is None:
        pytest.skip(f"{request.param} is not here")
    directory = tmp_path / f"shop{request.param[-1]}"
    directory.mkdir()
    files = dict(re.findall(r"```\w+\n# ([\w.]+)\n(.*?)```", _HOW_TO.read_text(), re.DOTALL))
    # of compose 1's two formats of file, the one with `isolation` and conditions
    files["compose.yaml"] = ('version: "2.4"\n' if first else "") + files["compose.yaml"]
    for name, text in files.items():
        (directory / name).write_text(text)
    options = ["-f", "compose.yaml", "--ansi", "never"]
    one = Project(daemon, directory, [program, *options], next(_ports), "_" if first else "-")
    yield one
    one.run("down", "-v", "-t", "1")


def test_a_project_with_a_vm_among_its_services(project: Project) -> None:
    run, inside, daemon = project.run, project.inside, project.daemon
    run("up", "-d")
    assert ["running"] * 3 == [project.state(service) for service in ("web", "db", "cache")]

    # one is a VM, and all know each other
    assert os.uname().release == inside("web", "uname -r") != inside("cache", "uname -r")
    assert "PONG" == inside("web", _PING)
    assert "hello" == inside("cache", "exec 3<>/dev/tcp/www/80; echo -e 'GET / HTTP/1.0\\n' >&3; tail -1 <&3")
    assert "red 1000 1024" == inside(
        "web", "echo $COLOR $(ulimit -Sn) $(df -k --output=size /scratch | tail -1)"
    )
    published = run("port", "web", "80").strip()
    assert f"127.0.0.1:{project.port}" == published
    fetched = subprocess.run(
        daemon.inside("busybox", "wget", "-qO-", f"http://{published}/"), capture_output=True, check=True
    )
    assert b"hello\n" == fetched.stdout

    # the usual commands
    inside("web", f"{_SQL} 'create table t as select 42 as x'")
    inside("cache", "exit 7", code=7)
    assert "Ready to accept connections" in run("logs", "--tail", "5", "cache")
    assert "6\n" == run(
        "run", "--rm", "-T", "--no-deps", "cache", "bash", "-c", "echo $((2 * 3)); exit 3", code=3
    )
    run("restart", "-t", "1", "cache")
    assert "PONG" == inside("web", _PING)
    run("up", "-d", "--no-deps", "--scale", "cache=2", "cache")
    assert ["running"] * 2 == [project.state("cache", number) for number in (1, 2)]
    found = inside("web", "getent ahostsv4 cache | grep -c STREAM")
    assert "2" == found
    run("up", "-d", "--no-deps", "--scale", "cache=1", "cache")

    # a change makes anew what it concerns; the volume stays
    before = {service: daemon.inspect(project.name(service))["Id"] for service in ("web", "db")}
    run("up", "-d", "--no-deps", "web", COLOR="blue")
    assert "blue" == inside("web", "echo $COLOR")
    run("up", "-d", "--no-deps", "--force-recreate", "db")
    after = {service: daemon.inspect(project.name(service))["Id"] for service in ("web", "db")}
    assert set(before.values()).isdisjoint(after.values())
    assert "42" == inside(
        "web", f"until {_SQL} 'select 1' >/tmp/why 2>&1; do :; done; {_SQL} 'select x from t'"
    )
    run("stop", "-t", "20")
    assert {"exited"} == {project.state(service) for service in ("web", "db", "cache")}
    run("down", "-v", "-t", "1")
    names = {volume["Name"] for volume in daemon.client.get("/volumes")["Volumes"] or ()}
    assert not [name for name in names if name.startswith(project.directory.name)]
    assert not [n for n in daemon.client.get("/networks") if n["Name"].startswith(project.directory.name)]


@pytest.mark.parametrize("project", ["compose-2"], indirect=True)
def test_one_service_alone(project: Project, follow: Callable[..., subprocess.Popen[str]]) -> None:
    """The rest of the commands, on the VM."""
    project.run("up", "-d", "--no-deps", "cache")
    with follow(project, "events", "--json") as events, ThreadPoolExecutor(1) as thread:
        assert events.stdout is not None
        first = thread.submit(events.stdout.readline)
        while not first.done():  # it may not be listening yet
            project.run("kill", "-s", "CONT", "cache")
        event = json.loads(first.result())
        assert ("container", "cache", "kill") == (event["type"], event["service"], event["action"])
        events.kill()
    with follow(project, "logs", "-f", "cache") as logs:
        assert logs.stdout is not None
        assert any("Ready to accept connections" in line for line in logs.stdout)
        logs.kill()
    (project.directory / "it").write_text("came in\n")
    project.run("cp", "it", "cache:/tmp/it")
    assert "came in" == project.inside("cache", "cat /tmp/it")
    project.run("cp", "cache:/tmp/it", "back")
    assert "came in\n" == (project.directory / "back").read_text()
    [shown] = [json.loads(line) for line in project.run("ps", "--format", "json").splitlines()]
    assert ("cache", "running") == (shown["Service"], shown["State"])
    assert "redis-server" in project.run("top", "cache")
    project.run("pause", "cache")
    assert "paused" == project.state("cache")
    project.run("unpause", "cache")
    project.run("kill", "cache")
    assert "exited" == project.state("cache")
    project.run("start", "cache")
    assert "running" == project.state("cache")


@pytest.fixture
def follow() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Programs that go on until they are ended."""
    running: list[subprocess.Popen[str]] = []

    def start(project: Project, *words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "DOCKER_HOST": project.daemon.host, "PYTHONUNBUFFERED": "1"}
        one = subprocess.Popen(
            project.daemon.inside(*project.program, *words),
            cwd=project.directory,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(one)
        return one

    yield start
    for one in running:
        one.kill()
        one.wait()
