"""Blobs to unpacked layers, and which blob is known to be which layer.  Async.

What a manifest claims of a blob ("unpacks to this layer") counts only once it was unpacked and checked:
otherwise somebody's manifest could pair a popular layer with a blob of his own, and the next image that
has that layer would be pushed or saved with it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from weakref import WeakValueDictionary

from insula.errors import InsulaError, Unauthorized
from insula.images.catalog import Catalog
from insula.images.content import ContentStore
from insula.images.layers import Layers
from insula.model.ids import short_id
from insula.model.image import Descriptor, Image
from insula.model.progress import Progress


class Unpacking:
    def __init__(self, catalog: Catalog, content: ContentStore, layers: Layers) -> None:
        self._catalog = catalog
        self._content = content
        self._layers = layers
        self._slots = asyncio.Semaphore(os.cpu_count() or 2)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._verified: dict[str, dict[str, Descriptor]] = {}  # layer → blobs seen to unpack to it

    def find(self, blob: Descriptor, diff_id: str) -> Descriptor | None:
        """A blob that is known to be this layer and is here, unpacked too: this one, or one compressed
        differently."""
        if not self._layers.has(diff_id):
            return None
        here = [known for known in self._known(diff_id) if self._content.has(known.digest)]
        if any(known.digest == blob.digest for known in here):
            return blob
        return here[0] if here else None

    def _known(self, diff_id: str) -> tuple[Descriptor, ...]:
        return (*self._catalog.blobs_of(diff_id), *self._verified.get(diff_id, {}).values())

    async def unpack(self, blob: Descriptor, diff_id: str, progress: Progress) -> None:
        """A blob that is in the content store.  Raises CorruptData, DiskFull; then nothing of it is kept."""
        about = short_id(blob.digest)

        def extracting(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
            progress("Extracting", id=about, current=current, total=total or blob.size)

        lock = self._locks.setdefault(diff_id, asyncio.Lock())
        async with self._slots, lock:
            if self._layers.has(diff_id):
                if self._known(diff_id):
                    return  # by another blob, meanwhile; `settle` takes that one for this layer
                await self._layers.remove(diff_id)  # left by something that failed: check this blob instead
            await self._layers.unpack(blob=blob, diff_id=diff_id, progress=extracting)
            self._verified.setdefault(diff_id, {})[blob.digest] = blob

    async def unpack_all(self, image: Image, progress: Progress) -> Image:
        """Every layer of an image whose blobs are in the content store, side by side."""
        missing: dict[str, Descriptor] = {}
        for blob, diff_id in zip(image.layers, image.diff_ids, strict=True):
            if self.find(blob, diff_id) is None:
                missing[diff_id] = blob

        await run_all([self.unpack(blob, diff_id, progress) for diff_id, blob in missing.items()])
        return self.settle(image)

    def settle(self, image: Image) -> Image:
        """The image with blobs that are known to be its layers, and its size.  It keeps its manifest only
        if those are the manifest's own."""
        blobs = tuple(
            self.find(blob, diff_id) or blob
            for blob, diff_id in zip(image.layers, image.diff_ids, strict=True)
        )
        size = sum(self._layers.size(diff_id) for diff_id in image.diff_ids)
        return replace(
            image, layers=blobs, size_bytes=size, manifest=image.manifest if blobs == image.layers else ""
        )


async def run_all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Side by side; the first failure ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failures:
        raise _first(failures) from None


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell: our own errors before others, a refusal before what follows from it."""
    flat = [_first(f) if isinstance(f, BaseExceptionGroup) else f for f in failures.exceptions]
    return min(flat, key=lambda f: (not isinstance(f, Unauthorized), not isinstance(f, InsulaError)))
