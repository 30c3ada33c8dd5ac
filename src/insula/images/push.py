"""Pushing: layers that the registry lacks, side by side, then the configuration, then the manifest.  Async.

An image that was pulled is pushed with the manifest it came with, so its digest stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from insula.errors import CorruptData, Failure, NotFound
from insula.images.catalog import Catalog
from insula.images.content import ContentStore
from insula.images.records import digest_of
from insula.images.registry.blobs import in_thread
from insula.images.registry.client import Registries, Repository
from insula.images.registry.endpoints import find_endpoints
from insula.images.registry.manifests import distinct, make_manifest, parse_manifest
from insula.images.registry.transport import Interrupted, Unreachable
from insula.images.unpacking import run_all
from insula.model.credentials import Credentials
from insula.model.ids import short_id
from insula.model.image import Descriptor, Image
from insula.model.progress import Progress, no_progress
from insula.model.reference import Reference

_PIECE = 1 << 18
_UPLOADS = 5  # docker's max-concurrent-uploads
_ATTEMPTS = 5
_log = logging.getLogger(__name__)


class Pusher:
    def __init__(
        self,
        registries: Registries,
        catalog: Catalog,
        content: ContentStore,
        *,
        insecure: Sequence[str],
        retry_s: float = 0.5,
    ) -> None:
        self._registries = registries
        self._catalog = catalog
        self._content = content
        self._insecure = tuple(insecure)
        self._retry_s = retry_s
        self._uploads = asyncio.Semaphore(_UPLOADS)

    async def push(
        self,
        image: Image,
        reference: Reference,
        *,
        credentials: Credentials | None,
        progress: Progress,
    ) -> tuple[str, int]:
        """Digest and length of the manifest on the registry.  `reference` has a tag.

        Raises Unauthorized, Forbidden, RegistryFailed; NotFound if a blob is not stored any more.
        """
        endpoint = find_endpoints(reference, insecure=self._insecure)[-1]
        config = Descriptor(media_type="", digest=image.id, size=self._content.size(image.id))
        media_type, data = await self._manifest(image, config)
        layers = dict(zip((layer.digest for layer in image.layers), image.diff_ids, strict=True))
        for diff_id in layers.values():
            progress("Preparing", id=short_id(diff_id))
        async with self._registries.opened():
            repository = self._registries.repository(endpoint, reference, credentials)
            await run_all(
                [
                    self._push_blob(repository, blob, short_id(layers[blob.digest]), progress)
                    for blob in distinct(image.layers)
                ]
            )
            await self._push_blob(repository, config, "", no_progress)
            given = await repository.put_manifest(reference.identifier, media_type, data)
        digest = digest_of(data)
        if given and given != digest:
            raise CorruptData(f"{reference}: the registry stored {given} where {digest} was sent")
        return digest, len(data)

    async def _manifest(self, image: Image, config: Descriptor) -> tuple[str, bytes]:
        """The one that the image came with if it is still here and still says the same."""
        if image.manifest and self._content.has(image.manifest):
            data = await in_thread(self._content.read, image.manifest)
            return parse_manifest(data).media_type, data
        return make_manifest(image, config.size)

    async def _push_blob(
        self, repository: Repository, blob: Descriptor, about: str, progress: Progress
    ) -> None:
        if self._uploads.locked():
            progress("Waiting", id=about)
        async with self._uploads:
            for attempt in range(_ATTEMPTS):
                try:
                    await self._try_blob(repository, blob, about, progress)
                    return
                except Interrupted as error:
                    if attempt == _ATTEMPTS - 1 or isinstance(error, Unreachable):
                        raise
                    _log.info("push of %s: %s; trying again", blob.digest, error)
                    await asyncio.sleep(self._retry_s * 2**attempt)

    async def _try_blob(
        self, repository: Repository, blob: Descriptor, about: str, progress: Progress
    ) -> None:
        if await repository.has_blob(blob.digest):
            progress("Layer already exists", id=about)
            return
        location: str | None = ""
        known = self._catalog.repositories_with(blob.digest, repository.reference.domain)
        for source in known:
            if source == repository.reference.path:
                continue
            location = await repository.start_upload(blob.digest, source)
            if location is None:
                progress(f"Mounted from {source}", id=about)
                return
            break  # the registry opened an upload instead
        if not location:
            location = await repository.start_upload()
        if location is None:
            raise Failure(f"{repository.endpoint.key}: answered an upload as if it were a mount")
        size = self._content.size(blob.digest)
        if size != blob.size:
            raise CorruptData(f"blob {blob.digest}: {size} bytes on the disk, the image says {blob.size}")
        await repository.send_upload(location, blob.digest, size, lambda: self._body(blob, about, progress))
        progress("Pushed", id=about)

    async def _body(self, blob: Descriptor, about: str, progress: Progress) -> AsyncIterator[bytes]:
        """Told before it is sent: a piece is asked for when the one before was taken."""
        sent = 0
        try:
            file = await in_thread(open, self._content.path(blob.digest), "rb")
        except FileNotFoundError:
            raise NotFound(
                f"blob {blob.digest} is not stored any more", hint="pull the image again"
            ) from None
        try:
            while piece := await in_thread(file.read, _PIECE):
                sent += len(piece)
                progress("Pushing", id=about, current=sent, total=blob.size)
                yield piece
        finally:
            file.close()
