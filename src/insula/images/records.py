"""An image's records: its OCI configuration document read into model types, and what removal reports.  Pure.

Every document read here came from outside (a registry, an archive): sizes, counts and types are checked.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from insula.errors import CorruptData, InvalidReference, InvalidRequest
from insula.images.healthcheck import read_health
from insula.model.image import Descriptor, HistoryEntry, Image, ImageConfig, Platform
from insula.model.reference import check_digest

MAX_DOCUMENT = 4 << 20  # bytes of a manifest or configuration; distribution's own limit for a manifest
MAX_LAYERS = 125  # moby's maxDepth: overlayfs takes not many more in one mount

_T = TypeVar("_T")
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """One line of `docker rmi`: exactly one of the two is set."""

    untagged: str = ""
    deleted: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Who uses an image.  `holder` is an instance's full id."""

    holder: str
    running: bool = False


InUse = Callable[[str], Use | str | None]  # by image id; a plain id of an instance is one that is stopped


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def check_document(data: bytes, digest: str, what: str) -> bytes:
    """`data`, which must hash to `digest`.  Raises CorruptData."""
    found = digest_of(data, digest.partition(":")[0])
    if found != digest:
        raise CorruptData(f"{what} does not match its digest: expected {digest}, received {found}")
    return data


def read_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of at most MAX_DOCUMENT bytes.  Raises CorruptData."""
    if len(data) > MAX_DOCUMENT:
        raise CorruptData(f"{what} is larger than {MAX_DOCUMENT} bytes")
    try:
        document = json.loads(data)
        if _HALF_ESCAPED.search(data):
            document = _without_halves(document)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CorruptData(f"{what} is not a JSON object")
    return document


def _without_halves(value: object) -> object:
    """Half a surrogate pair is no text, and could not be written down again; Go reads it as U+FFFD."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_halves(each) for each in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(each) for key, each in value.items()}
    return value


def take(document: Mapping[str, Any], key: str, kind: type[_T], default: _T, what: str) -> _T:
    """The value of `key`, which must be of `kind`; null and absent are `default`.  Raises CorruptData."""
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CorruptData(f"{what}: {key} is not of type {kind.__name__}")
    return value


def take_strings(document: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    items = take(document, key, list, [], what)
    if not all(isinstance(item, str) for item in items):
        raise CorruptData(f"{what}: {key} holds something that is not a string")
    return tuple(items)


def read_descriptor(document: Any, what: str) -> Descriptor:
    """An OCI descriptor.  Raises CorruptData for a digest that is none or a size that cannot be."""
    if not isinstance(document, dict):
        raise CorruptData(f"{what} is not a JSON object")
    size = take(document, "size", int, -1, what)
    if not 0 <= size < 1 << 50:
        raise CorruptData(f"{what}: impossible size {size}")
    try:
        digest = check_digest(take(document, "digest", str, "", what))
    except InvalidReference as error:
        raise CorruptData(f"{what}: {error.message}") from None
    return Descriptor(media_type=take(document, "mediaType", str, "", what), digest=digest, size=size)


def _read_image_config(document: Mapping[str, Any]) -> ImageConfig:
    what = "image configuration: config"
    labels = take(document, "Labels", dict, {}, what)
    if not all(isinstance(value, str) for value in labels.values()):
        raise CorruptData(f"{what}: Labels holds something that is not a string")
    return ImageConfig(
        command=take_strings(document, "Cmd", what),
        entrypoint=take_strings(document, "Entrypoint", what),
        env=take_strings(document, "Env", what),
        user=take(document, "User", str, "", what),
        working_dir=take(document, "WorkingDir", str, "", what),
        labels=labels,
        exposed_ports=tuple(sorted(take(document, "ExposedPorts", dict, {}, what))),
        volumes=tuple(sorted(take(document, "Volumes", dict, {}, what))),
        stop_signal=take(document, "StopSignal", str, "", what),
        shell=take_strings(document, "Shell", what),
        on_build=take_strings(document, "OnBuild", what),
        health=read_health(take(document, "Healthcheck", dict, {}, what)),
    )


def _read_history(document: Mapping[str, Any]) -> tuple[HistoryEntry, ...]:
    what = "image configuration: history"
    entries = take(document, "history", list, [], "image configuration")
    if not all(isinstance(entry, dict) for entry in entries):
        raise CorruptData(f"{what} holds something that is not an object")
    return tuple(
        HistoryEntry(
            created=take(entry, "created", str, "", what),
            created_by=take(entry, "created_by", str, "", what),
            author=take(entry, "author", str, "", what),
            comment=take(entry, "comment", str, "", what),
            empty_layer=take(entry, "empty_layer", bool, False, what),
        )
        for entry in entries
    )


def read_diff_ids(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the uncompressed layers, lowest first.  Raises CorruptData."""
    what = "image configuration: rootfs"
    rootfs = take(document, "rootfs", dict, {}, "image configuration")
    diff_ids = take_strings(rootfs, "diff_ids", what)
    if len(diff_ids) > MAX_LAYERS:
        raise CorruptData(f"{what}: more than {MAX_LAYERS} layers")
    for diff_id in diff_ids:
        try:
            check_digest(diff_id)
        except InvalidReference as error:
            raise CorruptData(f"{what}: {error.message}") from None
    return diff_ids


def _mapping(untrusted_value: object) -> Mapping[str, Any]:
    return untrusted_value if isinstance(untrusted_value, dict) else {}


def _origin(untrusted_value: object) -> str:
    """What an old builder wrote about itself: shown if it is a short text, no reason to refuse an image."""
    return untrusted_value if isinstance(untrusted_value, str) and len(untrusted_value) <= 512 else ""


def read_image(
    config: bytes, layers: Sequence[Descriptor], *, size_bytes: int = 0, manifest: str = ""
) -> Image:
    """The record of an image from its configuration document, whose digest is its id.

    Raises CorruptData if the document is malformed or does not fit the number of layers, InvalidRequest
    if the image is not for Linux.
    """
    document = read_json(config, "image configuration")
    what = "image configuration"
    os_name = take(document, "os", str, "linux", what) or "linux"
    if os_name != "linux":
        raise InvalidRequest(f'image operating system "{os_name}" cannot be used on this platform')
    diff_ids = read_diff_ids(document)
    if len(diff_ids) != len(layers):
        raise CorruptData(
            f"layers from manifest don't match image configuration: {len(layers)} and {len(diff_ids)}"
        )
    return Image(
        id=digest_of(config),
        config=_read_image_config(take(document, "config", dict, {}, what)),
        platform=Platform(
            os=os_name,
            architecture=take(document, "architecture", str, "", what),
            variant=take(document, "variant", str, "", what),
        ),
        diff_ids=diff_ids,
        layers=tuple(layers),
        history=_read_history(document),
        created=take(document, "created", str, "", what),
        author=take(document, "author", str, "", what),
        comment=take(document, "comment", str, "", what),
        size_bytes=size_bytes,
        container=_origin(document.get("container")),
        container_image=_origin(_mapping(document.get("container_config")).get("Image")),
        manifest=manifest,
    )


def created_ns(text: str) -> int:
    """RFC 3339 to nanoseconds; 0 for what cannot be read: as old as can be."""
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1_000_000_000)
    except (ValueError, OverflowError):
        return 0
