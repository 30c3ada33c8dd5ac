"""The API on TCP under TLS: docker, docker-py and `insula`, hijacked streams and streams that stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import stack
from certificates import make_certificates
from rig import ENVIRONMENT, IMAGE, Daemon, isolated
from terminal import Terminal

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

HOST = "tcp://127.0.0.1:2376"


@dataclass(slots=True)
class Remote:
    """The daemon's clients, by the words and variables that make them speak TLS."""

    daemon: Daemon
    certificates: Path

    def files(self, who: str) -> tuple[str, ...]:
        place = self.certificates / who
        return (
            "--tlscacert",
            f"{place}/ca.pem",
            "--tlscert",
            f"{place}/cert.pem",
            "--tlskey",
            f"{place}/key.pem",
        )

    def command(self, client: str, *words: str) -> tuple[list[str], dict[str, str]]:
        if client == "docker":
            options = ("--tlsverify", *self.files("client"))
            return self.daemon.inside("docker", "-H", HOST, *options, *words), {**os.environ}
        variables = {
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": f"{self.certificates}/client",
            "INSULA_HOST": HOST,
        }
        return self.daemon.inside(sys.executable, "-m", "insula.cli", *words), {**ENVIRONMENT, **variables}

    def run(self, client: str, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        argv, environment = self.command(client, *words)
        return subprocess.run(argv, input=stdin or b"", capture_output=True, timeout=120, env=environment)

    def ok(self, client: str, *words: str, stdin: bytes | None = None) -> bytes:
        done = self.run(client, *words, stdin=stdin)
        assert done.returncode == 0, (done.stderr, self.daemon.log[-3000:])
        return done.stdout


@pytest.fixture(scope="module")
def remote(make_daemon: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    place = make_certificates(tmp_path_factory.mktemp("certificates"))
    own = ("--tlscert", f"{place}/server.pem", "--tlskey", f"{place}/server-key.pem")
    daemon = make_daemon("--host", HOST, "--tlsverify", "--tlscacert", f"{place}/ca.pem", *own)
    daemon.start()
    daemon.import_image()
    yield Remote(daemon, place)
    daemon.stop()


@pytest.fixture(params=["docker", "insula"])
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("client", "isolation"),
    [("docker", "process"), ("insula", "process"), pytest.param("docker", "vm", marks=pytest.mark.vm)],
)
def test_streams_both_ways(remote: Remote, client: str, isolation: str, name: str) -> None:
    """The end of stdin is not the end of what comes back: of `run`, and of an exec meanwhile."""
    data = os.urandom(300_000)
    script = "echo up; cat; echo after >&2"
    words = isolated(isolation, "run", "--rm", "--name", name, "-i", IMAGE, "sh", "-c", script)
    argv, environment = remote.command(client, *words)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env=environment, **pipes) as child:
        assert child.stdout is not None
        assert b"up\n" == child.stdout.readline(), remote.daemon.log[-3000:]
        exec_ = ("exec", "-i", name, "sh", "-c", "cat; echo end")
        assert b"fed\nend\n" == remote.ok(client, *exec_, stdin=b"fed\n")
        out, err = child.communicate(data, timeout=120)
    assert (0, data, b"after\n") == (child.returncode, out, err)


def test_a_terminal(remote: Remote, client: str, name: str) -> None:
    terminal = Terminal(remote, client, "run", "-it", "--rm", "--name", name, "-e", "PS1=ready>", IMAGE, "sh")
    terminal.until(b"ready>")
    terminal.type(b"stty size\n")
    terminal.until(b"31 97")
    terminal.type(b"exit 5\n")
    assert 5 == terminal.end()


