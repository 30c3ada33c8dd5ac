"""Images as one tar: `docker save` and `docker load`.  Async.

What is saved is both an OCI image layout (oci-layout, index.json, blobs/sha256) and a docker archive
(manifest.json, repositories) over the same blobs, as Docker 25 and later write.  What is loaded may be
either, of any age that has a manifest.json, packed or not, its members in any order.

`load` puts blobs into the content store and returns what an image's record needs; unpacking layers and
writing records is the caller's.  When it raises, nothing was put there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.errors import CorruptData, InvalidReference, InvalidRequest
from insula.images.content import ContentStore, digest_of
from insula.images.records import (
    MAX_DOCUMENT,
    created_ns,
    read_descriptor,
    read_diff_ids,
    read_json,
    take,
    take_strings,
)
from insula.images.registry.manifests import (
    OCI_MANIFEST,
    Index,
    Manifest,
    host_platform,
    make_manifest,
    parse_manifest,
    platform_rank,
)
from insula.images.staging import Staged, Staging
from insula.images.streams import with_stream
from insula.model.image import Descriptor, Image
from insula.model.progress import Progress, no_progress
from insula.model.reference import parse_reference
from insula.system import tar
from insula.system.decompress import Source, detect
from insula.system.files import remove_tree

_PIECE = 1 << 20
_BLOBS = "blobs/sha256"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PACKED = {"": "", "gzip": "+gzip", "zstd": "+zstd"}
_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"
_MAX_DEPTH = 4
_PROGRESS_STEP = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """Its blobs are in the content store.  `manifest` is a manifest's digest, or "" if there was none."""

    config: bytes
    layers: tuple[Descriptor, ...]
    tags: tuple[str, ...]
    manifest: str = ""


def _member(name: str, data: bytes) -> bytes:
    head = tar.header(tar.Member(name=name.encode(), mode=0o644, size=len(data)))
    return head + data + tar.padding(len(data))


