"""The daemon's socket in a container, as CI runners, dashboards and testcontainers' Ryuk have it."""

from __future__ import annotations

import shutil

import pytest

from rig import IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

_SOCKET = "/var/run/docker.sock"


def test_the_engine_is_driven_from_a_container_of_its_own(daemon: Daemon, name: str) -> None:
    docker = shutil.which("docker")
    assert docker is not None
    libraries = [flag for path in ("/usr", "/lib", "/lib64") for flag in ("-v", f"{path}:{path}:ro")]
    client = ("-v", f"{docker}:/bin/docker:ro")
    runner = ("run", "--rm", "-v", f"{daemon.socket}:{_SOCKET}:ro", *libraries, *client, IMAGE)
    job = f"docker run --name {name} {IMAGE} sh -c 'echo made by a job' && docker logs {name}"
    said = daemon.ok(
        *runner, "sh", "-c", f"{job} && docker rm {name} && docker run --rm -i {IMAGE} cat </etc/passwd"
    )
    assert [*["made by a job"] * 2, name] == said.splitlines()[:3]
    assert said.splitlines()[3].startswith("root:")


def test_a_vm_is_not_given_a_socket_of_the_host(daemon: Daemon) -> None:
    done = daemon.docker(
        "run", "--rm", "--isolation", "vm", "-v", f"{daemon.socket}:{_SOCKET}", IMAGE, "true"
    )
    assert 125 == done.returncode
    assert b"socket" in done.stderr
    assert daemon.socket.encode() in done.stderr
