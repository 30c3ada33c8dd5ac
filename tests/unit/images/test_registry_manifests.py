"""Manifests and indexes: what is read, chosen, written, and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from insula.errors import CorruptData, InvalidRequest, NotFound
from insula.images.records import read_image
from insula.images.registry.manifests import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    IndexEntry,
    Manifest,
    choose,
    host_platform,
    make_manifest,
    parse_manifest,
    parse_platform,
    platform_rank,
)
from insula.model.image import Descriptor, Platform

_D = "sha256:" + "d" * 64
_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def _entry(media_type: str, size: object = 1, digest: str = _D) -> dict[str, object]:
    return {"mediaType": media_type, "size": size, "digest": digest}


def _raw(**document: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **document}).encode()


def test_manifest() -> None:
    data = _raw(mediaType=OCI_MANIFEST, config=_entry(OCI_CONFIG), layers=[_entry(_GZIP, 7)])
    assert parse_manifest(data) == Manifest(
        media_type=OCI_MANIFEST,
        config=Descriptor(media_type=OCI_CONFIG, digest=_D, size=1),
        layers=(Descriptor(media_type=_GZIP, digest=_D, size=7),),
    )


def test_type_comes_from_the_header_where_the_document_is_silent() -> None:
    data = _raw(config=_entry(DOCKER_CONFIG), layers=[])
    manifest = parse_manifest(data, f"{DOCKER_MANIFEST}; charset=utf-8")
    assert isinstance(manifest, Manifest)
    assert manifest.media_type == DOCKER_MANIFEST


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"<html>", CorruptData, "is not JSON"),
        (b"[]", CorruptData, "not a JSON object"),
        (b"[" * 100_000, CorruptData, "is not JSON"),
        (_raw(), CorruptData, "neither layers nor manifests"),
        (_raw(config=_entry(OCI_CONFIG), layers=[], manifests=[]), CorruptData, "both a manifest and a list"),
        (_raw(mediaType=OCI_INDEX, config={}, layers=[]), CorruptData, "not what its type"),
        (_raw(mediaType=OCI_MANIFEST, manifests=[]), CorruptData, "not what its type"),
        (_raw(config=_entry(OCI_CONFIG, -1), layers=[]), CorruptData, "impossible size"),
        (_raw(config=_entry(OCI_CONFIG, "1"), layers=[]), CorruptData, "size is not of type int"),
        (_raw(config=_entry(OCI_CONFIG, True), layers=[]), CorruptData, "size is not of type int"),
        (_raw(config=_entry(OCI_CONFIG, 1 << 60), layers=[]), CorruptData, "impossible size"),
        (_raw(config=_entry(OCI_CONFIG, 1, "../../etc"), layers=[]), CorruptData, "digest"),
        (_raw(config=_entry(OCI_CONFIG), layers=["x"]), CorruptData, "not a JSON object"),
        (_raw(config=_entry(OCI_CONFIG), layers=[_entry(_GZIP)] * 126), CorruptData, "126 layers"),
        (
            _raw(config=_entry(OCI_CONFIG), layers=[_entry("text/plain")]),
            InvalidRequest,
            "unsupported media type",
        ),
        (_raw(config=_entry("application/x-wasm"), layers=[]), InvalidRequest, "not an image"),
        (b'{"schemaVersion": 1, "fsLayers": []}', InvalidRequest, "schema 1"),
    ],
)
def test_refused(data: bytes, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        parse_manifest(data)


def _index(*platforms: str) -> Index:
    entries = []
    for number, text in enumerate(platforms):
        os_name, architecture, variant = (*text.split("/"), "")[:3]
        digest = f"sha256:{number:064x}"
        entries.append(
            IndexEntry(
                manifest=Descriptor(media_type=OCI_MANIFEST, digest=digest, size=1),
                platform=Platform(os=os_name, architecture=architecture, variant=variant),
            )
        )
    return Index(media_type=OCI_INDEX, entries=tuple(entries))


@pytest.mark.parametrize(
    ("there", "wanted", "number"),
    [
        (("linux/arm64", "linux/amd64"), "linux/amd64", 1),
        (("linux/arm64/v8", "linux/amd64"), "linux/arm64", 0),
        (("linux/arm/v6", "linux/arm/v7"), "linux/arm/v7", 1),
        (("linux/arm/v5", "linux/arm/v6"), "linux/arm/v7", 1),
        (("unknown/unknown", "linux/amd64"), "linux/amd64", 1),
        (("linux/amd64/v3", "linux/amd64"), "linux/amd64", 1),
        (("windows/amd64", "linux/amd64"), "linux/amd64", 1),
    ],
)
def test_choice(there: tuple[str, ...], wanted: str, number: int) -> None:
    assert choose(_index(*there), parse_platform(wanted)).digest == f"sha256:{number:064x}"


def test_no_choice_names_what_there_is() -> None:
    with pytest.raises(NotFound) as caught:
        choose(_index("linux/arm64/v8", "unknown/unknown", "linux/arm/v7"), parse_platform("linux/arm/v6"))
    assert caught.value.message == "no matching manifest for linux/arm/v6 in the manifest list entries"
    assert caught.value.hint == "the image exists for linux/arm/v7, linux/arm64/v8"


def test_index_is_read_with_its_platforms() -> None:
    platform = {"os": "linux", "architecture": "arm", "variant": "v7"}
    data = _raw(mediaType=DOCKER_LIST, manifests=[{**_entry(DOCKER_MANIFEST), "platform": platform}])
    index = parse_manifest(data)
    assert isinstance(index, Index)
    assert index.entries[0].platform == Platform(os="linux", architecture="arm", variant="v7")


def test_platforms_as_written() -> None:
    assert parse_platform("linux/x86_64") == Platform(os="linux", architecture="amd64")
    assert parse_platform("aarch64") == Platform(os="linux", architecture="arm64")
    assert parse_platform("linux") == host_platform()
    assert platform_rank(host_platform(), host_platform()) == 0
    for wrong in ("", "linux/", "a/b/c/d", "windows/amd64", "linux/amd 64"):
        with pytest.raises(InvalidRequest):
            parse_platform(wrong)


_CONFIG = json.dumps(
    {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [_D]}}
).encode()


@pytest.mark.parametrize(
    ("layer", "media_type", "written"),
    [
        (_DOCKER_GZIP, DOCKER_MANIFEST, _DOCKER_GZIP),
        (_GZIP, OCI_MANIFEST, _GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar", DOCKER_MANIFEST, None),
        (
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            OCI_MANIFEST,
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    ],
)
def test_manifest_made_for_an_image_that_has_none(layer: str, media_type: str, written: str | None) -> None:
    image = read_image(_CONFIG, (Descriptor(media_type=layer, digest=_D, size=5),))
    found_type, data = make_manifest(image, len(_CONFIG))
    assert found_type == media_type
    manifest = parse_manifest(data)
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == image.id
    assert manifest.layers[0].media_type == (written or layer)
    assert make_manifest(replace(image, tags=("x:1",)), len(_CONFIG)) == (found_type, data)
