"""The empty upper disk that a template has mounted, read-only, when it is frozen.  Async.

An instance's disk that is still empty is a copy of it, byte for byte, and a clone goes on with what its
kernel has read; any other is mounted anew.  Nothing else is believed: not a name, nor what an instance has
done.
"""

from __future__ import annotations

import asyncio
import hashlib
import os

from insula.isolation.vm.guest import Guest
from insula.system import memory_file
from insula.system.disk_file import MKE2FS_ENVIRONMENT, finalize_mke2fs, is_copy
from insula.system.run import arun

_FORMAT = 2  # with `disk_file.finalize_mke2fs`


class EmptyDisk:
    """Of `gib` GiB, made once for each guest."""

    def __init__(self, gib: int) -> None:
        self._gib = gib
        self._lock = asyncio.Lock()
        self._digests: dict[str, str] = {}

    async def need(self, guest: Guest) -> str:
        """Its path.  Raises ProgramFailed, ProgramMissing, OSError."""
        path = os.path.join(guest.directory, f"rehearsal-upper-{self._gib}g-{_FORMAT}.ext4")
        async with self._lock:
            if not os.path.exists(path):
                fresh = f"{path}.new"
                with open(fresh, "wb") as file:
                    file.truncate(self._gib << 30)
                await arun(finalize_mke2fs(fresh), env=MKE2FS_ENVIRONMENT)
                os.rename(fresh, path)
        return path

    async def digest(self, guest: Guest) -> str:
        """Of its bytes.  Raises as `need`."""
        path = await self.need(guest)
        if path not in self._digests:
            self._digests[path] = await asyncio.to_thread(_digest, path)
        return self._digests[path]

    async def is_like(self, guest: Guest, upper_disk: str) -> bool:
        """Nobody has written anything to `upper_disk`.  Raises as `need`."""
        return await asyncio.to_thread(is_copy, await self.need(guest), upper_disk)


def _digest(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        digest, _ = memory_file.digest_sparse(fd)
    finally:
        os.close(fd)
    return hashlib.sha256(digest.encode()).hexdigest()