def test_buildx_builds(remote: Remote, guest_cache: Path, tmp_path: Path) -> None:
    """HTTP/2 in both directions under TLS."""
    plugin = stack.find_buildx(guest_cache.parent)
    if plugin is None:
        pytest.skip("Debian's archive cannot be reached")
    (tmp_path / "cli-plugins").mkdir()
    (tmp_path / "cli-plugins/docker-buildx").symlink_to(plugin)
    (tmp_path / "big").write_bytes(data := os.urandom(3 << 20))
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY big /big\n")
    argv, environment = remote.command(
        "docker", "build", "-t", "tls:built", "-o", f"{tmp_path}/out", str(tmp_path)
    )
    environment = {**environment, "DOCKER_CONFIG": str(tmp_path)}
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, (done.stderr, remote.daemon.log[-3000:])
    assert data == (tmp_path / "out/big").read_bytes()


def test_docker_py_attaches(remote: Remote) -> None:
    script = """
import docker, sys
files = sys.argv[1]
pair = (files + "/cert.pem", files + "/key.pem")
tls = docker.tls.TLSConfig(client_cert=pair, ca_cert=files + "/ca.pem", verify=True)
client = docker.DockerClient(base_url="tcp://127.0.0.1:2376", tls=tls)
box = client.containers.create(sys.argv[2], ["sh", "-c", "read word; echo said $word"], stdin_open=True)
sock = box.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
box.start()
(sock.sendall if hasattr(sock, "sendall") else sock.write)(b"hello\\n")
box.wait()
print(box.logs().decode(), end="")
box.remove()
"""
    argv = [sys.executable, "-c", script, f"{remote.certificates}/client", IMAGE]
    # requests prefers these to what it is told
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")}
    done = subprocess.run(remote.daemon.inside(*argv), capture_output=True, timeout=120, env=environment)
    assert (b"said hello\n", 0) == (done.stdout, done.returncode), done.stderr


@pytest.mark.parametrize(
    ("client", "words"),
    [("docker", ("events", "--since", "1")), ("insula", ("logs", "-f", "BOX"))],
    ids=["events", "logs"],
)
def test_who_only_listens_is_noticed_when_he_goes(remote: Remote, client: str, words: Sequence[str]) -> None:
    box = remote.ok(client, "run", "-d", "--rm", IMAGE, "sh", "-c", "echo up; sleep 1000").decode().strip()
    argv, environment = remote.command(client, *(box if word == "BOX" else word for word in words))
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()  # it is listening
        assert open_connections(remote) > 0
        child.terminate()
    wait_until(lambda: open_connections(remote) == 0)
    remote.ok(client, "rm", "-f", box)


def open_connections(remote: Remote) -> int:
    """That the daemon has not closed, whether or not the client has."""
    states = ("state", "established", "state", "close-wait")
    argv = remote.daemon.inside("ss", "-Htn", *states, "sport = :2376")
    return len(subprocess.run(argv, capture_output=True, check=True).stdout.splitlines())


def wait_until(there: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_strangers_are_refused(remote: Remote) -> None:
    nobody = ("--tls", "--tlscacert", f"{remote.certificates}/ca.pem", "--tlscert", "", "--tlskey", "")
    for words in (("--tlsverify", *remote.files("stranger")), nobody, ()):
        argv = remote.daemon.inside("docker", "-H", HOST, *words, "version", "-f", "{{.Server.Version}}")
        done = subprocess.run(
            argv, capture_output=True, timeout=60, env={**os.environ, "DOCKER_CONFIG": "/none"}
        )
        assert done.returncode != 0, words
        assert b"certificate" in done.stderr or b"HTTP request to an HTTPS server" in done.stderr, done.stderr


def test_a_context_of_dockers(remote: Remote, tmp_path: Path) -> None:
    place = remote.certificates / "client"
    environment = {**ENVIRONMENT, "PATH": os.environ["PATH"], "DOCKER_CONFIG": str(tmp_path)}
    endpoint = f"host={HOST},ca={place}/ca.pem,cert={place}/cert.pem,key={place}/key.pem"
    subprocess.run(["docker", "context", "create", "far", "--docker", endpoint], check=True, env=environment)
    argv = remote.daemon.inside(sys.executable, "-m", "insula.cli", "--context", "far", "info", "-f", "json")
    done = subprocess.run(argv, capture_output=True, timeout=60, env=environment, check=True)
    assert str(remote.daemon.directory / "data") == json.loads(done.stdout)["DockerRootDir"]
