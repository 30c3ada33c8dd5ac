"""Sockets: modes, stale ones, taken ones, systemd's."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from insula.api.listen import inherited_sockets, open_listeners, open_tcp, open_unix, unlink_path
from insula.errors import Conflict, InvalidRequest


def test_a_unix_socket_is_for_its_group_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "api.sock"
    with open_unix(str(path)) as listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        unlink_path(listener)
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    open_unix(path).close()
    with open_unix(path), pytest.raises(Conflict, match="already"):
        open_unix(path)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(Conflict, match="not a socket"):
        open_unix(str(path))
    assert path.read_text() == "precious"


def test_tcp_without_a_host_is_loopback_and_a_taken_port_is_a_conflict() -> None:
    with open_tcp(":0") as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(Conflict):
            open_tcp(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "host", ["x", "http://a", "unix://relative", "tcp://a", "tcp://a:99999", "fd://", f"unix:///{'a' * 200}"]
)
def test_bad_addresses(host: str) -> None:
    with pytest.raises(InvalidRequest):
        open_listeners((host,))


def test_when_one_address_fails_the_others_are_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with pytest.raises(InvalidRequest):
        open_listeners((f"unix://{path}", "odd"))
    open_unix(path).close()


def test_systemd_s_sockets_are_taken_and_hidden_from_children(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "from insula.api.listen import inherited_sockets\n"
        "found = inherited_sockets()\n"
        "print(found[0].getsockname(), os.get_inheritable(3), 'LISTEN_FDS' in os.environ)\n"
    )
    path = str(tmp_path / "api.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        done = subprocess.run(
            [sys.executable, "-c", script, str(listener.fileno())],
            pass_fds=[listener.fileno()], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{path} False False\n", "")


def test_sockets_for_another_process_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert inherited_sockets() == []
