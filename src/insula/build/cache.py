"""The layer cache: images that were made by the same step on the same image.  Async only to restore one.

Nothing is kept for it but the images themselves.  A step is known by what history says of it: instruction,
arguments and, of what is copied, a digest.
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.images.images import Images
from insula.model.image import Image, ImageConfig


class Cache:
    """`sources` are `--cache-from`'s images, which alone count then, as in Docker; None: it was not said."""

    def __init__(self, images: Images, sources: Sequence[Image] | None = None) -> None:
        self._images = images
        self._sources = sources

    async def find(self, parent: Image | None, config: ImageConfig, created_by: str) -> Image | None:
        """The newest image that this step has made of `parent` before, or one restored from a source."""
        depth = len(parent.history) if parent is not None else 0
        if self._sources is not None:
            return await self._restored(self._sources, parent, config, created_by)
        for image in self._images.list():
            if image.parent != (parent.id if parent is not None else "") or len(image.history) != depth + 1:
                continue
            if image.history[-1].created_by == created_by and image.config == config:
                return image
        return None

    async def _restored(
        self, sources: Sequence[Image], parent: Image | None, config: ImageConfig, created_by: str
    ) -> Image | None:
        depth = len(parent.history) if parent is not None else 0
        for source in sources:
            if len(source.history) <= depth or not _continues(source, parent):
                continue
            if source.history[depth].created_by == created_by:
                return await self._images.restore(source, depth + 1, parent=parent, config=config)
        return None


def _continues(source: Image, parent: Image | None) -> bool:
    """Whether `source` was made from `parent`."""
    if parent is None:
        return True
    entries = len(parent.history)
    return (
        source.platform == parent.platform
        and source.history[:entries] == parent.history
        and source.diff_ids[: len(parent.diff_ids)] == parent.diff_ids
    )
