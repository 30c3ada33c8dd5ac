"""Images that come from and go to this machine: load, save, import, commit, bootstrap.  Async.

Each brings blobs into the content store (`archive`, `imports`, `bootstrap`), unpacks them, which checks
them, and writes the row last.  What a failure leaves is swept.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from insula.errors import InvalidReference, NoSuchImage
from insula.events import EventBus
from insula.images import archive
from insula.images.bootstrap import bootstrap
from insula.images.catalog import Catalog
from insula.images.content import ContentStore
from insula.images.imports import (
    EMPTY_LAYER,
    StoredLayer,
    cut_document,
    dump_document,
    make_committed,
    make_imported,
    scratch_document,
    store_layer,
)
from insula.images.records import read_image, read_json
from insula.images.registry.blobs import in_thread
from insula.images.registry.manifests import host_platform
from insula.images.unpacking import Unpacking
from insula.images.upkeep import Upkeep
from insula.model.image import HistoryEntry, Image, ImageConfig, Platform
from insula.model.progress import Progress, no_progress
from insula.model.reference import parse_reference


class LocalImages:
    def __init__(
        self,
        content: ContentStore,
        catalog: Catalog,
        unpacking: Unpacking,
        upkeep: Upkeep,
        events: EventBus,
    ) -> None:
        self._content = content
        self._catalog = catalog
        self._unpacking = unpacking
        self._upkeep = upkeep
        self._events = events

    @asynccontextmanager
    async def _adding(self) -> AsyncIterator[None]:
        """What was brought is swept if it does not become an image."""
        async with self._upkeep.busy():
            try:
                yield
            except BaseException:
                self._upkeep.want()
                raise

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """One tar, docker archive and OCI layout at once.  A repository's name saves all its tags.

        Raises NoSuchImage at once.
        """
        chosen: dict[str, list[str]] = {}
        for ref in refs:
            for image, tag in self._find_saved(ref):
                tags = chosen.setdefault(image.id, [])
                tags += [tag] if tag and tag not in tags else []
        found = [(self._catalog.find(image_id), tuple(tags)) for image_id, tags in chosen.items()]
        return self._save(found)

    async def _save(self, found: Sequence[tuple[Image, tuple[str, ...]]]) -> AsyncIterator[bytes]:
        async with self._upkeep.busy():
            async for piece in archive.save(self._content, found):
                yield piece
        for image, _ in found:
            self._events.publish("image", "save", image.id, name=image.id)

    def _find_saved(self, ref: str) -> list[tuple[Image, str]]:
        """Images and the tag to save each under."""
        try:
            reference = parse_reference(ref)
        except InvalidReference:
            return [(self._catalog.find(ref), "")]
        if not reference.tag and not reference.digest:
            every = [(image, tag) for image in self._catalog.all() for tag in image.tags]
            same = [(image, tag) for image, tag in every if parse_reference(tag).name == reference.name]
            if same:
                return same
        image = self._catalog.find(ref)
        name = str(reference.tagged())
        return [(image, name if name in image.tags else "")]

    async def load(self, data: AsyncIterator[bytes], progress: Progress = no_progress) -> tuple[Image, ...]:
        """Every image of an archive.  Raises CorruptData, InvalidRequest, DiskFull; then none is here."""
        async with self._adding():
            ready: list[tuple[Image, tuple[str, ...]]] = []
            for loaded in await archive.load(self._content, data, progress):
                image = read_image(loaded.config, loaded.layers, manifest=loaded.manifest)
                ready.append((await self._unpacking.unpack_all(image, progress), loaded.tags))
            for image, tags in ready:
                self._tell_renamed(image, tags, progress)
            # said with the names that came with them, not with all that they have here
            images = [replace(self._catalog.add(image, tags=tags), tags=tags) for image, tags in ready]
        for image in images:
            self._events.publish("image", "load", image.id, name=image.id)
        return tuple(images)

    def _tell_renamed(self, image: Image, tags: Sequence[str], progress: Progress) -> None:
        """In moby's words."""
        for tag in tags:
            with contextlib.suppress(NoSuchImage):
                old = self._catalog.find(tag)
                if old.id != image.id:
                    progress(
                        f"The image {tag} already exists, renaming the old one with "
                        f"ID {old.id} to empty string"
                    )

    async def import_(
        self,
        data: AsyncIterator[bytes],
        *,
        ref: str | None,
        message: str = "",
        changes: Sequence[str] = (),
        platform: Platform,
        progress: Progress = no_progress,
    ) -> Image:
        """An image of one layer from a root file system's tar, packed or not."""
        tag = _check_tag(ref)
        async with self._adding():
            layer = await store_layer(self._content, data, progress)
            config = make_imported(layer, platform=platform, changes=changes, message=message, created=_now())
            image = await self._add(config, (layer,), tag, progress)
        self._events.publish("image", "import", image.id, name=tag or image.id)
        return image

    async def commit(
        self,
        data: AsyncIterator[bytes] | None,
        *,
        base: Image | None,
        config: ImageConfig,
        author: str,
        message: str,
        ref: str | None,
        created_by: str = "",
        created: str = "",
        container: str = "",
        container_image: str = "",
        merged: Sequence[HistoryEntry] = (),
        progress: Progress = no_progress,
    ) -> Image:
        """`base` (None: nothing) with one more layer, a plain tar of changes, if there is any."""
        tag = _check_tag(ref)
        async with self._adding():
            layer = None
            if data is not None:
                layer = await store_layer(self._content, data, progress, status="Committing")
                if layer.diff_id == EMPTY_LAYER:
                    layer = None
                    self._upkeep.want()
            document = scratch_document(host_platform())
            if base is not None:
                raw = await in_thread(self._content.read, base.id)
                document = read_json(raw, f"configuration of image {base.id}")
            made = make_committed(
                document,
                layer,
                config=config,
                author=author,
                message=message,
                created=created or _now(),
                created_by=created_by,
                container=container,
                container_image=container_image,
                merged=merged,
            )
            layers = [
                StoredLayer(blob=blob, diff_id=diff_id)
                for blob, diff_id in (zip(base.layers, base.diff_ids, strict=True) if base else ())
            ]
            layers += [layer] if layer is not None else []
            return await self._add(made, layers, tag, progress, parent=base.id if base else "")

    async def restore(
        self, source: Image, entries: int, *, parent: Image | None, config: ImageConfig
    ) -> Image:
        """The image that `source` was after the first `entries` of its history; itself if that is all."""
        if entries == len(source.history) and source.config == config:
            return source
        async with self._adding():
            raw = await in_thread(self._content.read, source.id)
            document = cut_document(
                read_json(raw, f"configuration of image {source.id}"), entries, config=config
            )
            count = len(document["rootfs"]["diff_ids"])
            layers = [
                StoredLayer(blob=blob, diff_id=diff_id)
                for blob, diff_id in zip(source.layers[:count], source.diff_ids[:count], strict=True)
            ]
            made = dump_document(document)
            return await self._add(made, layers, "", no_progress, parent=parent.id if parent else "")

    async def bootstrap(self, name: str, progress: Progress = no_progress) -> Image:
        """An image of the host's distribution, from its packages, tagged with `name`."""
        tag = _check_tag(name)
        async with self._adding():
            made = await bootstrap(self._content, f"{self._content.root}/tmp", name, progress)
            image = await self._add(made.config, (made.layer,), tag, progress)
        self._events.publish("image", "import", image.id, name=tag)
        return image

    async def _add(
        self,
        config: bytes,
        layers: Sequence[StoredLayer],
        tag: str,
        progress: Progress,
        parent: str = "",
    ) -> Image:
        await in_thread(self._content.put, config)
        image = read_image(config, [layer.blob for layer in layers])
        image = await self._unpacking.unpack_all(image, progress)
        image = self._catalog.add(replace(image, parent=parent), tags=(tag,) if tag else ())
        if tag:
            self._events.publish("image", "tag", image.id, name=tag)
        return image


def _check_tag(ref: str | None) -> str:
    """A familiar name with a tag, "" for none.  Raises InvalidReference, before any work."""
    if not ref:
        return ""
    reference = parse_reference(ref)
    if reference.digest:
        raise InvalidReference("cannot import digest reference")
    return str(reference.tagged())


def _now() -> str:
    """RFC 3339, as Docker's configurations have it."""
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat().replace("+00:00", "Z")
