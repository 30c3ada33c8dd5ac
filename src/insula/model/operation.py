"""The journal's word: something begun on an instance that must be completed or undone.  Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One line of the journal.  `kind` is the engine's name for it (`create`, `remove`, …), `detail` is
    whatever the engine needs to finish or undo it (JSON, a path, or nothing)."""

    id: int
    instance_id: str
    kind: str
    detail: str
    started_ns: int
