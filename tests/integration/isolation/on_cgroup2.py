"""What is promised of containers where cgroups are version 2 only; test_cgroup2.py runs it on such a host."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rig
from insula.errors import DaemonRefused
from insula.isolation.vm.cgroup import Cgroup
from insula.isolation.vm.stats import host_oom_kills
from insula.model.limits import Limits
from insula.system import cgroups
from rig import IMAGE, Daemon

MIB = 1024 * 1024
ROOT = Path("/sys/fs/cgroup")
LAYOUT = cgroups.find_layout()
rig.START_LIMIT_S, rig.POLL_S = 200.0, 0.5  # an emulated machine, perhaps on a busy one
NESTED = """
import asyncio
from insula.config import Settings
from insula.isolation.process.backend import ProcessBackend
async def main() -> None:
    backend = ProcessBackend(Settings(data_root="/data/nested", exec_root="/data/nested/run"))
    await backend.start()
    print(backend.info().problem or backend.info().runtime)
    await backend.stop()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def host(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    one = make_daemon()
    one.start()
    one.import_image()
    yield one
    one.stop()
    assert not (ROOT / "insula").exists()


class Container:
    """One made by the API.  `group` is its directory in the tree of cgroups."""

    def __init__(self, host: Daemon, *words: str, **settings: Any) -> None:
        body = {"Image": IMAGE, "Cmd": words, "HostConfig": settings}
        self.host = host
        self.id: str = host.client.post("/containers/create", body)["Id"]
        self.group = ROOT / "insula" / self.id
        host.client.post(f"/containers/{self.id}/start")

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.client.get(f"/containers/{self.id}/json")["State"]
        return found

    def read(self, name: str) -> str:
        return (self.group / name).read_text().strip()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.host.client.post(f"/containers/{self.id}/{path}", body, **query)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.client.get(
            f"/containers/{self.id}/stats", stream=False, **{"one-shot": True}
        )
        return found

    def first_words(self) -> bytes:
        """What it says first, when it has."""
        path, query = f"/containers/{self.id}/logs", {"follow": True, "stdout": True, "stderr": True}
        with self.host.client.request("GET", path, query=query) as log:
            return next(iter(log.pieces()))

    def remove(self) -> None:
        self.host.client.delete(f"/containers/{self.id}", force=True)
        assert not self.group.exists()


@pytest.fixture
def make(host: Daemon) -> Iterator[Callable[..., Container]]:
    made: list[Container] = []

    def one(*words: str, **settings: Any) -> Container:
        made.append(Container(host, *words, **settings))
        return made[-1]

    yield one
    for container in made:
        with contextlib.suppress(DaemonRefused):
            container.remove()


def wait_for(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], 30)[0]
        finally:
            os.close(fd)


def test_the_host_is_what_it_is_to_be(host: Daemon) -> None:
    assert LAYOUT.version == 2
    assert not LAYOUT.hybrid
    info = host.client.get("/info")
    assert (info["CgroupVersion"], info["CgroupDriver"]) == ("2", "cgroupfs")
    flags = ("MemoryLimit", "SwapLimit", "CpuCfsQuota", "CPUShares", "PidsLimit")
    assert dict.fromkeys(flags, True) == {flag: info[flag] for flag in flags}


def test_limits_are_in_the_control_files(make: Callable[..., Container]) -> None:
    one = make(
        *("sleep", "1000"),
        Memory=64 * MIB, MemorySwap=96 * MIB, MemoryReservation=32 * MIB,
        NanoCpus=500_000_000, CpuShares=512, PidsLimit=50, CpusetCpus="1",
    )  # fmt: skip
    names = ["memory.max", "memory.swap.max", "memory.low", "cpu.max", "pids.max", "cpuset.cpus"]
    assert {
        "memory.max": str(64 * MIB),
        "memory.swap.max": str(32 * MIB),
        "memory.low": str(32 * MIB),
        "cpu.max": "50000 100000",
        "pids.max": "50",
        "cpuset.cpus": "1",
    } == {name: one.read(name) for name in names}
    made_weight = int(one.read("cpu.weight"))
    assert 1 < made_weight < 100
    one.post("update", {"CpuShares": 512})
    assert made_weight == int(one.read("cpu.weight"))  # our conversion is the runtime's
    one.post(
        "update",
        {
            "Memory": 128 * MIB,
            "MemorySwap": -1,
            "NanoCpus": 1_000_000_000,
            "PidsLimit": 60,
            "CpusetCpus": "0-1",
        },
    )
    assert [str(128 * MIB), "max", str(32 * MIB), "100000 100000", "60", "0-1"] == [
        one.read(n) for n in names
    ]
    stats = one.stats()
    assert stats["memory_stats"]["limit"] == 128 * MIB
    assert stats["pids_stats"]["limit"] == 60


