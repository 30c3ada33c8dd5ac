"""Copies of running instances: what Docker has no word for, and its checkpoints."""

from __future__ import annotations

from msgspec import Struct


class ForkConfig(Struct):
    """`Name` is that of the copy, or of several with `-1`, `-2`, … after it; "": the source's."""

    Count: int = 1
    Name: str = ""