async def save(
    content: ContentStore, images: Sequence[tuple[Image, Sequence[str]]]
) -> AsyncGenerator[bytes, None]:
    """Images, each with the tags to save it under.  Raises NotFound for a blob that is not stored."""
    documents, index, entries = _describe(content, images)
    blobs = {d: content.size(d) for image, _ in images for d in (image.id, *(x.digest for x in image.layers))}
    for directory in ("blobs/", f"{_BLOBS}/"):
        yield tar.header(tar.Member(name=directory.encode(), kind=tar.DIRECTORY, mode=0o755))
    # a blob is as old as the first image that has it, as Docker's: the same images make the same archive
    times_ns = {
        d: created_ns(image.created)
        for image, _ in reversed(images)
        for d in (image.id, *(x.digest for x in image.layers))
    }
    for digest in sorted({*blobs, *documents}):
        if digest in documents:
            yield _member(f"{_BLOBS}/{digest[7:]}", documents[digest])
            continue
        member = tar.Member(
            name=f"{_BLOBS}/{digest[7:]}".encode(), size=blobs[digest], mtime_ns=times_ns[digest]
        )
        yield tar.header(member)
        with open(content.path(digest), "rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece
        yield tar.padding(blobs[digest])
    yield _member("index.json", json.dumps(index).encode())
    yield _member("manifest.json", json.dumps(entries).encode())
    yield _member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    repositories: dict[str, dict[str, str]] = {}
    for image, tags in images:
        for reference in map(parse_reference, tags):
            top = image.layers[-1].digest[7:] if image.layers else ""
            repositories.setdefault(reference.familiar_name, {})[reference.tag] = top
    if repositories:
        yield _member("repositories", json.dumps(repositories).encode())
    yield tar.END


def _describe(
    content: ContentStore, images: Sequence[tuple[Image, Sequence[str]]]
) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, Any]]]:
    """Manifests by digest, the OCI index, and docker's manifest.json."""
    documents: dict[str, bytes] = {}
    descriptors: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for image, tags in images:
        if image.manifest and content.has(image.manifest):
            raw = content.read(image.manifest)
            media_type = read_json(raw, "manifest").get("mediaType", OCI_MANIFEST)
        else:
            media_type, raw = make_manifest(image, content.size(image.id))
        digest = digest_of(raw)
        documents[digest] = raw
        described = {"mediaType": media_type, "digest": digest, "size": len(raw)}
        for reference in map(parse_reference, tags):
            names = {_NAME: f"{reference.name}:{reference.tag}", _REF_NAME: reference.tag}
            descriptors.append({**described, "annotations": names})
        if not tags:
            descriptors.append(described)
        entries.append(
            {
                "Config": f"{_BLOBS}/{image.id[7:]}",
                "RepoTags": [str(parse_reference(tag)) for tag in tags] or None,
                "Layers": [f"{_BLOBS}/{layer.digest[7:]}" for layer in image.layers],
            }
        )
    return documents, {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": descriptors}, entries


async def load(
    content: ContentStore, archive: AsyncIterator[bytes], progress: Progress = no_progress
) -> tuple[LoadedImage, ...]:
    """Raises CorruptData for a damaged archive, InvalidRequest for one that is no image, DiskFull."""
    loop = asyncio.get_running_loop()
    count = told = 0

    def on_bytes(fresh: int) -> None:
        nonlocal count, told
        count += fresh
        if count - told >= _PROGRESS_STEP:
            told = count
            loop.call_soon_threadsafe(lambda current: progress("Loading", current=current), count)

    directory = content.ingest_path()

    def work(source: Source) -> tuple[LoadedImage, ...]:
        os.mkdir(directory, 0o700)
        try:
            staging = Staging(directory, on_bytes)
            staging.fill(source)
            return _Loading(content, staging).run()
        finally:
            remove_tree(directory)

    return await with_stream(archive, work)


class _Loading:
    """Decides first what belongs to the images, then moves exactly that into the store."""

    def __init__(self, content: ContentStore, staging: Staging) -> None:
        self._content = content
        self._staging = staging
        self._adopted: dict[str, Staged | bytes] = {}

    def run(self) -> tuple[LoadedImage, ...]:
        if (listed := self._staging.find("manifest.json")) is not None:
            found = self._docker(_read_list(listed.read(MAX_DOCUMENT)))
        elif (index := self._staging.find("index.json")) is not None:
            found = self._oci(read_json(index.read(MAX_DOCUMENT), "index.json"), 0)
        else:
            raise InvalidRequest(
                "the archive is not an image: it has neither manifest.json nor index.json",
                hint="a root file system is taken by `insula import`",
            )
        if not found:
            raise InvalidRequest("the archive has no image for this machine")
        for digest, staged in self._adopted.items():
            if self._content.has(digest):
                continue
            if isinstance(staged, bytes):
                self._content.put(staged)
            else:
                self._content.adopt(staged.path, digest)
        return tuple(found)

    def _docker(self, entries: Sequence[Mapping[str, Any]]) -> list[LoadedImage]:
        manifests = self._manifests_by_config()
        found = []
        for entry in entries:
            config_file = self._staging.need(take(entry, "Config", str, "", "manifest.json"))
            config = config_file.read(MAX_DOCUMENT)
            diff_ids = read_diff_ids(read_json(config, "image configuration"))
            names = take_strings(entry, "Layers", "manifest.json")
            if len(names) != len(diff_ids):
                raise CorruptData(
                    f"layers from manifest don't match image configuration: {len(names)} and {len(diff_ids)}"
                )
            layers = tuple(self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True))
            self._adopted[config_file.digest] = config_file
            manifest = manifests.get((config_file.digest, tuple(layer.digest for layer in layers)))
            if manifest is not None:
                self._adopted[manifest.digest] = manifest
            found.append(
                LoadedImage(
                    config=config,
                    layers=layers,
                    tags=_tags(take_strings(entry, "RepoTags", "manifest.json")),
                    manifest=manifest.digest if manifest is not None else "",
                )
            )
        return found

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        staged = self._staging.need(name)
        with open(staged.path, "rb") as file:
            kind = detect(file.read(8))
        if kind not in _PACKED:
            raise InvalidRequest(f"the archive has a layer packed with {kind}: only gzip and zstd can be")
        if not kind and staged.digest != diff_id:
            raise CorruptData(f"layer {name}: its digest is {staged.digest}, the image says {diff_id}")
        self._adopted[staged.digest] = staged
        return Descriptor(media_type=_LAYER + _PACKED[kind], digest=staged.digest, size=staged.size)

    def _manifests_by_config(self) -> dict[tuple[str, tuple[str, ...]], Staged]:
        """The OCI half of an archive that has both: it keeps the image's manifest, and so its digest."""
        index = self._staging.find("index.json")
        if index is None:
            return {}
        found = {}
        document = read_json(index.read(MAX_DOCUMENT), "index.json")
        for raw in take(document, "manifests", list, [], "index.json"):
            descriptor = read_descriptor(raw, "index.json")
            staged = self._staging.find(f"{_BLOBS}/{descriptor.digest[7:]}")
            if staged is None or staged.digest != descriptor.digest:
                continue
            manifest = parse_manifest(staged.read(MAX_DOCUMENT), descriptor.media_type)
            if isinstance(manifest, Manifest):
                key = (manifest.config.digest, tuple(layer.digest for layer in manifest.layers))
                found[key] = staged
        return found

    def _oci(self, index: Mapping[str, Any], depth: int) -> list[LoadedImage]:
        found: dict[str, LoadedImage] = {}
        for raw in take(index, "manifests", list, [], "index.json"):
            descriptor = read_descriptor(raw, "index.json")
            tags = _annotated(take(raw, "annotations", dict, {}, "index.json"))
            if (loaded := self._oci_image(descriptor, tags, depth)) is not None:
                before = found.get(loaded.manifest)
                if before is not None:
                    both = tuple(dict.fromkeys((*before.tags, *loaded.tags)))
                    loaded = LoadedImage(
                        config=loaded.config, layers=loaded.layers, tags=both, manifest=loaded.manifest
                    )
                found[loaded.manifest] = loaded
        return list(found.values())

    def _oci_image(self, descriptor: Descriptor, tags: tuple[str, ...], depth: int) -> LoadedImage | None:
        if depth > _MAX_DEPTH:
            raise CorruptData("the archive has indexes in indexes without end")
        staged = self._blob(descriptor)
        manifest = parse_manifest(staged.read(MAX_DOCUMENT), descriptor.media_type)
        if isinstance(manifest, Index):
            chosen = self._choose(manifest)
            return self._oci_image(chosen, tags, depth + 1) if chosen is not None else None
        config = self._blob(manifest.config)
        for layer in (manifest.config, *manifest.layers):
            self._adopted[layer.digest] = self._blob(layer)
        self._adopted[staged.digest] = staged
        return LoadedImage(
            config=config.read(MAX_DOCUMENT), layers=manifest.layers, tags=tags, manifest=staged.digest
        )

    def _choose(self, index: Index) -> Descriptor | None:
        """The best for this machine of those that the archive really has: often one of several."""
        here = host_platform()
        ranked = []
        for at, entry in enumerate(index.entries):
            if self._staging.find(f"{_BLOBS}/{entry.manifest.digest[7:]}") is None:
                continue
            rank = platform_rank(entry.platform, here) if entry.platform is not None else 1000
            if rank is not None:
                ranked.append((rank, at, entry.manifest))
        return min(ranked)[2] if ranked else None

    def _blob(self, descriptor: Descriptor) -> Staged:
        name = descriptor.digest.replace(":", "/", 1)
        staged = self._staging.need(f"blobs/{name}")
        if staged.digest != descriptor.digest or staged.size != descriptor.size:
            raise CorruptData(
                f"blob {descriptor.digest} of the archive has digest {staged.digest} and {staged.size} bytes"
            )
        return staged


def _read_list(data: bytes) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"manifest.json is not JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CorruptData("manifest.json is not a list of objects")
    return entries


def _tags(untrusted_names: Sequence[str]) -> tuple[str, ...]:
    """Familiar names.  Raises CorruptData for what is no reference with a tag."""
    tags = []
    for name in untrusted_names:
        try:
            reference = parse_reference(name)
        except InvalidReference as error:
            raise CorruptData(f"the archive has a bad image name: {error.message}") from None
        if reference.digest:
            raise CorruptData(f"the archive has a bad image name: {name} is not a tag")
        tags.append(str(reference.tagged()))
    return tuple(tags)


def _annotated(annotations: Mapping[str, Any]) -> tuple[str, ...]:
    """containerd writes the full name; skopeo and buildah a name, or only a tag, which names nothing."""
    for key in (_NAME, _REF_NAME):
        value = annotations.get(key)
        if isinstance(value, str) and (key == _NAME or ":" in value or "/" in value):
            return _tags([value])
    return ()
