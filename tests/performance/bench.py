"""`make bench`: speed and memory of both isolations, beside any other engine, as ratios in one run.

    sudo make bench
    sudo make bench AGAINST=unix:///tmp/peers/docker/docker.sock

Starts a daemon of its own, imports one static busybox image into every engine, and drives all with the
stock docker client and over raw HTTP, round robin, so that a noisy machine is noisy for all.  Times are
medians in milliseconds; memory is the proportional set size of all processes that an idle instance adds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.client import Client

IMAGE = "insula-bench:latest"

RUN_NONE, RUN = "run --rm, no network", "run --rm, bridge"
ROUND_TRIP, EXEC, MANY = "API create+start+wait+delete", "exec", "20 at once"
MEMORY, DAEMON = "memory per idle instance, KiB", "idle daemon, RSS MiB"
FIRST = "first VM of its size"
FORK_PAUSE, FORK_TEN = "fork: the source's pause", "fork: 10 copies until all answer"

# what SPECIFICATION.md promises, by our column, as ratios to the engine in --against
RATIOS = {
    "process": {RUN_NONE: 0.5, RUN: 0.5, ROUND_TRIP: 0.35, EXEC: 0.7, MANY: 0.4, MEMORY: 0.25, DAEMON: 0.5},
    "vm": {RUN: 0.75, EXEC: 1.0, MANY: 2.5},
    "vm, pool empty": {RUN: 1.5, EXEC: 1.0, MANY: 2.5},
}
# and as figures: milliseconds under TCG on two idle cores, KiB that nobody else shares
FIGURES = {
    "vm, pool empty": {FIRST: 4000, MEMORY: 60 * 1024},
    "vm": {FORK_PAUSE: 300, FORK_TEN: 6000},
}
POOL_LIMIT_S = 120.0


@dataclass(frozen=True)
class Peer:
    title: str
    client: Client
    isolation: str
    daemon_pid: int
    pooled: bool = False

    def settle(self) -> None:
        """Until a clone is ready, where there is to be one."""
        limit = time.monotonic() + POOL_LIMIT_S
        while self.pooled:
            isolations = self.client.request("GET", "/insula/v1/info", versioned=False).json()["Isolations"]
            if any(int(one["Details"].get("clones ready", 0)) for one in isolations):
                return
            if time.monotonic() > limit:
                sys.exit("bench: no clone was made ahead: see the daemon's log")
            time.sleep(0.05)

    def host_config(self, network: str) -> dict[str, Any]:
        config: dict[str, Any] = {"NetworkMode": network}
        if self.isolation:
            config["Isolation"] = self.isolation
        return config

    def docker(self, *words: str) -> None:
        flags = [f"--isolation={self.isolation}"] if self.isolation and words[0] == "run" else []
        argv = ["docker", "-H", self.client.host, words[0], *flags, *words[1:]]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def make_image(path: Path) -> None:
    """A root with one static busybox in it."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("bench: busybox-static is not installed: make setup")
    with tarfile.open(path, "w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for name in ("sh", "true", "sleep", "cat", "echo"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(link)
        for name in ("proc", "sys", "dev", "tmp", "etc"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)


def memory_of(pid: int, *fields: str) -> int:
    """The sum of some fields of smaps_rollup, KiB."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith(fields) else 0
    return total


def all_pids() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def is_hypervisor(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")
    return False


def rss_mib(pid: int) -> float:
    """Resident memory of a process and of all its children's, MiB."""
    total, todo = 0.0, [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{one}/status").read_text()
            total += (
                next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
            )
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return total


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def round_trip(peer: Peer) -> None:
    """create, start, wait, delete over the socket."""
    body = {"Image": IMAGE, "Cmd": ["/bin/true"], "HostConfig": peer.host_config("bridge")}
    ident = peer.client.post("/containers/create", body)["Id"]
    peer.client.post(f"/containers/{ident}/start")
    peer.client.post(f"/containers/{ident}/wait")
    peer.client.delete(f"/containers/{ident}")


def start_idle(peer: Peer, number: int) -> str:
    body = {"Image": IMAGE, "Cmd": ["/bin/sleep", "1000"], "HostConfig": peer.host_config("bridge")}
    query = {"name": f"bench-{os.getpid()}-{number}-{peer.isolation or 'peer'}"}
    ident = str(peer.client.request("POST", "/containers/create", query=query, body=body).json()["Id"])
    peer.client.post(f"/containers/{ident}/start")
    return ident


def at_once(peer: Peer, count: int) -> float:
    with ThreadPoolExecutor(count) as pool:
        began = time.perf_counter()
        idents = list(pool.map(lambda n: start_idle(peer, n), range(count)))
        took = (time.perf_counter() - began) * 1e3
        list(pool.map(lambda i: peer.client.delete(f"/containers/{i}", force=True), idents))
    return took


def memory_kib(peer: Peer, count: int) -> float:
    """Of the processes that came with an idle instance: PSS; of VMs what they share with none, as the host
    gives up no more for a further one.  A VM that is made ahead meanwhile is nothing of a container's."""
    before = all_pids()
    idents = [start_idle(peer, n) for n in range(count)]
    if peer.isolation == "vm":  # the hypervisor is all there is of one
        states = [peer.client.get(f"/containers/{ident}/json")["State"] for ident in idents]
        sizes = [memory_of(state["Pid"], "Private_Clean:", "Private_Dirty:") for state in states]
    else:
        sizes = [memory_of(pid, "Pss:") for pid in all_pids() - before if not is_hypervisor(pid)]
    each = sum(sizes) / count
    for ident in idents:
        peer.client.delete(f"/containers/{ident}", force=True)
    return each


def fork(peer: Peer, ident: str, count: int) -> dict[str, Any]:
    answer = peer.client.request(
        "POST", f"/insula/v1/containers/{ident}/fork", body={"Count": count}, versioned=False
    )
    return dict(answer.json())


def fork_figures(peer: Peer, samples: int) -> Iterator[tuple[str, float]]:
    """Of a source that has a program running."""
    source = start_idle(peer, 998)
    peer.docker("exec", source, "/bin/true")
    copies: list[str] = []
    for _ in range(samples):
        forked = fork(peer, source, 1)
        yield FORK_PAUSE, forked["PauseMs"]
        copies += [copy["Id"] for copy in forked["Copies"]]
    for copy in copies:
        peer.client.delete(f"/containers/{copy}", force=True)

    def ten() -> None:
        made = [copy["Id"] for copy in fork(peer, source, 10)["Copies"]]
        assert all(made)
        copies[:] = made
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda ident: peer.docker("exec", ident, "/bin/true"), made))

    yield FORK_TEN, timed(ten)
    for ident in (source, *copies):
        peer.client.delete(f"/containers/{ident}", force=True)


