"""Images out of what is there: a root file system's tar (`import`), an instance's changes (`commit`).

`store_layer` takes a tar, packed or not, into the content store (async); `make_imported` and
`make_committed` make the configuration document around it (pure).  Unpacking the layer, which is what
checks that the tar is sound, and the record are the caller's.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.errors import CorruptData, DiskFull
from insula.images.changes import apply_changes
from insula.images.content import BlobWriter, ContentStore
from insula.images.healthcheck import dump_health
from insula.images.streams import with_stream
from insula.model.image import Descriptor, HistoryEntry, ImageConfig, Platform
from insula.model.progress import Progress, no_progress
from insula.system.decompress import PIECE, Source, decompressed, detect
from insula.system.tar import END

EMPTY_LAYER = "sha256:" + hashlib.sha256(END).hexdigest()
"""The digest of a layer in which nothing is."""

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_KEPT = {"": "", "gzip": "+gzip", "zstd": "+zstd"}
_PROGRESS_STEP = 4 << 20
_SPARE_BYTES = 64 << 20

# As unpacking has it: beyond this it is a bomb.
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer's blob, and the digest of its plain tar."""

    blob: Descriptor
    diff_id: str


async def store_layer(
    content: ContentStore,
    archive: AsyncIterator[bytes],
    progress: Progress = no_progress,
    *,
    status: str = "Importing",
) -> StoredLayer:
    """A tar as a layer's blob: plain, gzip and zstd are kept as they come, bzip2 and xz become plain.

    No data at all is an empty archive.  Raises CorruptData, DiskFull; then nothing is kept.
    """
    loop = asyncio.get_running_loop()

    def tell(current: int) -> None:
        loop.call_soon_threadsafe(lambda: progress(status, current=current))

    return await with_stream(archive, lambda source: _store(content, source, tell))


def _store(content: ContentStore, source: Source, tell: Callable[[int], None]) -> StoredLayer:
    free = os.statvfs(content.root)
    limit = free.f_bavail * free.f_frsize - _SPARE_BYTES
    with content.writer(None, None) as writer:
        start = source.read(PIECE) or b""
        while 0 < len(start) < 8 and (more := source.read(PIECE)):
            start += more
        start = start or END  # nothing at all is an image of nothing, as in Docker
        keeps = detect(start) in _KEPT
        tee = _Tee(source, start, writer if keeps else None)
        plain, kind = decompressed(tee)
        diff_id = hashlib.sha256() if kind else None  # a plain blob is its layer
        buffer = memoryview(bytearray(PIECE))
        count = told = 0
        while length := plain.readinto(buffer):
            if diff_id is not None:
                diff_id.update(buffer[:length])
            count += length
            if not keeps:
                writer.write(bytes(buffer[:length]))
            if count > _BOMB_BYTES and count > _BOMB_RATIO * tee.count:
                raise CorruptData(f"the archive is a decompression bomb: {tee.count} bytes became {count}")
            if count > limit:
                raise DiskFull(
                    f"the archive holds more than the {max(0, limit) >> 20} MiB that are free",
                    hint="free some space: insula system prune",
                )
            if count - told >= _PROGRESS_STEP:
                told = count
                tell(count)
        digest = writer.commit()
    tell(count)
    return StoredLayer(
        blob=Descriptor(
            media_type=_LAYER + (_KEPT[kind] if keeps else ""), digest=digest, size=content.size(digest)
        ),
        diff_id="sha256:" + diff_id.hexdigest() if diff_id is not None else digest,
    )


class _Tee:
    """What is read from it is written to the blob too."""

    def __init__(self, source: Source, start: bytes, writer: BlobWriter | None) -> None:
        self._source = source
        self._start = start
        self._writer = writer
        self.count = 0

    def read(self, size: int, /) -> bytes:
        data, self._start = (self._start, b"") if self._start else (self._source.read(size) or b"", b"")
        if self._writer is not None:
            self._writer.write(data)
        self.count += len(data)
        return data


