"""Who needs an instance's root mounted: the run, and each copy into or out of a stopped instance.  Async.

A disk root is never mounted on the host, so there is nothing to count for it.  `volumes` is what is mounted
besides the root, for the run only.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from insula.engine.instances import Entry
from insula.engine.operations import uncut
from insula.engine.volume_use import VolumeUse

if TYPE_CHECKING:
    from insula.engine.kit import Kit


class Mounting:
    def __init__(self, kit: Kit) -> None:
        self._roots = kit.roots
        self.volumes = VolumeUse(kit)

    async def hold(self, entry: Entry) -> None:
        root = entry.plan.directory if entry.plan is not None else None
        if root is None:
            return
        async with entry.root_lock:
            if not entry.root_mounted:
                await self._roots.mount(root)
                entry.root_mounted = True
            entry.root_users += 1

    async def drop(self, entry: Entry) -> None:
        """To its end, whatever happens to the caller: a client may go away while its root is unmounted."""
        await uncut(self._drop(entry))

    async def _drop(self, entry: Entry) -> None:
        root = entry.plan.directory if entry.plan is not None else None
        if root is None:
            return
        async with entry.root_lock:
            entry.root_users = max(0, entry.root_users - 1)
            if entry.root_users == 0 and entry.root_mounted:
                await self._roots.unmount(root)
                entry.root_mounted = False

    @contextlib.asynccontextmanager
    async def held(self, entry: Entry) -> AsyncIterator[None]:
        await self.hold(entry)
        try:
            yield
        finally:
            await self.drop(entry)
