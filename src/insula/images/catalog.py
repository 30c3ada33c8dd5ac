"""What images there are and what they are called: the store's rows, kept in memory too.  Synchronous.

Everything that changes an image's row goes through here, each change as one transaction: an image is in
the store only when all of it is on the disk.  Not for files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import replace

from insula.errors import InvalidReference, InvalidRequest, NoSuchImage
from insula.model.image import Descriptor, Image
from insula.model.reference import Reference, is_digest, is_identifier, parse_reference
from insula.store.store import Store

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


class Catalog:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._images: dict[str, Image] = {}
        self._tags: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        self._images = {image.id: _in_order(image) for image in self._store.images()}
        self._tags = self._known(self._store.tags())
        self._digests = self._known(self._store.digests())

    def _known(self, names: dict[str, str]) -> dict[str, str]:
        return {name: image_id for name, image_id in names.items() if image_id in self._images}

    def all(self) -> tuple[Image, ...]:
        """Newest first."""
        return tuple(sorted(self._images.values(), key=lambda image: image.created, reverse=True))

    def get(self, image_id: str) -> Image | None:
        return self._images.get(image_id)

    def named(self, reference: Reference) -> Image | None:
        """By digest if the reference has one, else by its tag, `latest` if it has none."""
        full = reference.tagged()
        names = self._digests if full.digest else self._tags
        image_id = names.get(str(full))
        return None if image_id is None else self._images[image_id]

    def find(self, ref: str) -> Image:
        """By name, id, or the beginning of an id.  Raises NoSuchImage, InvalidRequest if several begin so,
        InvalidReference if it is no reference at all."""
        bare = ref.removeprefix("sha256:")
        if is_identifier(bare):
            image = self._images.get(f"sha256:{bare}")
            if image is None:
                raise NoSuchImage(ref)
            return image
        shown, wrong = ref, None
        try:
            reference = parse_reference(ref)
        except InvalidReference as error:
            wrong = error
        else:
            shown = str(reference.tagged())
            if (image := self.named(reference)) is not None:
                return image
        if (match := _PREFIX.fullmatch(ref)) is not None:
            begins = [i for i in self._images if i.startswith(f"sha256:{match[1]}")]
            if len(begins) > 1:
                raise InvalidRequest(
                    f"image id prefix {ref} is ambiguous: {len(begins)} images begin so",
                    hint="give more digits",
                )
            if begins:
                return self._images[begins[0]]
        elif wrong is not None:
            raise wrong
        raise NoSuchImage(shown)

    def is_id(self, ref: str, image: Image) -> bool:
        """Does `ref` mean this image by its id rather than by a name?"""
        if ref in (image.id, image.id.removeprefix("sha256:")):
            return True
        try:
            by_name = self.named(parse_reference(ref))
        except InvalidReference:
            return True
        return by_name is None

    def add(self, image: Image, *, tags: Iterable[str] = (), digest: str = "") -> Image:
        """Store an image under new names too; what it was called stays.  Returns it with all its names.

        If it is there already with the same blobs, its record stays but for what that did not know.
        """
        old = self._images.get(image.id)
        if old is not None and old.layers == image.layers:
            image = replace(old, manifest=old.manifest or image.manifest, parent=old.parent or image.parent)
        tags = tuple(tags)
        if tags:
            image = replace(image, tagged_ns=time.time_ns())
        with self._store.transaction(durable=True):
            self._store.put_image(image)
            for name in tags:
                self._store.set_tag(name, image.id)
            if digest:
                self._store.set_digest(digest, image.id)
        self.reload()
        return self._images[image.id]

    def tag(self, name: str, image_id: str) -> None:
        with self._store.transaction():
            self._store.set_tag(name, image_id)
            self._store.put_image(replace(self._images[image_id], tagged_ns=time.time_ns()))
        self.reload()

    def set_digest(self, name: str, image_id: str) -> None:
        self._store.set_digest(name, image_id)
        self.reload()

    def untag(self, names: Iterable[str]) -> None:
        """Tags and `name@digest`s, all or none."""
        with self._store.transaction(durable=True):
            for name in names:
                if "@" in name:
                    self._store.delete_digest(name)
                else:
                    self._store.delete_tag(name)
        self.reload()

    def delete(self, image_id: str) -> None:
        self._store.delete_image(image_id)
        self.reload()

    def children(self, image_id: str) -> tuple[Image, ...]:
        return tuple(image for image in self._images.values() if image.parent == image_id)

    def needed(self) -> set[str]:
        """Digests of everything that an image is made of: blobs, layers, documents."""
        found: set[str] = set()
        for image in self._images.values():
            found.update((image.id, *image.diff_ids, *(layer.digest for layer in image.layers)))
            if is_digest(image.manifest):
                found.add(image.manifest)
        return found

    def blobs_of(self, diff_id: str) -> tuple[Descriptor, ...]:
        """Blobs that are known to unpack to this layer."""
        return tuple(
            blob
            for image in self._images.values()
            for blob, layer in zip(image.layers, image.diff_ids, strict=False)
            if layer == diff_id
        )

    def repositories_with(self, digest: str, domain: str) -> tuple[str, ...]:
        """Paths on a registry where a blob was pulled from or pushed to."""
        found: dict[str, None] = {}
        for name, image_id in self._digests.items():
            reference = parse_reference(name)
            image = self._images[image_id]
            if reference.domain == domain and any(layer.digest == digest for layer in image.layers):
                found[reference.path] = None
        return tuple(found)


def _in_order(image: Image) -> Image:
    """Its names by the whole of them, as Docker has them: compose takes the first for the image's own."""
    if len(image.tags) <= 1:
        return image
    return replace(image, tags=tuple(sorted(image.tags, key=lambda tag: parse_reference(tag).full)))
