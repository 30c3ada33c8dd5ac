"""Log options with the stock client, in both isolations."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_a_log_is_kept_to_its_size_and_followed_over_a_cut(daemon: Daemon, isolation: str, name: str) -> None:
    size = ("--log-opt", "max-size=100k", "--log-opt", "max-file=2")
    # 4,000 lines are more than is kept; whoever follows is told by then, and says so
    script = "for r in 1 2 3; do seq 1 4000; echo round $r; read x; done"
    daemon.ok(*isolated(isolation, "create", "-i", "--name", name, *size, IMAGE, "sh", "-c", script))
    log = daemon.ok("inspect", "-f", "{{.LogPath}}", name)
    attach, environment = daemon.command("docker", "start", "-ai", name)
    follow, _ = daemon.command("docker", "logs", "-f", name)
    lines: list[str] = []
    with subprocess.Popen(
        attach, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as attached:
        assert attached.stdin is not None
        wait_for_start(daemon, name)
        with subprocess.Popen(follow, env=environment, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            for line in following.stdout:
                lines.append(line.strip())
                if line.startswith("round"):
                    attached.stdin.write(b"\n")
                    attached.stdin.flush()
        attached.stdin.close()
    numbers = list(map(str, range(1, 4001)))
    # the first round may have been cut before there was a follower
    assert [*numbers, "round 2", *numbers, "round 3"] == lines[lines.index("round 1") + 1 :]
    assert os.stat(log).st_blocks * 512 <= 200_000
    kept = daemon.ok("logs", name).splitlines()
    assert kept == lines[-len(kept) :]
    assert len(kept) > 3000
    assert ["4000", "round 3"] == daemon.ok("logs", "-n", "2", name).splitlines()
    daemon.ok("rm", name)


def wait_for_start(daemon: Daemon, name: str) -> None:
    filters = ("--filter", f"container={name}", "--filter", "event=start", "--since", "1")
    argv, environment = daemon.command("docker", "events", *filters)
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        try:
            assert events.stdout.readline()
        finally:
            events.terminate()


def test_details_and_what_is_refused(daemon: Daemon, isolation: str, name: str) -> None:
    options = ("--log-opt", "labels=kind", "--log-opt", "env=COLOUR", "--log-opt", "tag={{.Name}}")
    words = ("--name", name, "--label", "kind=a b", "-e", "COLOUR=red", *options, IMAGE, "echo", "hi")
    daemon.ok(*isolated(isolation, "run", *words))
    assert f"COLOUR=red,kind=a+b,tag={name} hi" == daemon.ok("logs", "--details", name)
    assert "hi" == daemon.ok("logs", name)
    daemon.ok("rm", name)
    for option, said in (("max-size=big", "invalid size"), ("odd=1", "unknown log opt 'odd'")):
        done = daemon.docker(*isolated(isolation, "create", "--log-opt", option, IMAGE, "true"))
        assert said in done.stderr.decode()


@pytest.mark.vm
def test_the_journal_gets_each_line_once_also_over_a_crash_of_the_daemon(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    socket_path = tmp_path / "journal"
    daemon = make_daemon("--journal-socket", str(socket_path))
    daemon.start()
    try:
        daemon.import_image()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(str(socket_path))
            journal.settimeout(60)

            def lines(isolation: str, count: int) -> list[bytes]:
                found = [journal.recv(1 << 16) for _ in range(count)]
                assert all(b"CONTAINER_NAME=" + isolation.encode() + b"\n" in one for one in found)
                return [one.partition(b"MESSAGE=")[2].partition(b"\n")[0] for one in found]

            for isolation in ("process", "vm"):
                words = isolated(isolation, "run", "-di", "--name", isolation, "--log-driver", "journald")
                daemon.ok(*words, IMAGE, "sh", "-c", "echo one; read x; echo two")
                assert [b"one"] == lines(isolation, 1)
            daemon.kill()
            daemon.start()
            for isolation in ("process", "vm"):
                daemon.ok("attach", "--sig-proxy=false", isolation, stdin=b"\n")
                assert [b"two"] == lines(isolation, 1)
                assert "one\ntwo" == daemon.ok("logs", isolation)
    finally:
        daemon.stop()