def test_without_limits_nothing_is_limited(make: Callable[..., Container]) -> None:
    one = make("sleep", "1000")
    assert ["max", "max 100000", "max", "100"] == [
        one.read(name) for name in ("memory.max", "cpu.max", "pids.max", "cpu.weight")
    ]
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert one.stats()["memory_stats"]["limit"] == total


def test_statistics_move(make: Callable[..., Container]) -> None:
    script = "dd if=/dev/zero of=/big bs=1M count=8 conv=fsync 2>/dev/null; echo; while :; do :; done"
    one = make("sh", "-c", script)
    one.first_words()
    first = one.stats()
    assert first["pids_stats"]["current"] >= 1
    assert first["memory_stats"]["usage"] > 8 * MIB  # the page cache of what it wrote
    assert "anon" in first["memory_stats"]["stats"]
    written = {e["op"].lower(): e["value"] for e in first["blkio_stats"]["io_service_bytes_recursive"]}
    assert written["write"] >= 8 * MIB
    usage = first["cpu_stats"]["cpu_usage"]["total_usage"]
    assert usage > 0
    limit = time.monotonic() + 30
    while one.stats()["cpu_stats"]["cpu_usage"]["total_usage"] <= usage:
        assert time.monotonic() < limit


def test_out_of_memory_is_reported(make: Callable[..., Container]) -> None:
    one = make("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", Memory=20 * MIB)
    assert one.post("wait")["StatusCode"] == 137
    assert one.state["OOMKilled"] is True
    fine = make("sh", "-c", "exit 137", Memory=20 * MIB)
    assert fine.post("wait")["StatusCode"] == 137
    assert fine.state["OOMKilled"] is False


def test_the_number_of_processes_is_limited(make: Callable[..., Container]) -> None:
    script = "(for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done) 2>/dev/null; echo; exec sleep 1000"
    one = make("sh", "-c", script, PidsLimit=4)
    one.first_words()
    events = cgroups.read_table(f"{one.group}/pids.events")
    assert events["max"] > 0


def test_pause_and_kill_while_paused(make: Callable[..., Container]) -> None:
    one = make("sleep", "1000")
    one.post("pause")
    assert one.read("cgroup.freeze") == "1"
    assert cgroups.is_frozen(LAYOUT, f"insula/{one.id}")
    assert one.state["Status"] == "paused"
    one.post("unpause")
    assert one.read("cgroup.freeze") == "0"
    assert one.state["Status"] == "running"
    one.post("pause")
    pid = one.state["Pid"]
    one.host.client.delete(f"/containers/{one.id}", force=True)
    assert not one.group.exists()
    wait_for(pid)


def test_top_sees_the_execs_and_killing_takes_them_along(make: Callable[..., Container]) -> None:
    one = make("sleep", "1000")
    done = one.host.insula("exec", "-d", one.id, "sleep", "2000")
    assert done.returncode == 0, done.stderr
    done = one.host.insula("exec", one.id, "cat", "/proc/self/cgroup")
    assert done.stdout == b"0::/\n", done  # a cgroup namespace of its own
    table = one.host.client.get(f"/containers/{one.id}/top")
    command = table["Titles"].index("CMD")
    assert ["sleep 1000", "sleep 2000"] == sorted(row[command] for row in table["Processes"])
    pids = [int(row[table["Titles"].index("PID")]) for row in table["Processes"]]
    one.post("kill", signal="KILL")
    one.post("wait")
    for pid in pids:
        wait_for(pid)


