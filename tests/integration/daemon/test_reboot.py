"""The host was reset: state without processes, mounts and links; the exec root emptied, or left over."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_state import (
    cgroups_of,
    drop_netns,
    links_of,
    make_netns,
    mounted_below,
    pids_below,
    processes_with,
    start_netns,
)
from insula.isolation.vm.record import host_boot_id
from insula.system import mounts
from insula.system.pidfd import start_time
from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(300)]

BOTH = ("process", "vm")


@pytest.fixture
def rebooting(tmp_path: Path, guest_cache: Path) -> Iterator[Daemon]:
    """In a network namespace of its own, that goes with the host."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "guest").symlink_to(guest_cache)
    one = Daemon(
        directory=tmp_path,
        netns=f"insula-reboot-{os.getpid()}",
        bridge=f"it{secrets.token_hex(3)}",
        subnet="172.31.252.0/24",
        options=("--accel", "tcg"),
    )
    with start_netns(one.netns):
        one.start()
        one.import_image()
        yield one
        one.stop()
        assert [] == mounted_below(tmp_path)
        assert ["lo"] == links_of(one.netns)


def reset_host(daemon: Daemon, idents: list[str], *, exec_root: str, stranger: int) -> None:
    """Power off and on.  The daemon dies first, and conmon before its container: nobody sees an end.

    `exec_root`: `emptied` as /run is, or `kept`, on a disk; then every record of the boot before names a
    process that lives now, as a reused process id does.
    """
    groups = cgroups_of(idents)
    daemon.kill()
    for pid in [*processes_with(f"{daemon.directory}/"), *pids_below(groups)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for group in groups:
        if (group / "freezer.state").exists():  # of cgroup v1, where the frozen do not even die
            (group / "freezer.state").write_text("THAWED")
    limit = time.monotonic() + 10
    while pids_below(cgroups_of(idents)) or processes_with(f"{daemon.directory}/"):
        assert time.monotonic() < limit
        time.sleep(0.02)
    for target in reversed(mounted_below(daemon.directory)):
        mounts.umount(target, lazy=True)
    drop_netns(daemon.netns)
    make_netns(daemon.netns)
    run = daemon.directory / "run"
    if exec_root == "emptied":
        shutil.rmtree(run)
        for group in reversed(cgroups_of(idents)):
            group.rmdir()
        return
    now, before = host_boot_id(), "00000000-1111-4222-8333-444444444444"
    for path in run.glob("instances/*/*.json"):
        text = path.read_text()
        if now in text:
            path.write_text(age(text.replace(now, before), stranger))


def age(record: str, stranger: int) -> str:
    fields = json.loads(record)
    for name in ("pid", "conmon_pid", "init_pid"):
        if name in fields:
            fields[name] = stranger
            fields["started" if name == "pid" else name.replace("_pid", "_started")] = start_time(stranger)
    return json.dumps(fields)


def state(daemon: Daemon, ident: str) -> str:
    return daemon.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}", ident)


@pytest.mark.parametrize("exec_root", ["emptied", "kept"])
def test_after_a_reset_all_is_exited_and_starts_again(
    rebooting: Daemon, exec_root: str, tmp_path: Path
) -> None:
    (tmp_path / "share").mkdir()
    plain, paused, removed, always = {}, {}, {}, {}
    script = "[ -e /note ] || echo kept | busybox tee /note > /vol/note; sync; echo up; sleep 1000"
    for port, kind in enumerate(BOTH, start=8080):
        plain[kind] = rebooting.ok(
            *isolated(kind, "run", "-d", "-p", f"{port}:80", "-v", f"vol-{kind}:/vol"),
            *("-v", f"{tmp_path}/share:/share", IMAGE, "sh", "-c", script),
        )
        paused[kind] = rebooting.ok(*isolated(kind, "run", "-d", IMAGE, "sleep", "1000"))
        removed[kind] = rebooting.ok(*isolated(kind, "run", "-d", "--rm", IMAGE, "sleep", "1000"))
        always[kind] = rebooting.ok(
            *isolated(kind, "run", "-d", "--restart", "always", IMAGE, "sleep", "1000")
        )
        rebooting.ok("pause", paused[kind])
    done = rebooting.docker("run", "--name", "done", IMAGE, "sh", "-c", "exit 3")
    assert 3 == done.returncode
    rebooting.ok("create", "--name", "made", IMAGE, "true")
    for ident in plain.values():
        while "up" not in rebooting.ok("logs", ident):
            time.sleep(0.05)
    idents = [i for kind in (plain, paused, removed, always) for i in kind.values()]
    innocent = subprocess.Popen(["sleep", "1000"])
    try:
        reset_host(rebooting, idents, exec_root=exec_root, stranger=innocent.pid)
        rebooting.start()
        for ident in (*plain.values(), *paused.values()):
            assert "exited 255 0" == state(rebooting, ident)
        for ident in removed.values():
            assert 1 == rebooting.docker("inspect", ident).returncode
        assert "exited 3 0" == state(rebooting, "done")
        assert "created 0 0" == state(rebooting, "made")
        for ident in always.values():
            limit = time.monotonic() + 60
            while not state(rebooting, ident).startswith("running"):
                assert time.monotonic() < limit
                time.sleep(0.1)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
    running = set(always.values())
    assert all(any(i in group.name for i in running) for group in cgroups_of(idents))
    for kind, ident in plain.items():
        rebooting.ok("start", ident)
        shown = rebooting.ok("exec", ident, "sh", "-c", "cat /note /vol/note; echo in > /share/$0", kind)
        assert "kept\nkept" == shown
        assert "in\n" == (tmp_path / "share" / kind).read_text()
        assert rebooting.ok("port", ident)
    for ident in paused.values():
        rebooting.ok("start", ident)
        assert state(rebooting, ident).startswith("running")
    for ident in (*plain.values(), *paused.values(), *always.values()):
        rebooting.ok("rm", "-f", "-v", ident)
    assert [] == cgroups_of(idents)
    assert {"done", "made"} == set(rebooting.ok("ps", "-a", "--format", "{{.Names}}").split())
    kept = {rebooting.ok("inspect", "-f", "{{.Id}}", name) for name in ("done", "made")}
    assert kept == set(os.listdir(tmp_path / "data" / "instances"))
    assert kept >= set(os.listdir(tmp_path / "run" / "instances"))
