"""Snapshots, by both clients: what goes on from one, what is new in it, and what damage does."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rig import IMAGE, Daemon, last

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(300)]

# what it does goes on in memory; the clock is a day behind, as after a day in a file
WORKLOAD = (
    "date -s @$(($(date +%s) - 86400)); echo begun >> /runs; "
    "i=0; while true; do i=$((i+1)); echo $i > /dev/shm/last; done"
)
IDENTITY = (
    "cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum; "
    "cat /sys/class/net/eth0/address; hostname"
)


@pytest.fixture(scope="module")
def own(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    one = make_daemon("--vm-pool", "0", "--vm-memory-mib", "144")
    one.start()
    one.import_image()
    yield one
    one.stop()


def insula(daemon: Daemon, *words: str) -> str:
    done = daemon.insula(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().removesuffix("\n")


def refused(daemon: Daemon, *words: str) -> str:
    done = daemon.insula(*words)
    assert done.returncode != 0, done.stdout
    return done.stderr.decode()


def begin(daemon: Daemon, name: str) -> None:
    daemon.ok(
        *("run", "-d", "--privileged", "--isolation", "vm", "--name", name, IMAGE, "sh", "-c", WORKLOAD)
    )
    while last(daemon, name) <= 50:
        pass


def went_on(daemon: Daemon, name: str) -> None:
    """The workload was not begun again, and the clock is right."""
    assert "begun" == daemon.shell(name, "cat /runs")
    first = last(daemon, name)
    assert first > 50
    while last(daemon, name) <= first:
        pass
    assert abs(int(daemon.shell(name, "date +%s")) - time.time()) < 10


def test_docker_checkpoint(own: Daemon, name: str) -> None:
    """And over `kill -9` of the daemon, and what a reboot of the host leaves."""
    begin(own, name)
    before = own.shell(name, IDENTITY).splitlines()
    own.ok("checkpoint", "create", name, "first")
    state = own.inspect(name)["State"]
    assert ("exited", 137) == (state["Status"], state["ExitCode"])
    own.kill()
    shutil.rmtree(own.directory / "run" / "instances")
    own.start()
    assert ["CHECKPOINT NAME", "first"] == own.ok("checkpoint", "ls", name).splitlines()
    own.ok("start", "--checkpoint", "first", name)
    went_on(own, name)
    after = own.shell(name, IDENTITY).splitlines()
    assert before[0] == after[0]  # it is the same machine
    assert before[1] != after[1]
    assert before[2] != after[2]
    assert ["copy", "snapshot first"] == [own.inspect(name)["Insula"][key] for key in ("Start", "Source")]
    # once more, from before what was written since
    own.shell(name, "echo later > /later")
    own.ok("kill", name)
    own.ok("start", "--checkpoint", "first", name)
    assert "none" == own.shell(name, "cat /later 2>/dev/null || echo none")
    own.ok("kill", name)
    own.ok("start", name)  # as ever
    own.shell(name, "until [ $(wc -l < /runs) = 2 ]; do sleep 0.1; done")
    own.ok("checkpoint", "rm", name, "first")
    assert "" == insula(own, "snapshot", "ls", "-q")
    own.ok("rm", "-f", name)


def test_snapshots_of_what_goes_on(own: Daemon, name: str) -> None:
    begin(own, name)
    assert "now" == insula(own, "snapshot", "create", name, "now")
    own.shell(name, "echo since > /since")
    [shown] = json.loads("[" + insula(own, "snapshot", "ls", name, "--format", "json") + "]")
    assert (name, "now", "144MiB") == (shown["InstanceName"], shown["Name"], shown["Memory"])
    copies = [f"{name}-a", f"{name}-b"]
    for copy in copies:
        assert copy == insula(own, "snapshot", "restore", "--as", copy, name, "now")
        went_on(own, copy)
        assert "none" == own.shell(copy, "cat /since 2>/dev/null || echo none")
    told = [own.shell(one, IDENTITY).splitlines() for one in (name, *copies)]
    assert {5} == {len(lines) for lines in told}
    for values in zip(*told, strict=True):
        assert 3 == len(set(values)), values
    assert "already exists" in refused(own, "snapshot", "create", name, "now")
    assert "Invalid checkpoint ID" in refused(own, "snapshot", "create", name, "../now")
    assert "is running" in refused(own, "snapshot", "restore", name, "now")
    assert "does not exist" in refused(own, "snapshot", "restore", "--as", "x", name, "never")
    own.ok("rm", "-f", name)  # with its snapshots; not with what has gone on from them
    for copy in copies:
        went_on(own, copy)
    own.ok("rm", "-f", *copies)


def test_a_snapshot_as_a_file(own: Daemon, name: str, tmp_path: Path) -> None:
    begin(own, name)
    insula(own, "snapshot", "create", "--stop", name, "kept")
    archive = tmp_path / "kept.tar"
    insula(own, "snapshot", "export", "-o", str(archive), name, "kept")
    assert archive.stat().st_size < 300 << 20  # holes are not in it
    own.ok("rm", name)
    own.ok("rmi", "-f", IMAGE)  # the archive is enough
    before = own.ok("ps", "-aq")
    try:
        whole = archive.read_bytes()
        for damage in (
            whole[: len(whole) // 2],
            whole[:30_000_000] + b"damaged" + whole[30_000_007:],
            b"junk",
        ):
            archive.write_bytes(damage)
            said = refused(own, "snapshot", "import", "-i", str(archive))
            assert "damaged" in said or "no archive" in said, said
        assert before == own.ok("ps", "-aq")
        assert not [one for one in os.listdir(own.directory / "data" / "instances") if "import" in one]
        archive.write_bytes(whole)
        made, snapshot = insula(own, "snapshot", "import", "-i", str(archive)).split()
        assert (f"{name}-1", "kept") == (made, snapshot)
        insula(own, "snapshot", "restore", made, snapshot)
        went_on(own, made)
        own.ok("rm", "-f", made)
    finally:
        own.import_image()


def test_a_damaged_snapshot_is_refused_and_the_disk_stays(own: Daemon, name: str) -> None:
    begin(own, name)
    insula(own, "snapshot", "create", name, "one")
    own.shell(name, "echo kept > /kept; sync")
    own.ok("stop", "-t", "1", name)
    where = own.directory / "data" / "instances" / own.inspect(name)["Id"]
    with open(where / "snapshots" / "one" / "ram", "r+b") as file:
        file.seek(20 << 20)
        file.write(b"damaged")
    assert "does not match its digest" in refused(own, "snapshot", "restore", name, "one")
    own.ok("start", name)
    assert "kept" == own.shell(name, "cat /kept")
    assert not [*where.glob("capture-*"), *where.glob("*.before")]
    own.ok("rm", "-f", name)


def test_containers_have_no_snapshots(own: Daemon, name: str) -> None:
    own.ok("run", "-d", "--name", name, IMAGE, "sleep", "1000")
    done = own.docker("checkpoint", "create", name, "one")
    assert b"only a virtual machine's memory can be copied" in done.stderr
    own.ok("rm", "-f", name)
