"""Where the time of a VM's start goes: logged at level debug, for whoever wonders.  Pure but for the
clock."""

from __future__ import annotations

import time


class Steps:
    """`mark` what has just been done; the text says how long each took, in milliseconds."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._marks: list[tuple[str, float]] = []

    def mark(self, done: str) -> None:
        now = time.perf_counter()
        self._marks.append((done, now - self._last))
        self._last = now

    def __str__(self) -> str:
        parts = [f"{name} {took * 1000:.0f}" for name, took in self._marks]
        return f"{', '.join(parts)}; {(self._last - self._began) * 1000:.0f} ms in all"
