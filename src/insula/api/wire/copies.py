"""Copies of running instances in requests: what Docker has no word for, and its checkpoints.  Pure."""

from __future__ import annotations

from msgspec import Struct


class ForkConfig(Struct):
    """`Name` is that of the copy, or of several with `-1`, `-2`, … after it; "": the source's."""

    Count: int = 1
    Name: str = ""


class SnapshotConfig(Struct):
    """`Name` "": the time."""

    Name: str = ""
    LeaveRunning: bool = True


class RestoreConfig(Struct):
    """`Name`: of another instance that goes on from there; "": the instance itself."""

    Name: str = ""


class CheckpointCreateOptions(Struct):
    CheckpointID: str = ""
    CheckpointDir: str = ""
    Exit: bool = False
