"""Roots of instances: an overlay mounted on the host, or a pair of disks for a guest.  Async.

    instances_dir/<id>/upper, work        what a process instance writes
    instances_dir/<id>/upper.ext4         what a guest writes; never mounted on the host
    exec_root/roots/<id>/merged           where the overlay of a process instance is mounted
    images_dir/scaffold                   the lowest layer of each of these (`system.scaffold`)

`make_directory` is on the hot path of `run`: system calls only, no program, no thread, no fsync.
Layers are unpacked before (`layers`); the image disk is built here when it is missing (`disks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from insula.errors import Failure
from insula.images.content import check_digest
from insula.images.disks import Disks
from insula.model.image import Image
from insula.model.progress import Progress, no_progress
from insula.model.root import DirectoryRoot, DiskRoot
from insula.system import mounts
from insula.system.files import disk_errors, remove_tree
from insula.system.scaffold import make_scaffold


def layer_paths(images_dir: str, diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Directories of unpacked layers, topmost first.

    A layer that is in an image twice is named once, at its highest place: overlayfs refuses the second,
    and whatever it held lower down is what it holds there.
    """
    seen = dict.fromkeys(check_digest(diff_id) for diff_id in reversed(diff_ids))
    return tuple(f"{images_dir}/layers/{diff_id[7:]}" for diff_id in seen)


class Roots:
    def __init__(self, images_dir: str, instances_dir: str, exec_root: str) -> None:
        self._images_dir = images_dir
        self._instances_dir = instances_dir
        self._roots_dir = f"{exec_root}/roots"
        self.disks = Disks(f"{images_dir}/disks", f"{images_dir}/tmp", f"{images_dir}/layers/empty")
        for directory in (instances_dir, self._roots_dir):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self._scaffold = f"{images_dir}/scaffold"
        make_scaffold(self._scaffold)

    def layer_directories(self, image: Image) -> tuple[str, ...]:
        """The image's unpacked layers, topmost first; an empty directory for an image of none.

        Raises Failure if one is not there.
        """
        lowers = layer_paths(self._images_dir, image.diff_ids)
        for lower in lowers:
            if not os.path.isdir(lower):
                raise Failure(
                    f"image {image.id}: its layer {os.path.basename(lower)} is not unpacked",
                    hint="pull or load the image again",
                )
        return lowers or (self.disks.empty_layer,)

    async def make_directory(
        self, image: Image, instance_id: str, *, volatile: bool = False
    ) -> DirectoryRoot:
        """A fresh upper directory over the image's layers, mounted.

        `volatile`: what the instance writes need not survive a crash of the host (`--rm`); its disk is
        then not synced when it is unmounted.
        """
        state = f"{self._instances_dir}/{instance_id}"
        root = DirectoryRoot(
            merged=f"{self._roots_dir}/{instance_id}/merged",
            lowers=(*self.layer_directories(image), self._scaffold),
            upper=f"{state}/upper",
            work=f"{state}/work",
            volatile=volatile,
        )
        with contextlib.ExitStack() as undo, disk_errors("making an instance's root"):
            os.makedirs(state, mode=0o700, exist_ok=True)
            for directory in (root.upper, root.work):
                os.mkdir(directory, 0o755)
                undo.callback(remove_tree, directory)
            undo.callback(self._remove_mount_point, root.merged)
            self._mount(root)
            undo.pop_all()
        return root

    async def mount(self, root: DirectoryRoot) -> None:
        """Mount it (again); fine if it is mounted."""
        if not mounts.is_mounted(root.merged):
            self._mount(root)

    def _mount(self, root: DirectoryRoot) -> None:
        os.makedirs(root.merged, mode=0o755, exist_ok=True)
        if (
            root.volatile
        ):  # overlayfs's mark that the last mount was one; the next is refused while it is there
            remove_tree(f"{root.work}/work/incompat")
        mounts.mount_overlay(
            root.merged, root.lowers, upper=root.upper, work=root.work, volatile=root.volatile
        )

    async def unmount(self, root: DirectoryRoot) -> None:
        """Fine if it is not mounted.  In a thread: the kernel writes back what is dirty."""
        await asyncio.to_thread(mounts.umount, root.merged)

    def upper_disk(self, instance_id: str) -> str:
        """Where a guest's own disk is, or would be."""
        return f"{self._instances_dir}/{instance_id}/upper.ext4"

    async def make_disk(
        self,
        image: Image,
        instance_id: str,
        *,
        size_gib: int,
        volatile: bool = False,
        progress: Progress = no_progress,
    ) -> DiskRoot:
        """The image's disk (built if this is its first VM) and a fresh upper disk.  `volatile`: DiskRoot."""
        image_disk = await self.disks.make_image_disk(
            self.layer_directories(image), image.diff_ids, size_bytes=image.size_bytes, progress=progress
        )
        state = f"{self._instances_dir}/{instance_id}"
        upper = self.upper_disk(instance_id)
        os.makedirs(state, mode=0o700, exist_ok=True)
        await self.disks.make_upper_disk(upper, size_gib=size_gib)
        return DiskRoot(image_disk=image_disk, upper_disk=upper, volatile=volatile)

    async def remove(self, instance_id: str) -> None:
        """Unmount and remove all of it; idempotent."""
        await asyncio.to_thread(self._remove, instance_id)

    def _remove(self, instance_id: str) -> None:
        state = f"{self._instances_dir}/{instance_id}"
        self._remove_mount_point(f"{self._roots_dir}/{instance_id}/merged")
        for directory in ("upper", "work"):
            remove_tree(f"{state}/{directory}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.upper_disk(instance_id))

    def _remove_mount_point(self, merged: str) -> None:
        while mounts.umount(merged):
            pass
        for directory in (merged, os.path.dirname(merged)):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(directory)
