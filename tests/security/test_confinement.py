"""What stands between a workload and the host, looked at from the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def machine_pid(daemon: Daemon) -> Iterator[int]:
    ident = daemon.ok(*isolated("vm", "run", "-d", IMAGE, "sleep", "1000"))
    yield int(daemon.ok("inspect", "-f", "{{.State.Pid}}", ident))
    daemon.ok("rm", "-f", ident)


@pytest.fixture(scope="module")
def container(daemon: Daemon) -> Iterator[str]:
    ident = daemon.ok("run", "-d", IMAGE, "sleep", "1000")
    yield ident
    daemon.ok("rm", "-f", ident)


@pytest.mark.vm
def test_the_hypervisor_is_nobody_of_note(machine_pid: int) -> None:
    found = status(machine_pid)
    assert "0" not in found["Uid"].split()
    assert "0" not in found["Gid"].split()
    for which in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(found[which], 16) == 0, which
    assert "1" == found["NoNewPrivs"]
    assert "2" == found["Seccomp"]


@pytest.mark.vm
def test_the_hypervisor_sees_no_host_files_or_network(machine_pid: int) -> None:
    for kind in ("mnt", "net"):
        assert Path(f"/proc/{machine_pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    assert not Path(f"/proc/{machine_pid}/root/etc/shadow").exists()
    links = Path(f"/proc/{machine_pid}/net/dev").read_text().splitlines()[2:]
    assert {"lo"} == {line.partition(":")[0].strip() for line in links}


@pytest.mark.vm
def test_two_machines_have_two_users(daemon: Daemon, machine_pid: int) -> None:
    other = daemon.ok(*isolated("vm", "run", "-d", IMAGE, "sleep", "1000"))
    try:
        pid = int(daemon.ok("inspect", "-f", "{{.State.Pid}}", other))
        assert status(pid)["Uid"] != status(machine_pid)["Uid"]
    finally:
        daemon.ok("rm", "-f", other)


def test_a_container_has_dockers_capabilities_and_filter(daemon: Daemon, container: str) -> None:
    said = daemon.ok("exec", container, "grep", "-E", "CapEff|CapBnd|^Seccomp:", "/proc/1/status")
    found = dict(line.split(":\t") for line in said.splitlines())
    assert {"CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "Seccomp": "2"} == found


@pytest.mark.parametrize(
    "script",
    [
        "cat /proc/kcore | head -c1",
        "echo 1 > /proc/sysrq-trigger",
        "echo x > /proc/sys/kernel/hostname",
        "mount -t tmpfs none /tmp",
        "mknod /tmp/sda b 8 0 && head -c1 /tmp/sda",
        "echo 1 > /sys/kernel/profiling",
        "dd if=/dev/mem bs=1 count=1",
    ],
)
def test_a_container_cannot_reach_the_host_by(daemon: Daemon, container: str, script: str) -> None:
    done = daemon.docker("exec", container, "sh", "-c", f"{script} 2>/dev/null | wc -c; exit $?")
    direct = daemon.docker("exec", container, "sh", "-c", script)
    assert direct.returncode != 0 or done.stdout.strip() == b"0"


def test_a_symlink_in_the_image_does_not_lead_cp_out(daemon: Daemon, name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    daemon.ok("run", "--name", name, IMAGE, "sh", "-c", f"ln -s {outside} /way; ln -s /../../../../etc /up")
    try:
        (tmp_path / "file").write_text("x")
        daemon.docker("cp", str(tmp_path / "file"), f"{name}:/way/file")
        assert [] == list(outside.iterdir())
        host = Path("/etc/hostname").read_bytes()
        done = daemon.docker("cp", f"{name}:/up/shadow", "-")
        assert host not in done.stdout
        assert b"root:" not in done.stdout
    finally:
        daemon.ok("rm", "-f", name)


def test_the_socket_is_not_for_everybody(daemon: Daemon) -> None:
    assert 0 == Path(daemon.socket).stat().st_mode & 0o007
