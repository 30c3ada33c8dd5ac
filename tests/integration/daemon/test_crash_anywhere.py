"""`kill -9` of the daemon at any moment of pull, run, rm, commit, cp and stop: nothing half done is left.

INSULA_CRASH_ROUNDS and INSULA_CRASH_SEED make it longer, and repeat the moments of a run that failed.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from host_state import cgroups_of, hypervisors_below, links_of, mounted_below, processes_with, start_netns
from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(1800)]

ROUNDS = int(os.environ.get("INSULA_CRASH_ROUNDS", "4"))
SEED = os.environ.get("INSULA_CRASH_SEED", secrets.token_hex(4))
REGISTRY = "/usr/bin/docker-registry"
PULLED = "127.0.0.1:5000/test:latest"
BOTH = ("process", "vm")
SETTLE_S = 20.0
_ID = re.compile(r"[0-9a-f]{64}")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Started in a network namespace."""
    config = tmp_path / "registry.yml"
    storage = f"{{filesystem: {{rootdirectory: {tmp_path}/registry}}}}"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {storage}\nhttp: {{addr: 127.0.0.1:5000}}\n"
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(netns: str) -> None:
        argv = ["nsenter", f"--net=/run/netns/{netns}", REGISTRY, "serve", str(config)]
        started.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def victim(tmp_path: Path, guest_cache: Path, registry: Callable[[str], None]) -> Iterator[Daemon]:
    directory = tmp_path / "insula"
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "guest").symlink_to(guest_cache)
    one = Daemon(
        directory=directory,
        netns=f"insula-crash-{os.getpid()}",
        bridge=f"it{secrets.token_hex(3)}",
        subnet="172.31.253.0/24",
        options=("--accel", "tcg"),
    )
    with start_netns(one.netns):
        registry(one.netns)
        one.start()
        one.import_image()
        one.ok("tag", IMAGE, PULLED)
        one.ok("push", PULLED)
        one.ok("rmi", PULLED)
        yield one
        one.stop()
        assert [] == mounted_below(directory)
        assert ["lo"] == links_of(one.netns)
        assert {} == processes_with(f"{directory}/")
        assert set() == hypervisors_below(directory)


class Crowd:
    """Clients that do things at once, whatever becomes of the daemon."""

    def __init__(self, daemon: Daemon, dice: random.Random) -> None:
        self._daemon = daemon
        self._dice = dice
        self._count = 0

    def verbs(self) -> list[list[list[str]]]:
        """What each client does, one after the other."""
        self._count += 1
        known = self._daemon.ok("ps", "-aq", "--no-trunc").split()
        target = known and self._dice.choice(known)
        clients: list[list[list[str]]] = [
            [["rmi", "-f", PULLED], ["pull", PULLED]],
            [[*isolated("process", "run", "-d", IMAGE, "sleep", "1000")]],
            [[*isolated("process", "run", "--rm", IMAGE, "echo", "hi")]] * 3,
        ]
        if target:
            clients.append([["commit", target, f"made:{self._count}"]])
            clients.append([["cp", f"{target}:/etc/passwd", "-"], ["rm", "-f", self._dice.choice(known)]])
        if self._dice.random() < 0.7:
            words = ["-d", IMAGE, "sleep", "1000"] if self._dice.random() < 0.5 else ["--rm", IMAGE, "true"]
            clients.append([[*isolated("vm", "run", *words)]])
        if target and self._dice.random() < 0.5:
            clients.append([["stop", "-t", "0", target], ["start", target]])
        return clients

    def run(self, client: list[list[str]]) -> None:
        for words in client:
            self._daemon.docker(*words)


def ids_of(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if _ID.fullmatch(name)} if directory.exists() else set()


def problems(daemon: Daemon, seen: set[str], orphans: set[int]) -> list[str]:
    """What is not as after an orderly life."""
    found = []
    listed = daemon.client.get("/containers/json", all=True)
    known = {one["Id"] for one in listed}
    live = {one["Id"] for one in listed if one["State"] == "running"}
    machines = {
        i for i in live if daemon.client.get(f"/containers/{i}/json")["HostConfig"]["Isolation"] == "vm"
    }
    found += [f"{one['Id'][:12]} is {one['State']}" for one in listed
              if one["State"] not in ("created", "running", "exited")]  # fmt: skip
    for root in ("data", "run"):
        there = ids_of(daemon.directory / root / "instances")
        found += [f"directory in {root} of {i[:12]}" for i in there - known]
        if root == "data":
            found += [f"no directory of {i[:12]}" for i in known - there]
    for kind in ("ingest", "tmp"):
        for path in (daemon.directory / "data" / "images").glob(f"**/{kind}/*"):
            found.append(f"left in the image store: {path}")
    dead = seen - live
    found += [f"cgroup {path}" for path in cgroups_of(dead)]
    words = [*dead, *(f"guest={i[:12]}" for i in dead)]
    found += [f"process {line}" for line in processes_with(*words).values()]
    found += [f"mount {path}" for path in mounted_below(daemon.directory) if set(_ID.findall(path)) - live]
    hypervisors = processes_with(*(f"qemu-system-x86_64 -name guest={i[:12]}" for i in machines))
    forgotten = (orphans & hypervisors_below(daemon.directory)) - set(hypervisors)
    found += [f"hypervisor {pid} of a daemon that was killed" for pid in forgotten]
    users = [Path(f"/proc/{pid}").stat().st_uid for pid in hypervisors]
    if len(set(users)) != len(machines) or len(users) != len(machines):
        found.append(f"{len(machines)} machines, but hypervisors of {users}")
    return found


def check(daemon: Daemon, seen: set[str], orphans: set[int]) -> None:
    limit = time.monotonic() + SETTLE_S
    while found := problems(daemon, seen, orphans):
        assert time.monotonic() < limit, "\n".join([f"INSULA_CRASH_SEED={SEED}", *found])
        time.sleep(0.2)
    for one in daemon.client.get("/images/json"):
        assert daemon.client.get(f"/images/{one['Id']}/json")["RootFS"]["Layers"]
    for ident in daemon.ok("ps", "-q", "--no-trunc").split():
        assert "in" == daemon.ok("exec", ident, "echo", "in")


def test_nothing_half_done_is_left(victim: Daemon) -> None:
    dice = random.Random(SEED)
    crowd = Crowd(victim, dice)
    seen: set[str] = set()
    for kind in BOTH:
        victim.ok(*isolated(kind, "run", "-d", IMAGE, "sleep", "1000"))
    for number in range(ROUNDS):
        clients = crowd.verbs()
        with ThreadPoolExecutor(len(clients)) as pool:
            for client in clients:
                pool.submit(crowd.run, client)
            wait_s = dice.random() ** 2 * 5
            time.sleep(wait_s)  # the moment is the test: no event to wait for
            seen |= ids_of(victim.directory / "data" / "instances")
            victim.kill()
            orphans = hypervisors_below(victim.directory)
            seen |= ids_of(victim.directory / "data" / "instances")
        victim.start()
        check(victim, seen, orphans)
        print(
            f"round {number}: killed after {wait_s:.2f} s, {len(seen)} instances, {len(orphans)} hypervisors"
        )
    victim.ok("pull", PULLED)
    for kind in BOTH:
        assert "hi" == victim.ok(*isolated(kind, "run", "--rm", PULLED, "echo", "hi"))
    for ident in victim.ok("ps", "-aq", "--no-trunc").split():
        victim.ok("rm", "-f", ident)
    assert [] == cgroups_of(seen)
