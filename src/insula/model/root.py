"""Root file systems as `images` makes them and `isolation` uses them.  Pure.

A *directory* is a mounted overlay of unpacked layers and an upper directory (process backend).
A *disk* is a read-only erofs image plus a sparse ext4 upper disk; the guest makes the overlay
(VM backend).  The host never mounts the upper disk: a guest has written to it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

IMAGE_DISK_BYTES = 64 << 30
"""What every image's disk appears to have, in holes: a guest that was frozen with one goes on with
another."""


class RootKind(enum.StrEnum):
    DIRECTORY = "directory"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryRoot:
    """`merged` is where the overlay is (or will be) mounted; `lowers` has the topmost layer first.

    `volatile`: it need not survive a crash of the host, so it is not synced when unmounted (`--rm`).
    """

    merged: str
    lowers: tuple[str, ...]
    upper: str
    work: str
    volatile: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRoot:
    """Files on the host: a raw erofs image shared by all VMs of the image, and this VM's ext4.

    `volatile`: nobody wants the ext4 once the workload has ended (`--rm`).
    """

    image_disk: str
    upper_disk: str
    volatile: bool = False
