"""`docker run` with the stock client, in both isolations: what people do all day."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def run(daemon: Daemon, isolation: str, *words: str, stdin: bytes | None = None) -> str:
    return daemon.ok(*isolated(isolation, "run", "--rm", *words), stdin=stdin)


def test_the_kernel_is_the_hosts_or_its_own(daemon: Daemon, isolation: str) -> None:
    release = run(daemon, isolation, IMAGE, "uname", "-r")
    assert (os.uname().release == release) == (isolation == "process")


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_codes(daemon: Daemon, isolation: str, code: int) -> None:
    done = daemon.docker(*isolated(isolation, "run", "--rm", IMAGE, "sh", "-c", f"exit {code}"))
    assert code == done.returncode


def test_a_missing_program_is_127(daemon: Daemon, isolation: str) -> None:
    done = daemon.docker(*isolated(isolation, "run", "--rm", IMAGE, "no-such-program"))
    assert 127 == done.returncode
    assert b"executable file not found" in done.stderr


def test_a_file_that_is_no_program_is_126(daemon: Daemon, isolation: str) -> None:
    done = daemon.docker(*isolated(isolation, "run", "--rm", IMAGE, "/etc/plain"))
    assert 126 == done.returncode
    assert b"permission denied" in done.stderr


def test_stdout_and_stderr_stay_apart(daemon: Daemon, isolation: str) -> None:
    done = daemon.docker(*isolated(isolation, "run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2"))
    assert (b"out\n", b"err\n") == (done.stdout, done.stderr)


def test_piped_stdin_comes_back_whole(daemon: Daemon, isolation: str) -> None:
    data = os.urandom(8 << 20)
    done = daemon.docker(*isolated(isolation, "run", "--rm", "-i", IMAGE, "cat"), stdin=data)
    assert 0 == done.returncode
    assert data == done.stdout


def test_output_goes_on_after_stdin_has_ended(daemon: Daemon, isolation: str) -> None:
    script = "cat >/dev/null; seq 1 20000"
    done = daemon.docker(*isolated(isolation, "run", "--rm", "-i", IMAGE, "sh", "-c", script), stdin=b"x")
    assert "\n".join(map(str, range(1, 20001))) + "\n" == done.stdout.decode()


@pytest.fixture(scope="module", params=["process", pytest.param("vm", marks=pytest.mark.vm)])
def shaped(
    daemon: Daemon, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """One instance with everything set, looked at by the tests below with exec."""
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o755)
    (shared / "from-host").write_text("hello")
    ident = daemon.ok(
        *isolated(request.param, "run", "-d", "--init"),
        *("--user", "user", "--group-add", "staff", "--env", "COLOUR=red", "--workdir", "/work/here"),
        *("--hostname", "island", "--ulimit", "nofile=123:456", "--tmpfs", "/scratch:size=1m,mode=1777"),
        *("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--memory", "200m", "--pids-limit", "100"),
        *("-v", f"{shared}:/shared", "-v", f"{shared}:/readonly:ro", "--add-host", "other:10.1.2.3"),
        *("-v", f"{shared}/from-host:/made/for/file:ro"),
        *(IMAGE, "sleep", "1000"),
    )
    yield ident
    daemon.ok("rm", "-f", ident)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("id -u; id -g", "1000\n1000"),
        ("id -G", "1000 50"),
        ("echo $COLOUR", "red"),
        ("pwd", "/work/here"),
        ("hostname", "island"),
        ("cat /etc/hostname", "island"),
        ("grep other /etc/hosts", "10.1.2.3\tother"),
        ("ulimit -Sn; ulimit -Hn", "123\n456"),
        ("touch /scratch/x && echo made", "made"),
        ("cat /shared/from-host", "hello"),
        ("touch /readonly/x 2>&1 | grep -c Read-only", "1"),
        ("cat /made/for/file; (echo x >/made/for/file) 2>&1 | grep -c Read-only", "hello1"),
        ("echo $HOME", "/home"),
        ("grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
        ("grep CapBnd /proc/self/status", "CapBnd:\t0000000000000400"),
        ("grep -w Seccomp /proc/self/status", "Seccomp:\t2"),
        ("cat /proc/1/comm", "docker-init"),
    ],
)
def test_what_was_asked_for_is_so_inside(daemon: Daemon, shaped: str, command: str, expected: str) -> None:
    if command == "cat /proc/1/comm":
        # both run a small init; which program it is is the backend's business
        assert "sleep" != daemon.ok("exec", shaped, "sh", "-c", command)
        return
    assert expected == daemon.ok("exec", shaped, "sh", "-c", command)


def test_an_empty_home_is_the_users_own(daemon: Daemon, shaped: str) -> None:
    assert "/home" == daemon.ok("exec", "-e", "HOME=", shaped, "sh", "-c", "echo $HOME")


def test_read_only_root(daemon: Daemon, isolation: str) -> None:
    script = "touch /x /etc/hosts /etc/hostname /etc/resolv.conf 2>&1; touch /tmp/y && echo tmp"
    said = run(daemon, isolation, "--read-only", "--tmpfs", "/tmp", IMAGE, "sh", "-c", script)
    assert 4 == said.count("Read-only file system"), said
    assert said.endswith("tmp")


def test_programs_of_32_bits_run(daemon: Daemon, isolation: str, tmp_path: Path) -> None:
    """Docker's seccomp profile lets them; this one is exit(7) and its ELF header."""
    code = bytes.fromhex("31c040" + "bb07000000" + "cd80")  # eax = 1, ebx = 7, int 0x80
    start, ends = 0x8048000, 52 + 32
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        *(b"\x7fELF\1\1\1", 2, 3, 1, start + ends, 52, 0, 0, 52, 32, 1, 0, 0, 0),
    )
    size = ends + len(code)
    (tmp_path / "exit7").write_bytes(
        header + struct.pack("<8I", 1, 0, start, start, size, size, 5, 0x1000) + code
    )
    (tmp_path / "exit7").chmod(0o755)
    words = ("run", "--rm", "-v", f"{tmp_path}:/bin32", IMAGE, "/bin32/exit7")
    assert 7 == daemon.docker(*isolated(isolation, *words)).returncode


