"""`insula` used as docker is used: flags, exit codes, error text, `--format`, terminals, cp and pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.cli.main import COMMANDS
from rig import ENVIRONMENT, IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def ok(daemon: Daemon, *words: str, stdin: bytes | None = None) -> str:
    done = daemon.insula(*words, stdin=stdin)
    assert done.returncode == 0, f"insula {' '.join(words)}: {done.stderr.decode()}"
    return done.stdout.decode().removesuffix("\n")


@pytest.fixture(scope="module")
def box(daemon: Daemon) -> Iterator[str]:
    name = "cli-box"
    ok(
        daemon,
        *("run", "-d", "--name", name, "--label", "a=b", "-p", "127.0.0.1:18097:80", "--stop-signal", "KILL"),
        *(IMAGE, "sh", "-c", "echo out; echo err >&2; exec sleep 1000"),
    )
    yield name
    ok(daemon, "rm", "-f", name)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(daemon: Daemon, command: str) -> None:
    text = ok(daemon, command, "--help")
    assert text.startswith("Usage: insula")
    assert len(text.splitlines()) > 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "--rm", IMAGE, "no-such"), 127, "executable file not found"),
        (("run", "--rm", IMAGE, "/etc/plain"), 126, "permission denied"),
        (("run", "--rm", IMAGE, "sh", "-c", "exit 9"), 9, ""),
        (("run", "--rm", "--odd", IMAGE), 125, "--odd"),
        (("run", "--rm", "-m", "1x", IMAGE), 125, "--memory"),
        (("run", "--rm", "--link", "x", IMAGE), 125, "No such container: x"),
        (("run", "--rm", "--health-interval", "x", IMAGE), 125, "--health-interval"),
        (("run", "--rm", "--isolation", "jail", IMAGE), 125, "isolation"),
        (("run", "-it", "--rm", IMAGE), 1, "not a terminal"),
        (("run", "--rm", "-a", "odd", IMAGE), 125, "--attach"),
        (("run", "--rm", "--cpus", "x", IMAGE), 125, "--cpus"),
        (("exec", "-d", "cli-box", "no-such"), 1, "executable file not found"),
        (("run",), 1, "IMAGE"),
        (("ps", "--odd"), 125, "--odd"),
        (("ps", "--filter", "odd=1"), 1, "odd"),
        (("ps", "--format", "{{.Odd}}"), 1, "no .Odd"),
        (("inspect", "no-such"), 1, "No such object: no-such"),
        (("exec", "no-such", "true"), 1, "No such container: no-such"),
        (("rm", "no-such"), 1, "No such container: no-such"),
        (("rm", "-f", "no-such"), 0, "No such container: no-such"),
        (("rmi", "-f", "no-such"), 0, "No such image: no-such:latest"),
        (("logs", "no-such"), 1, "No such container: no-such"),
        (("port", "cli-box", "81"), 1, "No public port '81' published for cli-box"),
        (("cp", "a", "b"), 1, "must specify at least one container source"),
        (("cp", "x:/a", "y:/b"), 1, "copying between containers is not supported"),
        (("cp", "cli-box:/no-such", "."), 1, "Could not find the file /no-such in container cli-box"),
        (("save", "-o", "/no-such/x", IMAGE), 1, "/no-such"),
        (("load", "-i", "/no-such"), 1, "/no-such"),
        (("pull", "nohost.invalid/x"), 1, "lookup nohost.invalid"),
        (("no-such",), 1, "no-such"),
        (("update", "cli-box"), 1, "one or more flags"),
    ],
)
def test_exit_codes_and_what_is_said(
    daemon: Daemon, box: str, words: tuple[str, ...], code: int, said: str
) -> None:
    done = daemon.insula(*words)
    assert code == done.returncode, done.stderr.decode()
    assert said in done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ("ps", "--format", "{{.Names}} {{.Isolation}} {{.Ports}}"),
            "cli-box process 127.0.0.1:18097->80/tcp",
        ),
        (("ps", "--format", 'table {{.Names}}\\t{{.Label "a"}}'), None),
        (("ps", "-q", "--no-trunc=false"), None),
        (("inspect", "-f", "{{.State.Status}} {{json .Config.Labels}}", "cli-box"), 'running {"a":"b"}'),
        (("inspect", "-f", '{{index .Config.Labels "a"}}', "cli-box"), "b"),
        (("inspect", "-f", "{{range $k, $v := .NetworkSettings.Ports}}{{$k}}{{end}}", "cli-box"), "80/tcp"),
        (("inspect", "-f", "{{if .State.Running}}yes{{else}}no{{end}}", "cli-box"), "yes"),
        (("inspect", "-f", "{{.Name}}", "/cli-box"), "/cli-box"),
        (("port", "cli-box"), "80/tcp -> 127.0.0.1:18097"),
        (("container", "ps", "-f", "publish=18097", "--format", "{{.Names}}"), "cli-box"),
        (("ps", "-f", "publish=80", "--format", "{{.Names}}"), ""),
        (("ps", "-s", "--format", "{{slice .Size 0 3}}", "-f", "name=cli-box"), "0B "),
        (("logs", "-n", "0", "cli-box"), ""),
        (("network", "inspect", "-f", "{{.Driver}}", "bridge"), "bridge"),
        (("version", "-f", "{{.Server.Version}}"), None),
        (("exec", "-e", "A=1", "-w", "/etc", "cli-box", "sh", "-c", "echo $A; pwd"), "1\n/etc"),
        (("run", "--rm", "--init=true", "--read-only=false", IMAGE, "echo", "--init=true"), "--init=true"),
        (("stats", "--no-stream", "--format", "{{.Name}}", "cli-box"), "cli-box"),
    ],
)
def test_what_is_shown(daemon: Daemon, box: str, words: tuple[str, ...], shown: str | None) -> None:
    text = ok(daemon, *words)
    assert text == shown if shown is not None else text


def test_ps_says_what_isolates(daemon: Daemon, box: str) -> None:
    heading, row = ok(daemon, "ps", "--filter", f"name={box}").splitlines()
    assert "ISOLATION" in heading
    assert row[heading.index("ISOLATION") :].split()[0] == "process"
    line = json.loads(ok(daemon, "ps", "--format", "json", "--filter", f"name={box}"))
    assert {"ID", "Image", "Command", "CreatedAt", "Status", "Ports", "Names", "Isolation"} <= set(line)


def test_logs_go_where_they_came_from(daemon: Daemon, box: str) -> None:
    done = daemon.insula("logs", box)
    assert (b"out\n", b"err\n") == (done.stdout, done.stderr)


def test_pipes(daemon: Daemon, isolation: str) -> None:
    data = os.urandom(1 << 20)
    done = daemon.insula("run", "--rm", "-i", "--isolation", isolation, IMAGE, "cat", stdin=data)
    assert (0, data) == (done.returncode, done.stdout)


def test_cp_both_ways(daemon: Daemon, box: str, tmp_path: Path) -> None:
    source = tmp_path / "dir"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_text("a\n")
    (source / "link").symlink_to("a")
    (tmp_path / "file").write_text("f\n")

    def inside(path: str) -> list[str]:
        return sorted(ok(daemon, "exec", box, "find", path).splitlines())

    tree = ["", "/a", "/link", "/sub"]
    ok(daemon, "cp", str(source), f"{box}:/d1")
    assert [f"/d1{rest}" for rest in tree] == inside("/d1")
    ok(daemon, "cp", str(source), f"{box}:/d1")
    assert "/d1/dir/a" in inside("/d1")
    ok(daemon, "cp", f"{source}/.", f"{box}:/d2")
    assert [f"/d2{rest}" for rest in tree] == inside("/d2")
    ok(daemon, "cp", str(tmp_path / "file"), f"{box}:/f1")
    assert "f" == ok(daemon, "exec", box, "cat", "/f1")
    for target, path in (("out1", "/d2"), ("out2", "/d2/."), ("existing", "/d2/.")):
        into = tmp_path / target
        if target == "existing":
            into.mkdir()
        ok(daemon, "cp", f"{box}:{path}", str(into))
        assert ["a", "link", "sub"] == sorted(p.name for p in into.iterdir()), target
        assert (into / "link").is_symlink()
    ok(daemon, "cp", f"{box}:/d2", str(tmp_path / "existing"))
    assert (tmp_path / "existing" / "d2" / "a").read_text() == "a\n"
    archive = daemon.insula("cp", f"{box}:/d2", "-").stdout
    ok(daemon, "exec", box, "mkdir", "/d3")
    ok(daemon, "cp", "-", f"{box}:/d3", stdin=archive)
    assert "/d3/d2/a" in inside("/d3")
    for wrong in (
        (str(source), f"{box}:/f1"), (str(tmp_path / "file"), f"{box}:/none/"),
        (str(tmp_path / "none"), f"{box}:/"), (f"{box}:/d2", str(tmp_path / "file")),
        (f"{box}:/f1", str(tmp_path / "none" / "x")), (f"{box}:/f1", str(tmp_path / "none") + "/"),
    ):  # fmt: skip
        assert 1 == daemon.insula("cp", *wrong).returncode, wrong


def test_images_out_and_in(daemon: Daemon, box: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "image.tar")
    ok(daemon, "tag", IMAGE, "cli/one:1")
    ok(daemon, "save", "-o", archive, "cli/one:1")
    assert "untagged: cli/one:1" == ok(daemon, "rmi", "cli/one:1").lower()
    assert "Loaded image: cli/one:1" == ok(daemon, "load", "-i", archive)
    try:
        piped = daemon.insula("save", "cli/one:1").stdout
        assert "cli/one:1" in ok(daemon, "load", stdin=piped)
        assert "cli/one:1" == ok(
            daemon, "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=cli/*"
        )
        ident = ok(daemon, "commit", "-m", "said", "-c", 'CMD ["echo", "made"]', box, "cli/two")
        assert ident.startswith("sha256:")
        assert "made" == ok(daemon, "run", "--rm", "cli/two")
        assert "said" in ok(daemon, "history", "cli/two")
        exported = daemon.insula("export", box).stdout
        ok(daemon, "import", "-c", 'CMD ["echo", "whole"]', "-", "cli/three", stdin=exported)
        assert "whole" == ok(daemon, "run", "--rm", "cli/three")
    finally:
        daemon.insula("rmi", "-f", "cli/one:1", "cli/two", "cli/three")


def test_a_life(daemon: Daemon, name: str) -> None:
    began = f"{time.time():.6f}"
    ident = ok(daemon, "create", "--name", name, "--stop-signal", "KILL", IMAGE, "sleep", "1000")
    for words in (("start",), ("pause",), ("unpause",), ("restart", "-t", "0"), ("stop", "-t", "0")):
        assert name == ok(daemon, *words, name)
    assert "137" == ok(daemon, "wait", name)
    ok(daemon, "rename", name, f"{name}-new")
    assert ident == ok(daemon, "ps", "-a", "-q", "--no-trunc", "-f", f"name={name}-new")
    assert f"{name}-new" == ok(daemon, "rm", f"{name}-new")
    until = f"{time.time():.6f}"
    seen = ok(
        daemon,
        *("events", "--since", began, "--until", until, "-f", f"container={ident}", "-f", "type=container"),
        *("--format", "{{.Action}}"),
    ).split()
    assert ["create", "start", "pause", "unpause"] == seen[:4]
    assert ["rename", "destroy"] == seen[-2:]


def test_signals_are_passed_on(daemon: Daemon) -> None:
    script = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.1; done"
    argv = daemon.inside(
        sys.executable, "-m", "insula.cli", "-H", daemon.host, "run", "--rm", IMAGE, "sh", "-c", script
    )
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=ENVIRONMENT) as child:
        assert child.stdout is not None
        assert b"ready\n" == child.stdout.readline()
        child.terminate()
        assert b"caught\n" == child.stdout.readline()
        assert 4 == child.wait(30)


def test_mounts_volumes_and_checks_in_our_words(daemon: Daemon, isolation: str, name: str) -> None:
    def ok(*words: str) -> str:
        done = daemon.insula(*words)
        assert 0 == done.returncode, done.stderr
        return done.stdout.decode().strip()

    options = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m")
    ok("volume", "create", *options, "--label", f"of={name}", name)
    mounts = ("--mount", f"type=volume,src={name},dst=/m", "--mount", "type=tmpfs,dst=/t,tmpfs-mode=700")
    check = ("--health-cmd", "true", "--health-interval", "1h", "--log-opt", "max-size=10k")
    ok("run", "-d", "--isolation", isolation, "--name", name, *mounts, *check, IMAGE, "sleep", "1000")
    assert "700" == ok("exec", name, "sh", "-c", "stat -c %a /t; echo in memory >/m/file")
    other = ("--isolation", isolation, "--volumes-from", f"{name}:ro", IMAGE)
    assert "in memory" == ok("run", "--rm", *other, "cat", "/m/file")
    assert "(health: starting)" in ok("ps", "--filter", f"name={name}")
    assert b"volume is in use" in daemon.insula("volume", "rm", name).stderr
    ok("rm", "-f", name)
    assert name not in ok("volume", "prune", "-f", "--filter", f"label=of={name}")
    assert name in ok("volume", "prune", "-f", "-a", "--filter", f"label=of={name}")
    both = daemon.insula("create", "--no-healthcheck", "--health-cmd", "x", IMAGE)
    assert 125 == both.returncode
    assert b"--no-healthcheck conflicts" in both.stderr
