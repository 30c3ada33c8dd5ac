"""Sets of CPUs and memory nodes as the kernel writes them, `0-2,4`, and which this host has.  Synchronous."""

from __future__ import annotations

import os
import re

_LIST = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
_NODES = "/sys/devices/system/node/online"


def parse(text: str) -> set[int] | None:
    """None for what is no such list."""
    if not _LIST.fullmatch(text):
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            return None
        found.update(range(int(first), int(last or first) + 1))
    return found


def show(numbers: set[int]) -> str:
    """`0-2,4`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def available_cpus() -> set[int]:
    """Those that this process may run on."""
    return os.sched_getaffinity(0)


def available_nodes() -> set[int]:
    """Node 0 where the kernel knows of none."""
    try:
        with open(_NODES, encoding="ascii") as file:
            return parse(file.read().strip()) or {0}
    except FileNotFoundError:
        return {0}
