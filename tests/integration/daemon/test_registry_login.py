"""login, push and pull with Debian's docker-registry and a password, by `insula` and by the stock client."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.images.test_registry import SESAME, start_registry
from rig import IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a client and a configuration of their own, beside a registry that wants a password."""

    daemon: Daemon
    client: str
    config: Path
    registry: str

    def run(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        argv, environment = self.daemon.command(self.client, *words)
        environment = {**environment, "DOCKER_CONFIG": str(self.config)}
        return subprocess.run(
            argv, input=stdin, capture_output=True, env=environment, timeout=60, check=False
        )

    def said(self, *words: str, code: int = 0, stdin: bytes | None = None) -> str:
        done = self.run(*words, stdin=stdin)
        text = (done.stdout + done.stderr).decode()
        assert code == done.returncode, text
        return text


@pytest.fixture(scope="module")
def registry(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """In the daemon's network namespace, whose loopback is not ours."""
    directory = tmp_path_factory.mktemp("registry") / "guarded"
    with start_registry(directory, f"ali:{SESAME}", netns=daemon.netns) as address:
        yield address


@pytest.fixture(params=["insula", "docker"])
def person(daemon: Daemon, registry: str, tmp_path: Path, request: pytest.FixtureRequest) -> Person:
    return Person(daemon, request.param, tmp_path / "config", registry)


def test_a_password_opens_the_registry(person: Person, name: str) -> None:
    ref = f"{person.registry}/private/{name}:1"
    person.daemon.ok("tag", IMAGE, ref)
    try:
        assert "authentication required" in person.said("push", ref, code=1)
        wrong = person.said("login", "-u", "ali", "--password-stdin", person.registry, stdin=b"no", code=1)
        assert "incorrect username or password" in wrong
        login = ("login", "-u", "ali", "--password-stdin", person.registry)
        assert "Login Succeeded" in person.said(*login, stdin=b"sesame\n")
        filed = person.config / "config.json"
        assert person.registry in json.loads(filed.read_text())["auths"]
        assert 0o600 == os.stat(filed).st_mode & 0o777

        digest = next(word for word in person.said("push", ref).split() if word.startswith("sha256:"))
        person.daemon.ok("rmi", ref)
        assert f"Digest: {digest}" in person.said("pull", ref)
        shown = json.loads(person.daemon.ok("image", "inspect", ref))[0]
        assert [f"{person.registry}/private/{name}@{digest}"] == shown["RepoDigests"]
        person.daemon.ok("rmi", ref)
        assert "hello" in person.said("run", "--rm", ref, "echo", "hello")
        person.daemon.ok("rmi", ref)
        dockerfile = f"FROM {ref}\nRUN echo built\n".encode()
        assert "\nbuilt\n" in person.said(
            "build", "--no-cache", "--force-rm", "-t", name, "-", stdin=dockerfile
        )
        person.daemon.ok("rmi", name)

        person.said("logout", person.registry)
        assert person.registry not in json.loads(filed.read_text()).get("auths", {})
        assert "authentication required" in person.said("pull", ref, code=1)
    finally:
        person.daemon.docker("rmi", ref)