def test_what_is_mounted_below_dev_is_there(daemon: Daemon, isolation: str, tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("mark ")
    places = (
        "-v",
        f"{tmp_path}:/dev/shm:ro",
        "--tmpfs",
        "/dev/mine:size=1m",
        "--tmpfs",
        "/dev/mqueue:size=2m",
    )
    script = "cat /dev/shm/mark; touch /dev/shm/x 2>&1; grep -o ' /dev/m.* tmpfs .*size=[0-9]*k' /proc/mounts"
    said = run(daemon, isolation, *places, IMAGE, "sh", "-c", script)
    assert said.startswith("mark ")
    assert "Read-only file system" in said
    for name, size in (("mine", "1024k"), ("mqueue", "2048k")):
        assert any(f"/dev/{name} " in line and size in line for line in said.splitlines()), said


def test_a_bind_is_the_hosts_directory(daemon: Daemon, isolation: str, tmp_path: Path) -> None:
    run(daemon, isolation, "-v", f"{tmp_path}:/data", IMAGE, "sh", "-c", "echo from inside > /data/file")
    assert "from inside\n" == (tmp_path / "file").read_text()


def test_logs_in_full_and_in_part(daemon: Daemon, isolation: str, name: str) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2"
    daemon.ok(*isolated(isolation, "run", "--name", name, IMAGE, "sh", "-c", script))
    try:
        done = daemon.docker("logs", name)
        assert "".join(f"line {i}\n" for i in range(1, 6)) == done.stdout.decode()
        assert b"oops\n" == done.stderr
        assert "line 5" in daemon.ok("logs", "--tail", "2", name)
        assert "line 3" not in daemon.ok("logs", "--tail", "2", name)
        assert "" == daemon.ok("logs", "--since", "1h", "--until", "30m", name)
        stamped = (
            daemon.ok("logs", "-t", "--tail", "1", name) or daemon.docker("logs", "-t", name).stdout.decode()
        )
        assert stamped[:2] == "20"
    finally:
        daemon.ok("rm", name)


def test_exec_several_at_once_with_input_and_codes(daemon: Daemon, isolation: str, name: str) -> None:
    daemon.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sleep", "1000"))
    try:
        assert b"fed" == daemon.docker("exec", "-i", name, "cat", stdin=b"fed").stdout
        assert 7 == daemon.docker("exec", name, "sh", "-c", "exit 7").returncode
        assert 126 == daemon.docker("exec", name, "no-such-program").returncode
        argv = daemon.inside("docker", "-H", daemon.host, "exec", name, "sh", "-c", "sleep 0.5; echo done")
        several = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(5)]
        assert [b"done\n"] * 5 == [child.communicate(timeout=60)[0] for child in several]
        assert "1000" == daemon.ok("exec", "-u", "user", name, "id", "-u")
        assert "blue" == daemon.ok("exec", "-e", "X=blue", "-w", "/tmp", name, "sh", "-c", "echo $X")
    finally:
        daemon.ok("rm", "-f", name)


