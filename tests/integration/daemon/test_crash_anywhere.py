"""`kill -9` of the daemon at any moment of whatever it can be asked for: nothing half done is left, what is
listed works, and what was stored is still there.

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


AT_ONCE = 8
Script = list[list[str]]


class Crowd:
    """Clients that do things at once, whatever becomes of the daemon."""

    def __init__(self, daemon: Daemon, dice: random.Random, context: Path) -> None:
        self._daemon = daemon
        self._dice = dice
        self._count = 0
        self._context = context

    def verbs(self) -> list[Script]:
        """What each client does, one after the other.  Words of `docker`, or of `insula` for what only that
        knows."""
        self._count += 1
        number = self._count
        known = self._daemon.ok("ps", "-aq", "--no-trunc").split()
        clients: list[Script] = [
            [["rmi", "-f", PULLED], ["pull", PULLED]],
            [[*isolated("process", "run", "-d", IMAGE, "sleep", "1000")]],
            [[*isolated("process", "run", "--rm", IMAGE, "echo", "hi")]] * 3,
            [["build", "-q", "-t", f"built:{number}", str(self._context)], ["image", "prune", "-f"]],
            [["volume", "create", f"volume{number}"], ["volume", "rm", f"volume{number - 1}"]],
            [["run", "--rm", "-v", f"volume{number}:/at", "-v", "/own", IMAGE, "touch", "/at/it", "/own/it"]],
            [["volume", "prune", "-f"], ["network", "prune", "-f"]],
        ]
        words = ["-d", IMAGE, "sleep", "1000"] if self._dice.random() < 0.5 else ["--rm", IMAGE, "true"]
        clients.append([[*isolated("vm", "run", *words)]])
        if known:
            target, other = self._dice.choice(known), self._dice.choice(known)
            network = f"net{number}"
            clients += [
                [["commit", target, f"made:{number}"]],
                [["cp", f"{target}:/etc/passwd", "-"], ["rm", "-f", other]],
                [["stop", "-t", "0", target], ["start", target]],
                [["network", "create", network], ["network", "connect", network, target],
                 ["network", "disconnect", network, target], ["network", "rm", network]],
                [["network", "create", f"{network}b"], ["network", "connect", f"{network}b", other]],
            ]  # fmt: skip
        machines = self._daemon.ok("ps", "-q", "--no-trunc", "--filter", "label=kind=vm").split()
        if machines:
            machine = self._dice.choice(machines)
            clients += [
                [["insula", "fork", machine]],
                [["insula", "snapshot", "create", machine, f"snap{number}"],
                 ["insula", "snapshot", "restore", machine, f"snap{number}", "--as", f"restored{number}"],
                 ["insula", "snapshot", "rm", machine, f"snap{number - 2}"]],
            ]  # fmt: skip
        return self._dice.sample(clients, min(AT_ONCE, len(clients)))

    def run(self, client: Script) -> None:
        for words in client:
            if words[0] == "insula":
                self._daemon.insula(*words[1:])
            else:
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
    found += stores(daemon)
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


def stores(daemon: Daemon) -> list[str]:
    """Volumes, networks and snapshots: what is listed, and what is there."""
    found = []
    base = daemon.directory / "data"
    volumes = {one["Name"] for one in daemon.client.get("/volumes")["Volumes"] or ()}
    there = {path.name for path in (base / "volumes").iterdir() if path.is_dir()}
    found += [f"volume {name} is listed or there, not both" for name in volumes ^ there]
    networks = daemon.client.get("/networks")
    bridges = {
        one["Options"].get("com.docker.network.bridge.name") or f"br-{one['Id'][:12]}"
        for one in networks
        if one["Driver"] == "bridge"
    }
    lost = bridges - set(links_of(daemon.netns))
    found += [f"bridge {name} is not there" for name in lost]
    for path in (base / "instances").glob("*/capture-*"):
        found.append(f"left of a fork: {path}")
    for path in (base / "instances").glob("*/snapshots/.*"):
        found.append(f"left of a snapshot: {path}")
    for path in (base / "instances").glob(".import-*"):
        found.append(f"left of an import: {path}")
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


def test_nothing_half_done_is_left(victim: Daemon, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY Dockerfile /at\nRUN echo $RANDOM > /made\n")
    crowd = Crowd(victim, dice, context)
    seen: set[str] = set()
    for kind in BOTH:
        victim.ok(*isolated(kind, "run", "-d", "--label", f"kind={kind}", IMAGE, "sleep", "1000"))
    victim.ok("volume", "create", "kept")
    victim.ok("run", "--rm", "-v", "kept:/at", IMAGE, "sh", "-c", "echo precious > /at/it")
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
    assert "precious" == victim.ok("run", "--rm", "-v", "kept:/at", IMAGE, "cat", "/at/it")
    victim.ok("pull", PULLED)
    for kind in BOTH:
        assert "hi" == victim.ok(*isolated(kind, "run", "--rm", PULLED, "echo", "hi"))
    for ident in victim.ok("ps", "-aq", "--no-trunc").split():
        victim.ok("rm", "-f", ident)
    assert [] == cgroups_of(seen)