@contextlib.contextmanager
def start_daemon(insula: str, scratch: Path, number: int, *options: str) -> Iterator[tuple[str, int]]:
    scratch.mkdir()
    host = f"unix://{scratch}/run/insula.sock"
    argv = [
        *(insula, "daemon", "--host", host),
        *("--data-root", str(scratch / "data"), "--exec-root", str(scratch / "run")),
        *("--bridge", f"insula-bench{number}", "--subnet", f"172.31.{241 + number}.0/24", *options),
    ]
    with open(scratch / "daemon.log", "wb") as log:
        child = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        client = Client(host)
        for _ in range(300):
            if client.reachable():
                break
            if child.poll() is not None:
                sys.exit(f"bench: the daemon ended:\n{(scratch / 'daemon.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield host, child.pid
    finally:
        child.terminate()
        child.wait(30)


def daemon_pid_of(host: str) -> int:
    """Who listens on a unix socket (SO_PEERCRED); 0 when it cannot be told."""
    import socket
    import struct

    path = host.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def measure(peers: list[Peer], samples: int) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, list[float]]] = {peer.title: {} for peer in peers}

    def note(peer: Peer, key: str, value: float) -> None:
        figures[peer.title].setdefault(key, []).append(value)

    for peer in peers:
        if peer.daemon_pid and peer.isolation != "vm":
            note(peer, DAEMON, rss_mib(peer.daemon_pid))
    for peer in peers:
        if peer.isolation == "vm":
            peer.client.request("POST", "/insula/v1/guest/make", versioned=False).read()
            odd = ("run", "--rm", "-m", "128m", IMAGE, "/bin/true")
            note(peer, FIRST, timed(lambda p=peer, o=odd: p.docker(*o)))
            for words in (odd, ("run", "--rm", IMAGE, "/bin/true")):
                for _ in range(2):  # the second waits until the template is made
                    peer.docker(*words)
    running = {peer.title: start_idle(peer, 999) for peer in peers}
    for number in range(samples):
        print(f"\rround {number + 1}/{samples} ", end="", file=sys.stderr, flush=True)
        for peer in peers:
            for key, words in ((RUN_NONE, ("--network", "none")), (RUN, ())):
                peer.settle()
                note(
                    peer, key, timed(lambda p=peer, w=words: p.docker("run", "--rm", *w, IMAGE, "/bin/true"))
                )
            peer.settle()
            note(peer, ROUND_TRIP, timed(lambda p=peer: round_trip(p)))
            peer.settle()
            ident = running[peer.title]
            note(peer, EXEC, timed(lambda p=peer, i=ident: p.docker("exec", i, "/bin/true")))
    for peer in peers:
        peer.client.delete(f"/containers/{running[peer.title]}", force=True)
        peer.settle()  # clones that are made meanwhile would count
    for peer in peers:
        if not peer.pooled:
            print(f"\r{peer.title}: memory  ", end="", file=sys.stderr, flush=True)
            note(peer, MEMORY, memory_kib(peer, 10 if peer.isolation != "vm" else 4))
    for peer in peers:
        print(f"\r{peer.title}: 20 at once  ", end="", file=sys.stderr, flush=True)
        note(peer, MANY, at_once(peer, 20))
    for peer in peers:
        if peer.pooled:
            print(f"\r{peer.title}: fork  ", end="", file=sys.stderr, flush=True)
            for key, value in fork_figures(peer, samples):
                note(peer, key, value)
    print("\r\033[K", end="", file=sys.stderr)
    return {t: {k: statistics.median(v) for k, v in f.items()} for t, f in figures.items()}


