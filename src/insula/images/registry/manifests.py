"""Manifests and indexes, OCI's and Docker's: read, choose by platform, write.  Pure."""

from __future__ import annotations

import json
import platform as host
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from insula.errors import CorruptData, InvalidRequest, NotFound
from insula.images.records import MAX_LAYERS, read_descriptor, read_json, take
from insula.model.image import Descriptor, Image, Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_LAYERS = frozenset(
    base + suffix
    for base in (
        _OCI_LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        _DOCKER_LAYER,
    )
    for suffix in ("", "+gzip", "+zstd", ".gzip", ".zstd")
) | {"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
# application/octet-stream: what early docker versions wrote; moby still takes it
_CONFIGS = frozenset((OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream", ""))
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"

_ARCHITECTURES = {
    "x86_64": "amd64", "x86-64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64",
    "armv7l": "arm", "armv6l": "arm", "armhf": "arm", "armel": "arm",
    "i386": "386", "i686": "386", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64",
}  # fmt: skip
_SYSTEMS = ("darwin", "freebsd", "macos", "netbsd", "openbsd", "plan9", "solaris", "windows")
_FURTHER = ("arm", "mips64le", "loong64", "wasm", "ppc64", "mips64")
_ARM_VARIANTS = {"armv7l": "v7", "armhf": "v7", "armv6l": "v6", "armel": "v6"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image: its configuration and layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    manifest: Descriptor
    platform: Platform | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    media_type: str
    entries: tuple[IndexEntry, ...]


def host_platform() -> Platform:
    machine = host.machine()
    return Platform(
        os="linux",
        architecture=_ARCHITECTURES.get(machine, machine),
        variant=_ARM_VARIANTS.get(machine, ""),
    )


def parse_platform(text: str) -> Platform:
    """`linux/arm64`, `linux/arm/v7`, or only `arm64`.  Raises InvalidRequest."""
    parts = text.lower().split("/")
    if len(parts) > 3:
        raise InvalidRequest(f"{text!r}: not a platform", hint="for example linux/amd64 or linux/arm/v7")
    for part in parts:
        if not part.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise InvalidRequest(  # containerd's words
                f'"{part}" is an invalid component of "{text}"',
                hint="for example linux/amd64 or linux/arm/v7",
            )
    if len(parts) == 1:
        if parts[0] == "linux":
            return host_platform()
        if parts[0] in _SYSTEMS:
            raise InvalidRequest(f'"{text}": operating system is not supported: there are Linux images only')
        if parts[0] not in (*_ARCHITECTURES, *_ARCHITECTURES.values(), *_FURTHER):
            raise InvalidRequest(f'"{text}": unknown operating system or architecture: invalid argument')
        parts = ["linux", *parts]
    if parts[0] != "linux":
        raise InvalidRequest(f'"{text}": operating system is not supported: there are Linux images only')
    machine = parts[1]
    variant = parts[2] if len(parts) == 3 else _ARM_VARIANTS.get(machine, "")
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine), variant=variant)


def show_platform(platform: Platform) -> str:
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)


def platform_rank(offered: Platform, wanted: Platform) -> int | None:
    """How well an image's platform serves: 0 is best, None not at all."""
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    default = {"arm64": "v8", "arm": "v7"}.get(wanted.architecture, "")
    have, want = offered.variant or default, wanted.variant or default
    if have == want:
        return 0
    if wanted.architecture == "arm" and have < want:  # v6 code runs on v7, not the reverse
        return int(want[1:]) - int(have[1:]) if have[1:].isdigit() and want[1:].isdigit() else None
    if wanted.architecture == "amd64" and not want:  # v1 is the base; higher levels may not run here
        return 1 if have == "v1" else 9
    return None


def _read_platform(document: Any) -> Platform | None:
    if document is None:
        return None
    if not isinstance(document, dict):
        raise CorruptData("manifest list: platform is not a JSON object")
    what = "manifest list: platform"
    return Platform(
        os=take(document, "os", str, "", what),
        architecture=take(document, "architecture", str, "", what),
        variant=take(document, "variant", str, "", what),
    )


def parse_manifest(data: bytes, content_type: str = "") -> Manifest | Index:
    """A manifest or an index.  `content_type` is what the registry said, used when the document is silent.

    Raises CorruptData for a document that is neither, or both (CVE-2021-41190), InvalidRequest for an
    artifact that is not an image and for schema 1.
    """
    document = read_json(data, "manifest")
    said = content_type.partition(";")[0].strip()
    media_type = take(document, "mediaType", str, "", "manifest") or said
    if document.get("schemaVersion") == 1 or media_type.startswith(_SCHEMA1):
        raise InvalidRequest(
            "Docker Image Format v1 and Docker Image manifest version 2, schema 1 are not supported",
            hint="push the image again with a registry client made after 2016",
        )
    has_layers, has_manifests = "layers" in document or "config" in document, "manifests" in document
    if has_layers and has_manifests:
        raise CorruptData("manifest: the document is both a manifest and a list of manifests")
    is_index = media_type in (OCI_INDEX, DOCKER_LIST)
    if (is_index and has_layers) or (media_type in (OCI_MANIFEST, DOCKER_MANIFEST) and has_manifests):
        raise CorruptData(f"manifest: the content is not what its type {media_type} says")
    if has_manifests:
        return _read_index(document, media_type if is_index else OCI_INDEX)
    if not has_layers:
        raise CorruptData("manifest: neither layers nor manifests in the document")
    return _read_manifest(document, media_type if media_type == DOCKER_MANIFEST else OCI_MANIFEST)


def _read_index(document: dict[str, Any], media_type: str) -> Index:
    entries = take(document, "manifests", list, [], "manifest list")
    return Index(
        media_type=media_type,
        entries=tuple(
            IndexEntry(
                manifest=read_descriptor(entry, "manifest list"),
                platform=_read_platform(entry.get("platform")),
            )
            for entry in entries
        ),
    )


def _read_manifest(document: dict[str, Any], media_type: str) -> Manifest:
    config = read_descriptor(document.get("config"), "manifest: config")
    if config.media_type not in _CONFIGS:
        raise InvalidRequest(
            f"unsupported media type {config.media_type}: this is not an image",
            hint="it is another kind of artifact (a Helm chart, a signature, …)",
        )
    layers = tuple(
        read_descriptor(layer, "manifest: layer") for layer in take(document, "layers", list, [], "manifest")
    )
    if len(layers) > MAX_LAYERS:
        raise CorruptData(f"manifest: {len(layers)} layers, more than {MAX_LAYERS}")
    for layer in layers:
        if layer.media_type not in _LAYERS:
            raise InvalidRequest(f"unsupported media type {layer.media_type} of layer {layer.digest}")
    return Manifest(media_type=media_type, config=config, layers=layers)


def choose(index: Index, wanted: Platform) -> Descriptor:
    """The entry that serves `wanted` best.  Raises NotFound naming the platforms that there are."""
    ranked = [
        (rank, position)
        for position, entry in enumerate(index.entries)
        if entry.platform is not None and (rank := platform_rank(entry.platform, wanted)) is not None
    ]
    if ranked:
        return index.entries[min(ranked)[1]].manifest
    there = sorted(
        {
            show_platform(entry.platform)
            for entry in index.entries
            if entry.platform is not None and entry.platform.os != "unknown"  # buildkit's attestations
        }
    )
    if not there and len(index.entries) == 1:  # says nothing about platforms: the configuration will
        return index.entries[0].manifest
    raise NotFound(
        f"no matching manifest for {show_platform(wanted)} in the manifest list entries",
        hint=f"the image exists for {', '.join(there)}" if there else "the list has no platforms",
    )


def _as_type(layer: Descriptor, oci: bool) -> str:
    """A layer's media type in the one family or the other."""
    kind = layer.media_type.replace(".gzip", "+gzip").replace(".zstd", "+zstd")
    suffix = next((s for s in ("+gzip", "+zstd") if kind.endswith(s)), "")
    if oci:
        return _OCI_LAYER + suffix
    return _DOCKER_LAYER + suffix.replace("+", ".")


def make_manifest(image: Image, config_size: int) -> tuple[str, bytes]:
    """Media type and bytes of a manifest for an image that came with none.  Docker's form, unless a layer
    is zstd or of OCI's types.  The same image gives the same bytes."""
    oci = any(layer.media_type.startswith("application/vnd.oci.") for layer in image.layers) or any(
        layer.media_type.endswith("zstd") for layer in image.layers
    )
    media_type = OCI_MANIFEST if oci else DOCKER_MANIFEST
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(OCI_CONFIG if oci else DOCKER_CONFIG, image.id, config_size),
        "layers": [_descriptor(_as_type(layer, oci), layer.digest, layer.size) for layer in image.layers],
    }
    return media_type, json.dumps(document, indent=3).encode()


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, str | int]:
    return {"mediaType": media_type, "size": size, "digest": digest}


def distinct(descriptors: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """Each digest once, in order: images repeat the empty layer."""
    return tuple({descriptor.digest: descriptor for descriptor in descriptors}.values())
