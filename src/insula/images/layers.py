"""Unpacked layers: one directory per diff_id, in overlayfs's own form, complete or not there.  Async.

    root/layers/<64 hex>         the tree (whiteouts are char devices 0:0, opaque directories are marked)
    root/layers/<64 hex>.size    bytes of its files, as text
    root/tmp/…                   being unpacked or removed; cleaned at start

Unpacking happens in a confined child (`unpack`).  Not for blobs (`content`), not for mounting (`roots`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
from collections.abc import Iterator
from typing import Any

from insula.errors import CorruptData, DiskFull, Failure
from insula.images.content import ContentStore, check_digest
from insula.model.image import Descriptor
from insula.model.progress import Progress, no_progress
from insula.system.child import run_child
from insula.system.files import disk_errors, remove_tree, write_atomic

log = logging.getLogger(__name__)

MAX_ENTRIES = 2_000_000
_SPARE_BYTES = 64 << 20  # left free for the daemon's own records
_OPAQUE = "trusted.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Layers:
    def __init__(self, root: str, content: ContentStore) -> None:
        self._content = content
        self._root = f"{root}/layers"
        self._tmp = f"{root}/tmp"
        self._locks: dict[str, asyncio.Lock] = {}
        for directory in (self._root, self._tmp):
            os.makedirs(directory, mode=0o700, exist_ok=True)

    def path(self, diff_id: str) -> str:
        return f"{self._root}/{check_digest(diff_id)[7:]}"

    def has(self, diff_id: str) -> bool:
        return os.path.isdir(self.path(diff_id))

    def size(self, diff_id: str) -> int:
        """Bytes of the layer's files.  Raises Failure when the layer is not there."""
        try:
            with open(self.path(diff_id) + ".size", encoding="ascii") as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            raise Failure(f"layer {diff_id} is not unpacked", hint="pull the image again") from None

    def diff_ids(self) -> tuple[str, ...]:
        return tuple(sorted(f"sha256:{name}" for name in os.listdir(self._root) if len(name) == 64))

    @contextlib.contextmanager
    def _lock(self, diff_id: str) -> Iterator[asyncio.Lock]:
        lock = self._locks.setdefault(diff_id, asyncio.Lock())
        try:
            yield lock
        finally:
            if not lock.locked() and not getattr(lock, "_waiters", None):
                self._locks.pop(diff_id, None)

    async def unpack(
        self, *, blob: Descriptor, diff_id: str, progress: Progress = no_progress, id: str = ""
    ) -> None:
        """Unpack a stored blob, checking that its plain form has the digest `diff_id`.

        Does nothing when the layer is there; concurrent calls for one layer unpack it once.  `id` is what
        progress is about.  Raises CorruptData, DiskFull; then nothing is kept.
        """
        with self._lock(diff_id) as lock:
            async with lock:
                if not self.has(diff_id):
                    await self._unpack(blob, diff_id, progress, id or blob.digest[7:19])

    async def _unpack(self, blob: Descriptor, diff_id: str, progress: Progress, about: str) -> None:
        fresh = f"{self._tmp}/{secrets.token_hex(12)}"
        with disk_errors("unpacking a layer"):
            os.mkdir(fresh, 0o755)
        try:
            result = await self._run_child(blob, fresh, progress, about)
            if result["diff_id"] != diff_id:
                raise CorruptData(
                    f"layer {blob.digest}: unpacked it has digest {result['diff_id']}, "
                    f"the image says {diff_id}"
                )
            for why, count in sorted(result["skipped"].items()):
                log.info("layer %s: %d entries without their %s", diff_id, count, why)
            await asyncio.to_thread(self._finish, fresh, diff_id, result["opaque"], int(result["size"]))
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove_tree, fresh))
            raise

    async def _run_child(
        self, blob: Descriptor, fresh: str, progress: Progress, about: str
    ) -> dict[str, Any]:
        free = os.statvfs(self._tmp)
        limit_bytes = free.f_bavail * free.f_frsize - _SPARE_BYTES
        if limit_bytes <= 0:
            raise DiskFull(
                "no space left on the disk for a layer", hint="free some space: insula system prune"
            )
        progress("Extracting", id=about, current=0, total=blob.size)
        with contextlib.ExitStack() as stack:
            source = os.open(self._content.path(blob.digest), os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, source)
            target = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, target)
            request = {"directory_fd": target, "limit_bytes": limit_bytes, "limit_entries": MAX_ENTRIES}
            result = await run_child(
                "insula.images.unpack",
                request,
                stdin=source,
                pass_fds=(target,),
                on_progress=lambda current: progress(
                    "Extracting", id=about, current=current, total=blob.size
                ),
            )
        progress("Extracting", id=about, current=blob.size, total=blob.size)
        return result

    def _finish(self, fresh: str, diff_id: str, opaque: list[str], size: int) -> None:
        """Mark, make durable, put in place.  Runs in a thread: syncing may take seconds."""
        fd = os.open(fresh, _DIRECTORY)
        try:
            for path in opaque:
                _mark_opaque(fd, path)
            with disk_errors("storing a layer"):
                if _libc.syncfs(fd) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
        finally:
            os.close(fd)
        write_atomic(self.path(diff_id) + ".size", str(size))
        os.rename(fresh, self.path(diff_id))

    async def remove(self, diff_id: str) -> None:
        """Fine if it is not there.  Nobody may have it mounted."""
        await asyncio.to_thread(self._remove, self.path(diff_id))

    def _remove(self, path: str) -> None:
        doomed = f"{self._tmp}/{secrets.token_hex(12)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, doomed)
            remove_tree(doomed)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".size")

    def clean(self) -> None:
        """At start: what was being unpacked or removed when the daemon died."""
        for name in os.listdir(self._tmp):
            remove_tree(f"{self._tmp}/{name}")
        for name in os.listdir(self._root):
            if name.endswith(".size") and not os.path.isdir(f"{self._root}/{name[:-5]}"):
                os.unlink(f"{self._root}/{name}")


def _mark_opaque(root_fd: int, path: str) -> None:
    """`path` is canonical inside the tree; no symlink is followed whatever it says."""
    fd = os.dup(root_fd)
    try:
        for part in path.strip("/").split("/"):
            if part in ("", ".", ".."):
                continue
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.setxattr(fd, _OPAQUE, b"y")
    finally:
        os.close(fd)
