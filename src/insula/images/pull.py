"""Pulling: a name to a manifest, its layers down and unpacked side by side, the row written last.  Async.

Every layer is a directory of its own, so a layer is unpacked as soon as it is down.  Two pulls that want
the same layer share the work.  Not for names that are already here (`catalog`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from insula.errors import CorruptData, InsulaError, NotFound
from insula.images.content import ContentStore
from insula.images.records import (
    MAX_DOCUMENT,
    check_document,
    digest_of,
    read_diff_ids,
    read_image,
    read_json,
    take,
)
from insula.images.registry.blobs import Download, in_thread
from insula.images.registry.client import Fetched, Registries, Repository
from insula.images.registry.endpoints import find_endpoints
from insula.images.registry.manifests import (
    Index,
    Manifest,
    choose,
    host_platform,
    parse_manifest,
    platform_rank,
    show_platform,
)
from insula.images.registry.transport import Interrupted, Unreachable
from insula.images.transfers import SharedWork
from insula.images.unpacking import Unpacking, run_all
from insula.model.credentials import Credentials
from insula.model.ids import short_id
from insula.model.image import Descriptor, Image, Offer, Platform
from insula.model.progress import Progress
from insula.model.reference import Reference

T = TypeVar("T")

_NESTED = 3  # indexes of indexes
_ATTEMPTS = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a name means on a registry.  `digest` is that of what the name points to, an index perhaps."""

    sources: tuple[Repository, ...]
    digest: str
    manifest: Manifest
    manifest_data: bytes


