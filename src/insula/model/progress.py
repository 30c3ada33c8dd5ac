"""How long work tells where it is.  Pure (a Protocol)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Docker's progress messages.  `id` is what it is about (a layer's short digest, or ""), `status` the
    verb (`Downloading`, `Extracting`, `Pull complete`), `current` and `total` bytes, zero when unknown.
    Cheap, never blocks, callable from the event loop's thread only."""

    def __call__(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None: ...


def no_progress(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
    """Tells nobody."""
