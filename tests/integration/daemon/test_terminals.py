"""`-it` with our client and with docker's, in both isolations: sizes, keys, detaching and coming back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rig import IMAGE, Daemon, isolated
from terminal import Terminal

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(params=["insula", "docker"])
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_terminal(daemon: Daemon, client: str, isolation: str, name: str) -> None:
    words = isolated(isolation, "run", "-it", "--rm", "--name", name, "-e", "PS1=ready>", IMAGE, "sh")
    terminal = Terminal(daemon, client, *words)
    terminal.until(b"ready>")
    terminal.type(b"stty size\n")
    terminal.until(b"31 97")
    terminal.resize(20, 50)
    terminal.type(b"until stty size | grep '20 5[0]'; do :; done\n")
    terminal.until(b"\n20 50")
    # the words come from where the signal shall go: the shell's own process group is not at risk
    terminal.type(b"sh -c \"echo star''ted; exec sleep 1000\"\n")
    terminal.until(b"started")
    terminal.type(b"\x03")
    terminal.type(b"echo code=$?\n")
    terminal.until(b"code=130")
    terminal.type(b"\x10\x11")
    assert 0 == terminal.end()
    again = Terminal(daemon, client, "attach", name)
    again.type(b"exit 5\n")
    assert 5 == again.end()


@pytest.fixture(scope="module", params=["process", pytest.param("vm", marks=pytest.mark.vm)])
def box(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    """An instance that stays."""
    ref = daemon.ok(*isolated(request.param, "run", "-d", IMAGE, "sleep", "1000"))
    yield ref
    daemon.ok("rm", "-f", ref)


def test_exec_on_a_terminal(daemon: Daemon, client: str, box: str) -> None:
    terminal = Terminal(daemon, client, "exec", "-it", box, "sh", "-c", "stty size; read word; exit $word")
    terminal.until(b"31 97")
    terminal.type(b"7\n")
    assert 7 == terminal.end()


def test_who_detaches_is_told_so_as_docker_does(daemon: Daemon, client: str, name: str) -> None:
    daemon.ok("run", "-dit", "--name", name, IMAGE, "sh")
    for words in (("attach", name), ("exec", "-it", name, "sh")):
        terminal = Terminal(daemon, client, *words)
        terminal.type(b"echo he''re\n")
        terminal.until(b"here")
        terminal.type(b"\x10\x11")
        assert 1 == terminal.end()
        assert b"read escape sequence" in terminal.seen
    daemon.ok("rm", "-f", name)


def test_the_first_thing_a_program_sees_is_the_size(daemon: Daemon, client: str, isolation: str) -> None:
    terminal = Terminal(daemon, client, *isolated(isolation, "run", "-it", "--rm", IMAGE, "stty", "size"))
    terminal.until(b"31 97")
    assert 0 == terminal.end()


@pytest.fixture
def busy() -> Iterator[None]:
    """A host whose CPUs are all taken."""
    argv = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(argv) for _ in range(os.cpu_count() or 1)]
    yield
    for hog in hogs:
        hog.kill()
        hog.wait()


@pytest.mark.usefixtures("busy")
def test_exec_has_its_size_from_the_start_on_a_busy_host(daemon: Daemon, box: str) -> None:
    # crun lets the program go before it sets the size: two of five saw none here.  Field 41: the policy
    command = ["sh", "-c", "stty size; awk '{ print $41 }' /proc/self/stat"]
    made = {"Cmd": command, "Tty": True, "AttachStdout": True, "ConsoleSize": [31, 97]}
    for _ in range(20):
        ref = daemon.client.post(f"/containers/{box}/exec", made)["Id"]
        with contextlib.closing(daemon.client.hijack(f"/exec/{ref}/start", body={"Tty": True})) as output:
            assert [b"31 97", b"0"] == b"".join(iter(output.recv, b"")).split(b"\r\n")[:2]
