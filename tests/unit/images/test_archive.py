"""Save and load: both forms, any order, packed or not, and archives that lie."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from backports import zstd

from insula.errors import CorruptData, InsulaError, InvalidRequest
from insula.images import archive
from insula.images.content import ContentStore
from insula.images.records import read_image
from insula.model.image import Descriptor, Image

_LAYERS = (b"not really a tar: " + b"a" * 1000, b"nor this: " + b"b" * 3000)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _config(*layers: bytes, architecture: str = "amd64") -> bytes:
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    return json.dumps(document).encode()


def _tar(members: dict[str, bytes | str]) -> bytes:
    """A str is a symlink's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as built:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                built.addfile(info)
            else:
                info.size = len(data)
                built.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def _pieces(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def _old_docker(tags: list[str] | None = None) -> dict[str, bytes | str]:
    config = _config(*_LAYERS, _LAYERS[0])
    return {
        "aaa/layer.tar": _LAYERS[0],
        "bbb/layer.tar": _LAYERS[1],
        "ccc/layer.tar": "../aaa/layer.tar",
        "ccc/VERSION": b"1.0",
        "config.json": config,
        "manifest.json": json.dumps(
            [
                {
                    "Config": "config.json",
                    "RepoTags": tags if tags is not None else ["debian:12"],
                    "Layers": ["aaa/layer.tar", "bbb/layer.tar", "ccc/layer.tar"],
                }
            ]
        ).encode(),
    }


def _oci(annotations: dict[str, str] | None = None) -> dict[str, bytes | str]:
    packed = gzip.compress(_LAYERS[0], mtime=0)
    config = _config(_LAYERS[0])
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _described("application/vnd.oci.image.config.v1+json", config),
            "layers": [_described("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        }
    ).encode()
    described = _described("application/vnd.oci.image.manifest.v1+json", manifest)
    index = {"schemaVersion": 2, "manifests": [{**described, "annotations": annotations or {}}]}
    blobs = {f"blobs/sha256/{_digest(b)[7:]}": b for b in (packed, config, manifest)}
    return {"oci-layout": b"{}", "index.json": json.dumps(index).encode(), **blobs}


def _described(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path))


def _assert_empty(content: ContentStore) -> None:
    assert content.digests() == ()
    assert os.listdir(f"{content.root}/ingest") == []


async def test_an_old_docker_archive_with_symlinked_layers(content: ContentStore) -> None:
    [loaded] = await archive.load(content, _pieces(_tar(_old_docker())))
    assert loaded.tags == ("debian:12",)
    assert [layer.digest for layer in loaded.layers] == [_digest(x) for x in (*_LAYERS, _LAYERS[0])]
    assert loaded.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar"
    assert set(content.digests()) == {_digest(loaded.config), *map(_digest, _LAYERS)}
    assert os.listdir(f"{content.root}/ingest") == []


async def test_members_may_come_in_any_order(content: ContentStore) -> None:
    backwards = dict(reversed(_old_docker().items()))
    [loaded] = await archive.load(content, _pieces(_tar(backwards)))
    assert len(loaded.layers) == 3


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
async def test_packed_archives(content: ContentStore, pack: Callable[[bytes], bytes]) -> None:
    [loaded] = await archive.load(content, _pieces(pack(_tar(_old_docker()))))
    assert loaded.tags == ("debian:12",)


@pytest.mark.parametrize(
    ("annotations", "tags"),
    [
        ({}, ()),
        ({"org.opencontainers.image.ref.name": "latest"}, ()),
        ({"org.opencontainers.image.ref.name": "debian:12"}, ("debian:12",)),
        ({"io.containerd.image.name": "docker.io/library/debian:12"}, ("debian:12",)),
    ],
)
async def test_an_oci_layout(
    content: ContentStore, annotations: dict[str, str], tags: tuple[str, ...]
) -> None:
    members = _oci(annotations)
    [loaded] = await archive.load(content, _pieces(_tar(members)))
    assert loaded.tags == tags
    assert loaded.config == _config(_LAYERS[0])
    assert content.has(loaded.manifest)
    assert loaded.layers[0].media_type.endswith("+gzip")


def _stored_image(content: ContentStore, *layers: bytes) -> Image:
    config = _config(*layers)
    content.put(config)
    blobs = tuple(
        Descriptor(
            media_type="application/vnd.oci.image.layer.v1.tar", digest=content.put(layer), size=len(layer)
        )
        for layer in layers
    )
    return read_image(config, blobs)


async def test_what_is_saved_loads_again_in_both_forms(content: ContentStore, tmp_path: Path) -> None:
    one = _stored_image(content, _LAYERS[0])
    two = _stored_image(content, *_LAYERS)
    saved = b"".join(
        [p async for p in archive.save(content, [(one, ["debian:12", "debian:stable"]), (two, [])])]
    )
    with tarfile.open(fileobj=io.BytesIO(saved)) as built:
        members = {
            m.name: built.extractfile(m).read()  # type: ignore[union-attr]
            for m in built.getmembers()
            if m.isfile()
        }
    assert {"manifest.json", "repositories", "index.json", "oci-layout"} < set(members)
    assert json.loads(members["manifest.json"])[0]["RepoTags"] == ["debian:12", "debian:stable"]
    for absent in ("index.json", "manifest.json"):
        fresh = ContentStore(str(tmp_path / absent))
        only = _tar({name: data for name, data in members.items() if name != absent})
        loaded = await archive.load(fresh, _pieces(only))
        assert {read_image(x.config, x.layers).id: x.tags for x in loaded} == {
            one.id: ("debian:12", "debian:stable"),
            two.id: (),
        }
    again = ContentStore(str(tmp_path / "both"))
    assert all(x.manifest for x in await archive.load(again, _pieces(saved)))
    assert set(again.digests()) >= set(content.digests())


async def test_what_is_saved_twice_is_the_same(content: ContentStore) -> None:
    image = _stored_image(content, *_LAYERS)
    first, second = [b"".join([p async for p in archive.save(content, [(image, ["x:1"])])]) for _ in range(2)]
    assert first == second


def _without(name: str) -> dict[str, bytes | str]:
    members = _old_docker()
    del members[name]
    return members


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        ({"etc/passwd": b"root"}, InvalidRequest, "not an image"),
        (_without("bbb/layer.tar"), CorruptData, "does not have 'bbb/layer.tar'"),
        (_without("config.json"), CorruptData, "does not have 'config.json'"),
        ({**_old_docker(), "bbb/layer.tar": b"another"}, CorruptData, "the image says"),
        ({**_old_docker(), "manifest.json": b"[1]"}, CorruptData, "not a list of objects"),
        ({**_old_docker(), "manifest.json": b"[" * 100_000}, CorruptData, "not JSON"),
        (_old_docker(["../../evil"]), CorruptData, "bad image name"),
        ({**_old_docker(), "aaa/layer.tar": "../../../etc/passwd"}, CorruptData, "outside its root"),
        ({**_old_docker(), "aaa/layer.tar": "/etc/passwd"}, CorruptData, "does not have"),
        ({**_old_docker(), "aaa/layer.tar": "layer.tar"}, CorruptData, "circle of links"),
    ],
)
async def test_archives_that_lie_leave_nothing(
    content: ContentStore, members: dict[str, bytes | str], error: type[InsulaError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await archive.load(content, _pieces(_tar(members)))
    _assert_empty(content)


async def test_an_oci_blob_that_is_not_what_its_name_says(content: ContentStore) -> None:
    members = _oci()
    name = f"blobs/sha256/{_digest(_config(_LAYERS[0]))[7:]}"
    with pytest.raises(CorruptData, match="of the archive has digest"):
        await archive.load(content, _pieces(_tar({**members, name: b"{}"})))
    _assert_empty(content)


async def test_a_cut_off_archive_leaves_nothing(content: ContentStore) -> None:
    whole = _tar(_old_docker())
    with pytest.raises(CorruptData, match="cut off"):
        await archive.load(content, _pieces(whole[:3000]))
    _assert_empty(content)


async def test_an_upload_that_breaks_off_leaves_nothing(content: ContentStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield _tar(_old_docker())
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await archive.load(content, broken())
    _assert_empty(content)