class Puller:
    def __init__(
        self,
        registries: Registries,
        content: ContentStore,
        unpacking: Unpacking,
        *,
        mirrors: Sequence[str],
        insecure: Sequence[str],
        max_downloads: int,
        retry_s: float = 0.5,
    ) -> None:
        self._registries = registries
        self._content = content
        self._unpacking = unpacking
        self._mirrors = tuple(mirrors)
        self._insecure = tuple(insecure)
        self._retry_s = retry_s
        self._downloads = asyncio.Semaphore(max_downloads)
        self._work: SharedWork[None] = SharedWork()

    async def pull(
        self,
        reference: Reference,
        *,
        platform: Platform | None,
        credentials: Credentials | None,
        progress: Progress,
    ) -> tuple[Image, str]:
        """An image that is complete on the disk but not in the catalog yet, and the digest that its name
        has on the registry.  The caller holds `Upkeep.busy`."""
        async with self._registries.opened():
            resolved = await self._resolve(reference, platform or host_platform(), credentials)
            manifest = resolved.manifest
            await self._download(resolved.sources, manifest.config)
            config = await in_thread(self._content.read, manifest.config.digest)
            if platform is not None:
                _check_platform(config, platform, reference)
            image = read_image(config, manifest.layers, manifest=digest_of(resolved.manifest_data))
            image = await self._fetch_layers(image, resolved.sources, progress)
        if image.manifest:
            await in_thread(self._content.put, resolved.manifest_data)
        return image, resolved.digest

    async def tags(self, reference: Reference, credentials: Credentials | None) -> tuple[str, ...]:
        """Every tag of a repository, as the first that answers has them."""
        async with self._registries.opened():
            return (await self._ask(reference, credentials, Repository.tags))[1]

    async def look(self, reference: Reference, credentials: Credentials | None) -> Offer:
        """What the first that answers has under a name; nothing is kept."""

        async def ask(repository: Repository) -> tuple[Fetched, str]:
            return await self._fetch(repository, reference.identifier)

        async with self._registries.opened():
            (repository, *_), (fetched, digest) = await self._ask(reference, credentials, ask)
            document = parse_manifest(fetched.data, fetched.media_type)
            if isinstance(document, Index):
                known = [entry.platform for entry in document.entries if entry.platform is not None]
                platforms = tuple(platform for platform in known if platform.os != "unknown")  # attestations
            else:
                platforms = (await self._read_platform(repository, document.config),)
            size = len(fetched.data)
            descriptor = Descriptor(media_type=document.media_type, digest=digest, size=size)
            return Offer(descriptor=descriptor, platforms=platforms)

    async def _read_platform(self, repository: Repository, blob: Descriptor) -> Platform:
        """Out of an image's configuration."""
        what = "image configuration"
        if blob.size > MAX_DOCUMENT:
            raise CorruptData(f"{what}: {blob.size} bytes is more than {MAX_DOCUMENT}")
        data = bytearray()
        async with repository.blob(blob.digest) as (_, pieces):
            async for piece in pieces:
                data += piece
                if len(data) > blob.size:
                    break
        document = read_json(check_document(bytes(data), blob.digest, what), what)
        return Platform(
            os=take(document, "os", str, "", what),
            architecture=take(document, "architecture", str, "", what),
            variant=take(document, "variant", str, "", what),
        )

    # names

    async def _resolve(
        self, reference: Reference, platform: Platform, credentials: Credentials | None
    ) -> Resolved:
        async def ask(repository: Repository) -> tuple[str, Manifest, bytes]:
            top, digest = await self._fetch(repository, reference.identifier)
            return digest, *(await self._descend(repository, top, platform))

        sources, (digest, manifest, data) = await self._ask(reference, credentials, ask)
        return Resolved(sources=sources, digest=digest, manifest=manifest, manifest_data=data)

    async def _ask(
        self,
        reference: Reference,
        credentials: Credentials | None,
        ask: Callable[[Repository], Awaitable[T]],
    ) -> tuple[tuple[Repository, ...], T]:
        """Mirrors first, as Docker: the one that answered with those behind it, and what it said."""
        endpoints = find_endpoints(reference, mirrors=self._mirrors, insecure=self._insecure)
        repositories = [self._registries.repository(e, reference, credentials) for e in endpoints]
        for position, repository in enumerate(repositories):
            try:
                return tuple(repositories[position:]), await ask(repository)
            except InsulaError as error:
                self._registries.forget(repository.endpoint)
                if position == len(repositories) - 1:
                    raise
                _log.warning("mirror %s: %s; trying the next", repository.endpoint.key, error)
        raise NotFound(f"manifest for {reference} not found: no endpoint")

    async def _fetch(self, repository: Repository, identifier: str) -> tuple[Fetched, str]:
        """A manifest whose digest was checked: against the name, or against what the registry says."""
        for attempt in range(_ATTEMPTS):
            try:
                fetched = await repository.manifest(identifier)
                break
            except Interrupted as error:
                if attempt == _ATTEMPTS - 1 or isinstance(error, Unreachable):
                    raise
                await asyncio.sleep(self._retry_s * 2**attempt)
        expected = identifier if ":" in identifier else fetched.digest
        if not expected:
            return fetched, digest_of(fetched.data)
        if expected.partition(":")[0] not in ("sha256", "sha384", "sha512"):
            raise CorruptData(f"manifest of {repository.reference}: unknown kind of digest {expected!r}")
        check_document(fetched.data, expected, f"manifest of {repository.reference}")
        return fetched, expected

    async def _descend(
        self, repository: Repository, fetched: Fetched, platform: Platform
    ) -> tuple[Manifest, bytes]:
        for _ in range(_NESTED):
            document = parse_manifest(fetched.data, fetched.media_type)
            if isinstance(document, Manifest):
                return document, fetched.data
            assert isinstance(document, Index)
            entry = choose(document, platform)
            if entry.size > MAX_DOCUMENT:
                raise CorruptData(f"manifest {entry.digest}: {entry.size} bytes is more than {MAX_DOCUMENT}")
            fetched, _digest = await self._fetch(repository, entry.digest)
        raise CorruptData(f"{repository.reference}: lists of lists of manifests, {_NESTED} deep")

    async def _download(self, sources: Sequence[Repository], blob: Descriptor) -> None:
        if blob.size > MAX_DOCUMENT:
            raise CorruptData(f"image configuration: {blob.size} bytes is more than {MAX_DOCUMENT}")
        await Download(sources, blob, self._content, retry_s=self._retry_s).run()

    # layers

    async def _fetch_layers(self, image: Image, sources: Sequence[Repository], progress: Progress) -> Image:
        """All layers, side by side; the first failure ends the others."""
        missing: dict[tuple[str, str], Descriptor] = {}
        for blob, diff_id in zip(image.layers, image.diff_ids, strict=True):
            if self._unpacking.find(blob, diff_id) is not None:
                progress("Already exists", id=short_id(blob.digest))
            elif (blob.digest, diff_id) not in missing:
                missing[blob.digest, diff_id] = blob
                progress("Pulling fs layer", id=short_id(blob.digest))
        await run_all(
            [self._fetch_layer(blob, diff_id, sources, progress) for (_, diff_id), blob in missing.items()]
        )
        return self._unpacking.settle(image)

    async def _fetch_layer(
        self, blob: Descriptor, diff_id: str, sources: Sequence[Repository], progress: Progress
    ) -> None:
        async def work(tell: Progress) -> None:
            async with self._registries.opened():
                await self._download_layer(blob, sources, tell)
            await self._unpacking.unpack(blob, diff_id, tell)
            tell("Pull complete", id=short_id(blob.digest))

        await self._work.run((blob.digest, diff_id), work, progress)

    async def _download_layer(self, blob: Descriptor, sources: Sequence[Repository], tell: Progress) -> None:
        about = short_id(blob.digest)
        if self._downloads.locked():
            tell("Waiting", id=about)
        async with self._downloads:
            await Download(
                sources,
                blob,
                self._content,
                on_bytes=lambda count: tell("Downloading", id=about, current=count, total=blob.size),
                on_check=lambda: tell("Verifying Checksum", id=about),
                retry_s=self._retry_s,
            ).run()
            tell("Download complete", id=about)


def _check_platform(config: bytes, wanted: Platform, reference: Reference) -> None:
    document = read_json(config, "image configuration")
    read_diff_ids(document)
    there = Platform(
        os=str(document.get("os") or "linux"),
        architecture=str(document.get("architecture") or ""),
        variant=str(document.get("variant") or ""),
    )
    if platform_rank(there, wanted) is None:
        raise NotFound(
            f"image with reference {reference} was found but does not match the specified platform: "
            f"wanted {show_platform(wanted)}, actual: {show_platform(there)}"
        )
