"""What a daemon of the tests has of the host: mounts, links, cgroups, processes.  Synchronous."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def start_netns(name: str) -> Iterator[str]:
    make_netns(name)
    try:
        yield name
    finally:
        drop_netns(name)


def make_netns(name: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)


def drop_netns(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], check=True)


def links_of(netns: str) -> list[str]:
    shown = subprocess.run(
        ["ip", "-n", netns, "-br", "link"], check=True, capture_output=True, text=True
    ).stdout
    return [line.split()[0].partition("@")[0] for line in shown.splitlines()]


def mounted_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted({line.split()[4] for line in lines if line.split()[4].startswith(f"{directory}/")})


def cgroups_of(idents: Collection[str]) -> list[Path]:
    """Of instances, their execs and helpers.  Groups come and go while this walks: they are no error."""
    return [
        Path(path)
        for path, _, _ in os.walk("/sys/fs/cgroup")
        if any(ident in os.path.basename(path) for ident in idents)
    ]


def pids_below(groups: Collection[Path]) -> set[int]:
    found: set[int] = set()
    for group in groups:
        with suppress(OSError):
            found.update(map(int, (group / "cgroup.procs").read_text().split()))
    return found


def processes_with(*words: str) -> dict[int, str]:
    """Command lines in which one of the words is; zombies have none."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(word in line for word in words):
                found[int(entry.name)] = line
    return found


def hypervisors_below(directory: Path) -> set[int]:
    """QEMUs that have a file of the directory open: of instances, and those that were made ahead."""
    found = set()
    for pid in processes_with("qemu-system-x86_64 -name"):
        try:
            opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(path.startswith(f"{directory}/") for path in opened):
            found.add(pid)
    return found
