"""What insula could leave behind on a host: `--write FILE` before, `--compare FILE` after.

Processes, mounts, network namespaces, links, nft tables, cgroups, loop devices.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("conmon", "crun", "runc", "qemu-system", "virtiofsd", "docker-registry", "insula", "aardvark-dns")
SETTLE_S = 10.0


def processes() -> list[str]:
    """Command lines of the programs that we run, zombies left out (process 1 collects them when it likes)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        program = os.path.basename(words[0]).decode(errors="replace")
        is_module = b"-m" in words and any(w.startswith(b"insula") for w in words)
        if program.startswith(PROGRAMS) or is_module:
            found.append(f"{entry.name} {b' '.join(words).decode(errors='replace')[:200]}")
    return found


def lines_of(*argv: str) -> list[str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def cgroups() -> list[str]:
    root = Path("/sys/fs/cgroup")
    return [str(path) for path in root.glob("**/*insula*") if path.is_dir()]


def loops() -> list[str]:
    return [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def state() -> dict[str, list[str]]:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "processes": sorted(processes()),
        "mounts": sorted(mounts),
        "network namespaces": sorted(lines_of("ip", "netns", "list")),
        "links": sorted(line.split(":")[1].strip().split("@")[0] for line in lines_of("ip", "-o", "link")),
        "nft tables": sorted(lines_of("nft", "list", "tables")),
        "cgroups": sorted(cgroups()),
        "loop devices": sorted(loops()),
    }


def left(before: dict[str, list[str]]) -> dict[str, list[str]]:
    now = state()
    found = {}
    for kind, things in now.items():
        rest = list(things)
        for thing in before[kind]:
            if thing in rest:
                rest.remove(thing)
        if rest:
            found[kind] = rest
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--compare", metavar="FILE")
    options = parser.parse_args()
    if options.write:
        Path(options.write).write_text(json.dumps(state()))
        return 0
    before = json.loads(Path(options.compare).read_text())
    limit = time.monotonic() + SETTLE_S  # the kernel takes network namespaces apart in its own time
    while (found := left(before)) and time.monotonic() < limit:
        time.sleep(0.2)
    for kind, things in found.items():
        print(f"left behind, {kind}:", file=sys.stderr)
        for thing in things:
            print(f"  {thing}", file=sys.stderr)
    if not found:
        print("nothing left behind: no process, mount, namespace, link, nft table, cgroup or loop device")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