def make_imported(
    layer: StoredLayer,
    *,
    platform: Platform,
    changes: Sequence[str],
    message: str,
    created: str,
    config: ImageConfig | None = None,
    created_by: str = "",
) -> bytes:
    """The configuration document of an image of one layer.  `created` is RFC 3339.  Raises InvalidRequest."""
    entry = HistoryEntry(created=created, comment=message, created_by=created_by)
    document: dict[str, Any] = {
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "created": created,
        **({"comment": message} if message else {}),
        "config": _config(apply_changes(config or ImageConfig(), changes), {}),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [_history(entry)],
    }
    return _dump(document)


def make_committed(
    base: Mapping[str, Any],
    layer: StoredLayer | None,
    *,
    config: ImageConfig,
    author: str,
    message: str,
    created: str,
    created_by: str = "",
    container: str = "",
    container_image: str = "",
    merged: Sequence[HistoryEntry] = (),
) -> bytes:
    """The configuration document of `base` (its document) with one more layer and `config` for its own.

    `layer` None: no file was changed, which history says.  Fields that insula has no word for stay as the
    base has them.  `merged`: the steps that the layer is made of, of which history knows without layers.
    Raises CorruptData.
    """
    document: dict[str, Any] = copy.deepcopy(dict(base))
    rootfs, history = document.get("rootfs"), document.get("history") or []
    if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids"), list):
        raise CorruptData("image configuration: rootfs has no diff_ids")
    entry = HistoryEntry(created=created, created_by=created_by, author=author, comment=message)
    document["config"] = _config(config, document.get("config") or {})
    added = [layer.diff_id] if layer is not None else []
    document["rootfs"] = {"type": "layers", "diff_ids": [*rootfs["diff_ids"], *added]}
    history += [{**_history(one), "empty_layer": True} for one in merged]
    document["history"] = [*history, {**_history(entry), **({} if added else {"empty_layer": True})}]
    document["created"] = created
    for key, value in (("author", author), ("comment", message)):
        document.pop(key, None)
        if value:
            document[key] = value
    for key in ("container", "container_config", "docker_version", "id", "parent"):  # of the base's making
        document.pop(key, None)
    if container:  # as dockerd does; the oldest clients ask for it
        document["container"] = container
        document["container_config"] = {"Image": container_image, **document["config"]}
    return _dump(document)


def cut_document(base: Mapping[str, Any], entries: int, *, config: ImageConfig) -> dict[str, Any]:
    """An image's document as it was after the first `entries` of its history, with `config` for its own."""
    document: dict[str, Any] = copy.deepcopy(dict(base))
    history = list(document.get("history") or [])[:entries]
    layers = sum(not entry.get("empty_layer") for entry in history)
    document["history"] = history
    document["rootfs"] = {"type": "layers", "diff_ids": list(base["rootfs"]["diff_ids"])[:layers]}
    document["config"] = _config(config, {})
    if history and history[-1].get("created"):
        document["created"] = history[-1]["created"]
    return document


def dump_document(document: Mapping[str, Any]) -> bytes:
    """As it is stored and hashed."""
    return _dump(document)


def scratch_document(platform: Platform) -> dict[str, Any]:
    """What an image begins with that is made from nothing."""
    return {
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }


def _config(config: ImageConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """`config` over what the base has; empty values are left out, as Docker does."""
    ours: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.command),
        "Volumes": {volume: {} for volume in config.volumes},
        "WorkingDir": config.working_dir,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
        "Shell": list(config.shell),
        "OnBuild": list(config.on_build),
    }
    if config.health is not None:
        ours["Healthcheck"] = dump_health(config.health)
    kept = {key: value for key, value in base.items() if key not in ours}
    return {**kept, **{key: value for key, value in ours.items() if value}}


def _history(entry: HistoryEntry) -> dict[str, Any]:
    fields = {
        "created": entry.created,
        "created_by": entry.created_by,
        "author": entry.author,
        "comment": entry.comment,
    }
    return {key: value for key, value in fields.items() if value}


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
