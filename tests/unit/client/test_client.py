"""The client against a scripted server on a unix socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.client import Client
from insula.errors import DaemonRefused, DaemonUnreachable, InvalidRequest

Serve = Callable[[bytes], list[bytes]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Serve]]]:
    """`serve(answer)` → (host, requests): answers one connection with these bytes, keeps what it read."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(answer: bytes, *, echo_after: bool = False) -> tuple[str, list[bytes]]:
        path = tmp_path / f"s{len(listeners)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)
        seen: list[bytes] = []

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                seen.append(data)
                connection.sendall(answer)
                if echo_after:
                    while piece := connection.recv(65536):
                        connection.sendall(piece)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return f"unix://{path}", seen

    yield start  # type: ignore[misc]
    for thread in threads:
        thread.join(5)
    for listener in listeners:
        listener.close()


def test_json_answers_are_decoded(serve: Callable[..., tuple[str, list[bytes]]]) -> None:
    host, seen = serve(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}')
    assert {"a": 1} == Client(host).get("/info", all=True, filters={"x": ["y"]})
    assert seen[0].startswith(b"GET /v1.47/info?all=1&filters=%7B%22x%22%3A%20%5B%22y%22%5D%7D HTTP/1.1\r\n")


def test_an_error_carries_the_daemons_words(serve: Callable[..., tuple[str, list[bytes]]]) -> None:
    host, _ = serve(b'HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n{"message":"gone"}')
    with pytest.raises(DaemonRefused, match="gone") as caught:
        Client(host).get("/containers/x/json")
    assert 404 == caught.value.http_status


def test_lines_arrive_whole_however_they_were_cut(serve: Callable[..., tuple[str, list[bytes]]]) -> None:
    host, _ = serve(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'8\r\n{"a":1}\n\r\n3\r\n{"b\r\n5\r\n":2}\n\r\n0\r\n\r\n'
    )
    assert [{"a": 1}, {"b": 2}] == list(Client(host).request("GET", "/events").lines())


def test_hijack_keeps_bytes_that_came_with_the_header(
    serve: Callable[..., tuple[str, list[bytes]]],
) -> None:
    head = (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    host, _ = serve(head + b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03err")
    connection = Client(host).hijack("/containers/x/attach")
    assert [(1, b"hi"), (2, b"err")] == list(connection.frames())
    connection.close()


def test_hijack_half_closes(serve: Callable[..., tuple[str, list[bytes]]]) -> None:
    head = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
    host, _ = serve(head, echo_after=True)
    connection = Client(host).hijack("/exec/x/start", body={})
    connection.send(b"payload")
    connection.close_stdin()
    assert b"".join(data for _, data in connection.frames()) == b"payload"
    connection.close()


def test_hijack_refused_is_an_error(serve: Callable[..., tuple[str, list[bytes]]]) -> None:
    host, _ = serve(b'HTTP/1.1 409 Conflict\r\nContent-Length: 20\r\n\r\n{"message":"paused"}')
    with pytest.raises(DaemonRefused, match="paused"):
        Client(host).hijack("/containers/x/attach")


def test_dial_stdio_closes_one_half_and_hears_the_other(
    serve: Callable[..., tuple[str, list[bytes]]],
) -> None:
    """The far side of `docker -H ssh://`: what ssh gives it, to the daemon and back, as it is."""
    request = b"POST /exec/x/start HTTP/1.1\r\n\r\n"
    host, seen = serve(b"HTTP/1.1 101 UPGRADED\r\n\r\n", echo_after=True)
    with _dial_stdio(host) as dialled:
        assert dialled.stdin is not None
        assert dialled.stdout is not None
        dialled.stdin.write(request)
        dialled.stdin.flush()
        assert [b"HTTP/1.1 101 UPGRADED\r\n", b"\r\n"] == [dialled.stdout.readline() for _ in range(2)]
        out, errors = dialled.communicate(b"\x00binary\xff" * 50_000)
    assert (0, b"") == (dialled.returncode, errors)
    assert b"\x00binary\xff" * 50_000 == out
    assert [request] == seen


def test_dial_stdio_ends_with_the_daemon(serve: Callable[..., tuple[str, list[bytes]]]) -> None:
    """Whatever its input does: sshd keeps that open."""
    host, _ = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with _dial_stdio(host) as dialled:
        assert dialled.stdin is not None
        assert dialled.stdout is not None
        dialled.stdin.write(b"GET /_ping HTTP/1.1\r\n\r\n")
        dialled.stdin.flush()
        assert b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" == dialled.stdout.read()
        assert 0 == dialled.wait()


def test_dial_stdio_with_nobody_there(tmp_path: Path) -> None:
    with _dial_stdio(f"unix://{tmp_path}/none") as dialled:
        out, errors = dialled.communicate()
    assert (1, b"") == (dialled.returncode, out)
    assert b"cannot connect to the daemon" in errors


def test_a_daemon_elsewhere_is_reached_through_ssh(
    serve: Callable[..., tuple[str, list[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, seen = serve(b"HTTP/1.1 101 UPGRADED\r\n\r\n", echo_after=True)
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/argv\n'
        f"exec {sys.executable} -m insula.cli -H {host} system dial-stdio\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    connection = Client("ssh://me@far:2222/run/x y.sock").hijack("/exec/x/start", body={})
    connection.send(b"payload")
    connection.close_stdin()
    assert b"payload" == b"".join(data for _, data in connection.frames())
    connection.close()
    assert seen[0].startswith(b"POST /v1.47/exec/x/start HTTP/1.1\r\n")
    ours, there = (tmp_path / "argv").read_text().split(" -- ")
    assert "-T -o ConnectTimeout=30 -l me -p 2222" == ours
    assert "far insula --host 'unix:///run/x y.sock' system dial-stdio\n" == there


def test_ssh_that_does_not_get_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DaemonUnreachable, match="there is no ssh here"):
        Client("ssh://far").get("/info")
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    with pytest.raises(DaemonUnreachable, match="ssh far insula version"):
        Client("ssh://far").get("/info")


@pytest.mark.parametrize(
    "host",
    ["ssh://", "ssh:///run/x", "ssh://me:secret@far", "ssh://far:port", "ssh://far/x?y", "ssh://far#x"],
)
def test_a_wrong_address_of_ssh_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequest, match="--host"):
        Client(host)


def _dial_stdio(host: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "insula.cli", "-H", host, "system", "dial-stdio"]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)


def test_nobody_there_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="insula daemon"):
        Client(f"unix://{tmp_path}/none").get("/info")


@pytest.mark.parametrize("host", ["", "/run/x.sock", "http://x", "unix://"])
def test_a_wrong_address_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequest, match="--host"):
        Client(host)
