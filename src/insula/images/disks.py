"""Disks for guests: one read-only erofs per image, one sparse ext4 per instance.  Async.

    root/<key>.erofs          an image's layers merged; the key is the digest of its diff_ids and `_FORMAT`
    root/upper-<n>g-….ext4    an empty file system of n GiB, from which each instance's is copied

Both are built once, in a scratch place, and renamed when complete.  A disk in use is never written again:
removing one leaves it to the machines that have it open.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import uuid
from collections.abc import Iterable, Iterator, Sequence

from insula.images.transfers import SharedWork
from insula.model.progress import Progress, no_progress
from insula.model.root import IMAGE_DISK_BYTES
from insula.system.child import run_child
from insula.system.disk_file import MKE2FS_ENVIRONMENT, copy_sparse, finalize_mke2fs
from insula.system.files import disk_errors
from insula.system.run import arun, need_program

# Part of the names: a change here makes new disks beside the old ones.
_FORMAT = "1"
_UPPER_FORMAT = "2"
_POLL_S = 0.2


def image_disk_key(diff_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([_FORMAT, *diff_ids]).encode()).hexdigest()


class Disks:
    def __init__(self, root: str, tmp: str, empty_layer: str) -> None:
        self._root = root
        self._tmp = tmp
        self.empty_layer = empty_layer
        self._work: SharedWork[str] = SharedWork()
        for directory in (root, tmp, empty_layer):
            os.makedirs(directory, mode=0o700 if directory != empty_layer else 0o755, exist_ok=True)

    def image_disk(self, diff_ids: Sequence[str]) -> str:
        """Where an image's disk is, or would be."""
        return f"{self._root}/{image_disk_key(diff_ids)}.erofs"

    async def make_image_disk(
        self,
        lowers: Sequence[str],
        diff_ids: Sequence[str],
        *,
        size_bytes: int = 0,
        progress: Progress = no_progress,
    ) -> str:
        """The image's disk, built if it is not there; several who ask at once share the work.

        `lowers` are its layers, topmost first; `size_bytes` is for progress.  Raises DiskFull,
        ProgramMissing.
        """
        path = self.image_disk(diff_ids)
        if os.path.exists(path):
            return path

        async def build(tell: Progress) -> str:
            if not os.path.exists(path):
                await self._build_image_disk(path, lowers, size_bytes, tell)
            return path

        return await self._work.run(path, build, progress)

    async def _build_image_disk(
        self, path: str, lowers: Sequence[str], size_bytes: int, progress: Progress
    ) -> None:
        key = os.path.basename(path).removesuffix(".erofs")
        mkfs = need_program("mkfs.erofs")
        with self._scratch() as fresh, self._scratch() as mount_point, self._scratch() as scratch:
            os.mkdir(mount_point, 0o700)
            os.mkdir(scratch, 0o700)
            # a mere bind would show the layer's own whiteouts; an image of no layers is the empty one already
            if len(lowers) == 1 and lowers[0] != self.empty_layer:
                lowers = [*lowers, self.empty_layer]
            request = {
                "mkfs": mkfs,
                "lowers": list(lowers),
                "mount_point": mount_point,
                "scratch": scratch,
                "disk": fresh,
                "uuid": str(uuid.UUID(key[:32])),
            }
            told = asyncio.create_task(_tell_growth(fresh, key[:12], size_bytes, progress))
            try:
                await run_child("insula.images.disk_child", request)
            finally:
                told.cancel()
            with disk_errors("building an image's disk"):
                await asyncio.to_thread(_sync, fresh)
                if os.stat(fresh).st_size < IMAGE_DISK_BYTES:
                    os.truncate(fresh, IMAGE_DISK_BYTES)
            os.chmod(fresh, 0o444)
            os.rename(fresh, path)
        progress("Disk built", id=key[:12], current=size_bytes, total=size_bytes)

    async def make_upper_disk(self, path: str, *, size_gib: int) -> None:
        """A fresh empty ext4 of `size_gib` at `path`, which must not exist.  Some milliseconds."""
        template = f"{self._root}/upper-{size_gib}g-{_UPPER_FORMAT}.ext4"
        if not os.path.exists(template):

            async def build(_: Progress) -> str:
                if not os.path.exists(template):
                    await self._build_upper(template, size_gib)
                return template

            await self._work.run(template, build, no_progress)
        await asyncio.to_thread(copy_sparse, template, path)

    async def _build_upper(self, template: str, size_gib: int) -> None:
        with self._scratch() as fresh:
            with disk_errors("building an upper disk"):
                with open(fresh, "xb") as file:
                    file.truncate(size_gib << 30)
            await arun(finalize_mke2fs(fresh), env=MKE2FS_ENVIRONMENT)
            os.rename(fresh, template)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        """A name that nothing has yet, and that nothing has afterwards."""
        path = f"{self._tmp}/{secrets.token_hex(12)}"
        try:
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.isdir(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)

    def sweep(self, needed: Iterable[Sequence[str]]) -> int:
        """Remove the disks of all images but those with these diff_ids.  Returns bytes given back."""
        keep = {os.path.basename(self.image_disk(diff_ids)) for diff_ids in needed}
        freed = 0
        for name in os.listdir(self._root):
            if name.endswith(".erofs") and name not in keep:
                freed += os.stat(f"{self._root}/{name}").st_blocks * 512
                os.unlink(f"{self._root}/{name}")
        return freed

    def drop(self, images: Iterable[Sequence[str]]) -> None:
        """Remove the disks of these images; fine if they have none."""
        for diff_ids in images:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.image_disk(diff_ids))


async def _tell_growth(path: str, about: str, total: int, progress: Progress) -> None:
    """mkfs.erofs does not say how far it is; its output's size does, roughly."""
    while True:
        size = os.stat(path).st_blocks * 512 if os.path.exists(path) else 0
        progress("Building disk", id=about, current=min(size, total) if total else size, total=total)
        await asyncio.sleep(_POLL_S)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