def test_a_terminal_is_one(daemon: Daemon, isolation: str) -> None:
    script = ["script", "-qec", " ".join([*daemon.inside("docker", "-H", daemon.host), *isolated(
        isolation, "run", "--rm", "-t", IMAGE, "sh", "-c", "'tty; stty size'")]), "/dev/null"]  # fmt: skip
    done = subprocess.run(script, capture_output=True, timeout=120, check=True, stdin=subprocess.DEVNULL)
    assert b"/dev/" in done.stdout


def wait_for_output(daemon: Daemon, name: str, text: str) -> None:
    """Follows the log until the text is in it."""
    argv = daemon.inside("docker", "-H", daemon.host, "logs", "-f", name)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert any(text in line for line in child.stdout), f"{name} ended without {text!r}"
        child.kill()


def test_stop_asks_first_and_kills_then(daemon: Daemon, isolation: str, name: str) -> None:
    polite = "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.1; done"
    daemon.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sh", "-c", polite))
    wait_for_output(daemon, name, "ready")
    daemon.ok("stop", "-t", "20", name)
    assert "5" == daemon.ok("inspect", "-f", "{{.State.ExitCode}}", name)
    assert "bye" in daemon.ok("logs", name)
    daemon.ok("rm", name)
    daemon.ok(
        *isolated(isolation, "run", "-d", "--name", name, IMAGE, "sh", "-c", "trap '' TERM; sleep 1000")
    )
    began = time.monotonic()
    daemon.ok("stop", "-t", "1", name)
    assert 137 == int(daemon.ok("inspect", "-f", "{{.State.ExitCode}}", name))
    assert time.monotonic() - began >= 1
    daemon.ok("rm", name)


def test_states_and_restart(daemon: Daemon, isolation: str, name: str) -> None:
    def state() -> str:
        return daemon.ok("inspect", "-f", "{{.State.Status}}", name)

    daemon.ok(*isolated(isolation, "create", "--name", name, IMAGE, "sleep", "1000"))
    assert "created" == state()
    daemon.ok("start", name)
    assert "running" == state()
    daemon.ok("pause", name)
    assert "paused" == state()
    daemon.ok("unpause", name)
    daemon.ok("exec", name, "touch", "/kept")
    daemon.ok("restart", "-t", "0", name)
    assert "/kept" == daemon.ok("exec", name, "ls", "/kept")
    daemon.ok("kill", name)
    daemon.docker("wait", name)
    assert "exited" == state()
    assert isolation == daemon.ok("inspect", "-f", "{{.HostConfig.Isolation}}", name)
    daemon.ok("rename", name, f"{name}-new")
    daemon.ok("rm", f"{name}-new")


def test_files_in_and_out(daemon: Daemon, isolation: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("carried")
    daemon.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sleep", "1000"))
    try:
        daemon.ok("cp", str(tmp_path / "in"), f"{name}:/tmp/in")
        assert "carried" == daemon.ok("exec", name, "cat", "/tmp/in")
        daemon.ok("cp", f"{name}:/tmp/in", str(tmp_path / "out"))
        assert "carried" == (tmp_path / "out").read_text()
        assert "A /tmp/in" in daemon.ok("diff", name).splitlines()
        # of the root docker's client replaces the first slash: names begin with it
        with daemon.client.request("GET", f"/containers/{name}/archive", query={"path": "/"}) as whole:
            beginning = io.BytesIO(whole.read_exactly(16 * 512))
        # tarfile takes the slashes at the end of names away
        with tarfile.open(fileobj=beginning, mode="r|") as tar:
            found = [tar.next() for _ in range(2)]
        assert ["", "/"] == [member.name[:1] for member in found if member is not None]
    finally:
        daemon.ok("rm", "-f", name)


def test_commit_is_a_new_image(daemon: Daemon, isolation: str, name: str) -> None:
    daemon.ok(*isolated(isolation, "run", "--name", name, IMAGE, "sh", "-c", "echo 1 > /one; rm /etc/plain"))
    try:
        daemon.ok("commit", name, f"{name}:made")
        assert "1" == run(daemon, "process", f"{name}:made", "cat", "/one")
        assert 1 == daemon.docker("run", "--rm", f"{name}:made", "ls", "/etc/plain").returncode
    finally:
        daemon.ok("rm", name)
        daemon.docker("rmi", f"{name}:made")


def test_memory_limit_ends_in_an_oom_kill(daemon: Daemon, isolation: str, name: str) -> None:
    script = "x=a; while true; do x=$x$x$x; done"
    done = daemon.docker(*isolated(isolation, "run", "--name", name, "-m", "96m", IMAGE, "sh", "-c", script))
    try:
        assert 137 == done.returncode
        assert "true" == daemon.ok("inspect", "-f", "{{.State.OOMKilled}}", name)
    finally:
        daemon.ok("rm", "-f", name)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--isolation", "jail"), "isolation"),
        (("--isolation", "vm", "--network", "host"), "host"),
        (("--isolation", "vm", "--pid", "host"), "pid"),
        (("--memory", "1k"), "memory"),
        (("--cap-add", "NO_SUCH_CAP"), "NO_SUCH_CAP"),
    ],
)
def test_what_cannot_be_is_refused_by_name(daemon: Daemon, words: tuple[str, ...], named: str) -> None:
    done = daemon.docker("run", "--rm", *words, IMAGE, "true")
    assert 125 == done.returncode
    assert named.lower() in done.stderr.decode().lower()