def show(peers: list[Peer], figures: dict[str, dict[str, float]]) -> None:
    keys = list(dict.fromkeys(key for peer in peers for key in figures[peer.title]))
    base = next((peer.title for peer in peers if not peer.isolation), None)
    heading = ["median", *(peer.title for peer in peers)]
    rows = [heading]
    for key in keys:
        row = [key]
        for peer in peers:
            value = figures[peer.title].get(key)
            other = figures[base].get(key) if base else None
            ratio = f"  {value / other:.2f}×" if value and other and peer.title != base else ""
            row.append("–" if value is None else f"{value:.0f}{ratio}")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(heading))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def over(
    title: str, bars: dict[str, dict[str, float]], ours: dict[str, float], theirs: dict[str, float]
) -> list[str]:
    return [
        f"{title}: {key}: {ours[key] / theirs[key]:.2f}×, at most {bar}× is wanted"
        for key, bar in bars.get(title, {}).items()
        if ours[key] / theirs[key] > bar
    ]


def missed(peers: list[Peer], figures: dict[str, dict[str, float]]) -> list[str]:
    """The promises that this run did not keep, as sentences."""
    base = next((peer.title for peer in peers if not peer.isolation), None)
    said = []
    for peer in peers:
        ours = figures[peer.title]
        if base:
            said += over(peer.title, RATIOS, ours, figures[base])
        for key, most in FIGURES.get(peer.title, {}).items():
            if ours[key] > most:
                said.append(f"{peer.title}: {key}: {ours[key]:.0f}, promised at most {most}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--insula", default="insula")
    parser.add_argument("--against", action="append", default=[], metavar="ADDRESS")
    parser.add_argument("--samples", type=int, default=12)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: needs root: sudo make bench")
    with tempfile.TemporaryDirectory(prefix="insula-bench-", dir="/var/tmp") as scratch:
        archive = Path(scratch) / "image.tar"
        make_image(archive)
        here = Path(scratch)
        with (
            start_daemon(options.insula, here / "pool", 0) as (host, pid),
            start_daemon(options.insula, here / "none", 1, "--vm-pool", "0") as (other_host, other_pid),
        ):
            peers = [
                Peer("process", Client(host), "process", pid),
                Peer("vm", Client(host), "vm", pid, pooled=True),
                Peer("vm, pool empty", Client(other_host), "vm", other_pid),
            ]
            for address in options.against:
                other = Client(address)
                other.negotiate()
                peers.append(Peer(address.rpartition("/")[2], other, "", daemon_pid_of(address)))
            for host_of in {peer.client.host: peer.client for peer in peers}.values():
                query = {"fromSrc": "-", "repo": "insula-bench", "tag": "latest"}
                host_of.request("POST", "/images/create", query=query, raw=archive.read_bytes()).read()
            try:
                figures = measure(peers, options.samples)
                show(peers, figures)
                broken = missed(peers, figures)
            finally:
                for client in {peer.client.host: peer.client for peer in peers}.values():
                    with contextlib.suppress(Exception):
                        client.delete(f"/images/{IMAGE}", force=True)
    for sentence in broken:
        print(f"missed: {sentence}")
    if broken:
        sys.exit(1)
    print("every promise of SPECIFICATION.md that was measured is kept")


if __name__ == "__main__":
    main()
