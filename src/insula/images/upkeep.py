"""Removing what no image needs any more, never while something is being added or read.  Async."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from insula.errors import Failure
from insula.images.catalog import Catalog
from insula.images.content import ContentStore
from insula.images.disks import Disks
from insula.images.layers import Layers
from insula.images.registry.blobs import in_thread

_log = logging.getLogger(__name__)


class Upkeep:
    def __init__(self, catalog: Catalog, content: ContentStore, layers: Layers, disks: Disks) -> None:
        self._disks = disks
        self._catalog = catalog
        self._content = content
        self._layers = layers
        self._busy = 0
        self._wanted = False
        self._sweeping = asyncio.Lock()

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """While somebody is inside, nothing is removed; a sweep that was asked for happens after the last."""
        async with self._sweeping:
            self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._busy == 0 and self._wanted:
                await self.sweep()

    def want(self) -> None:
        """Sweep when the last one leaves."""
        self._wanted = True

    async def sweep(self) -> int:
        """Remove blobs, layers and disks that no image needs.  Returns bytes given back; 0 if put off."""
        async with self._sweeping:
            if self._busy:
                self._wanted = True
                return 0
            self._wanted = False
            needed = self._catalog.needed()
            freed = 0
            for diff_id in self._layers.diff_ids():
                if diff_id not in needed:
                    freed += self._size(diff_id)
                    await self._layers.remove(diff_id)
            for digest in self._content.digests():
                if digest not in needed:
                    freed += self._content.size(digest)
                    await in_thread(self._content.remove, digest)
            freed += await in_thread(self._disks.sweep, [image.diff_ids for image in self._catalog.all()])
            _log.info("swept images: %d bytes given back", freed)
            return freed

    def _size(self, diff_id: str) -> int:
        """0 for a layer whose size was never written: it is being removed, so nobody needs it."""
        try:
            return self._layers.size(diff_id)
        except Failure:
            return 0