def test_files_of_a_paused_instance_and_commit(daemon: Daemon, isolation: str, name: str) -> None:
    """Its workload stands still while they are read, and goes on only when it is told to."""
    script = "i=0; echo 0 > /n; echo ready; while true; do i=$((i+1)); echo $i > /new; mv /new /n; done"
    daemon.ok(*isolated(isolation, "run", "-d", "--name", name, IMAGE, "sh", "-c", script))
    try:
        wait_for_output(daemon, name, "ready")
        daemon.ok("commit", name, f"{name}:made")
        assert "running" == daemon.ok("inspect", "-f", "{{.State.Status}}", name)
        daemon.ok("pause", name)
        before = daemon.ok("cp", f"{name}:/n", "-")
        assert before == daemon.ok("cp", f"{name}:/n", "-")
        assert "paused" == daemon.ok("inspect", "-f", "{{.State.Status}}", name)
        assert 1 == daemon.docker("exec", name, "true").returncode
        daemon.ok("unpause", name)
        first = daemon.ok("exec", name, "cat", "/n")
        assert any(daemon.ok("exec", name, "cat", "/n") != first for _ in range(100))
    finally:
        daemon.ok("rm", "-f", name)
        daemon.docker("rmi", f"{name}:made")


def test_on_failure_gives_up_after_so_many_restarts(daemon: Daemon, isolation: str, name: str) -> None:
    words = ("-d", "--name", name, "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo once; exit 3")
    since = daemon.client.get("/info")["SystemTime"]
    daemon.ok(*isolated(isolation, "run", *words))
    filters = ("--filter", f"container={name}", "--filter", "event=die")
    argv, environment = daemon.command("docker", "events", "--since", since, *filters)
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        try:
            assert all(events.stdout.readline() for _ in range(3))
        finally:
            events.terminate()
    assert "3" == daemon.ok("wait", name)
    assert "exited 3 2" == daemon.ok(
        "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", name
    )
    assert ["once"] * 3 == daemon.ok("logs", name).splitlines()
    daemon.ok("rm", name)


def test_one_that_is_removed_at_its_end_is_whole_after_a_restart(daemon: Daemon, isolation: str) -> None:
    name = f"brief-{isolation}"
    script = "cat /note; echo kept >/note; echo up; exec sleep 1000"
    daemon.ok(*isolated(isolation, "run", "-d", "--rm", "--name", name, IMAGE, "sh", "-c", script))
    for restarts in range(2):
        while daemon.ok("logs", name).split().count("up") <= restarts:
            time.sleep(0.05)
        if not restarts:
            daemon.ok("restart", "-t", "0", name)
    assert "kept" in daemon.ok("logs", name)
    daemon.ok("rm", "-f", name)


def test_the_last_words_of_one_that_is_removed_at_its_end(daemon: Daemon, isolation: str) -> None:
    script = "seq 30000; seq 30000 >&2; exit 7"
    done = daemon.docker(*isolated(isolation, "run", "--rm", IMAGE, "sh", "-c", script))
    numbers = b"".join(b"%d\n" % n for n in range(1, 30001))
    assert (7, numbers, numbers) == (done.returncode, done.stdout, done.stderr)