def test_a_privileged_container_divides_its_group(make: Callable[..., Container]) -> None:
    """As a Docker in it would: processes into a leaf, controllers for the rest.  It is removed whole."""
    script = (
        "cd /sys/fs/cgroup && mkdir leaf work &&"
        "echo $$ > leaf/cgroup.procs && echo +memory +pids > cgroup.subtree_control &&"
        "echo 7 > work/pids.max && echo divided; exec sleep 1000"
    )
    one = make("sh", "-c", script, Privileged=True)
    assert b"divided" in one.first_words()
    assert one.read("work/pids.max") == "7"
    assert len(one.host.client.get(f"/containers/{one.id}/top")["Processes"]) == 1
    done = one.host.insula("exec", one.id, "echo", "still here")
    assert done.stdout == b"still here\n", done.stderr
    one.remove()


def test_what_runs_outlives_the_daemon(host: Daemon, make: Callable[..., Container]) -> None:
    running, paused = make("sleep", "1000", Memory=64 * MIB), make("sleep", "1000")
    greedy = make("sh", "-c", "sleep 2; exec dd if=/dev/zero of=/dev/null bs=200M", Memory=20 * MIB)
    paused.post("pause")
    pid = greedy.state["Pid"]
    host.kill()
    wait_for(pid)
    host.start()
    assert ["running", "paused"] == [one.state["Status"] for one in (running, paused)]
    assert greedy.state["OOMKilled"] is True
    assert greedy.state["ExitCode"] == 137
    assert running.stats()["memory_stats"]["limit"] == 64 * MIB
    done = host.insula("exec", running.id, "echo", "again")
    assert done.stdout == b"again\n", done.stderr
    paused.post("unpause")
    for one in (running, paused):
        one.post("stop", t=0)
        assert one.state["ExitCode"] == 137


def test_the_group_of_a_virtual_machine() -> None:
    """Made and limited as for QEMU, here with a program that takes too much."""
    group = Cgroup(LAYOUT, "v" * 64)
    (procs,) = group.make(
        32 * MIB, Limits(nano_cpus=250_000_000, cpu_shares=2048, memory_reservation_bytes=MIB)
    )
    try:
        group.limit_cpu(Limits(nano_cpus=250_000_000, cpu_shares=2048))
        base = ROOT / group.group
        found = [(base / name).read_text().strip() for name in ("memory.max", "memory.low", "cpu.max")]
        assert found == [str(32 * MIB), str(MIB), "25000 100000"]
        assert 1 < int((base / "cpu.weight").read_text()) != 100
        script = f"echo $$ > {procs}; exec dd if=/dev/zero of=/dev/null bs=100M"
        with subprocess.Popen(["sh", "-c", f"{script}"], stderr=subprocess.DEVNULL) as child:
            assert child.wait(30) == -signal.SIGKILL
        assert host_oom_kills(LAYOUT, group.group) == 1
        group.limit_cpu(Limits())
        assert (base / "cpu.max").read_text() == "max 100000\n"
        with subprocess.Popen(["sh", "-c", f"echo $$ > {procs}; exec sleep 1000"]) as child:
            while group.pids() != [child.pid]:
                assert child.poll() is None
            assert not group.remove()
            cgroups.kill(LAYOUT, group.group)
            assert child.wait(30) == -signal.SIGKILL
    finally:
        assert group.remove()
        cgroups.remove_if_empty(LAYOUT, "insula")


def test_inside_a_container_there_is_room() -> None:
    """The root of a cgroup namespace may not hold processes and give controllers to its children."""
    nest = ROOT / "nest"
    nest.mkdir()
    try:
        for controller in ("cpu", "cpuset", "io", "memory", "pids"):
            cgroups.write(str(ROOT / "cgroup.subtree_control"), f"+{controller}")
        os.makedirs("/data/nested/run")
        script = (
            "umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 9;"
            'python3 -c "$0"; cat /sys/fs/cgroup/cgroup.procs'
        )
        inner = ["unshare", "--cgroup", "--mount", "sh", "-c", script, NESTED]
        argv = ["sh", "-c", f'echo $$ > {nest}/cgroup.procs && exec "$@"', "sh", *inner]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == ("crun\n", 0), done
        assert cgroups.read_table(f"{nest}/cgroup.events")["populated"] == 0
    finally:
        assert cgroups.remove(LAYOUT, "nest")
