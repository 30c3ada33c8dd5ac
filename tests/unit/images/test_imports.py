"""Layers taken in, and the configuration documents of import and commit."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from backports import zstd

from insula.errors import CorruptData, InvalidRequest
from insula.images.changes import apply_changes
from insula.images.content import ContentStore
from insula.images.imports import EMPTY_LAYER, StoredLayer, make_committed, make_imported, store_layer
from insula.model.image import Descriptor, ImageConfig, Platform

_LAYER = StoredLayer(
    blob=Descriptor(media_type="x", digest="sha256:" + "1" * 64, size=1), diff_id="sha256:" + "2" * 64
)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(lambda d: d, ".tar"), (gzip.compress, "+gzip"), (zstd.compress, "+zstd"), (bz2.compress, ".tar")],
    ids=["plain", "gzip", "zstd", "bzip2"],
)
async def test_a_layer_is_stored_with_both_digests(tmp_path: Path, pack, suffix: str) -> None:  # type: ignore[no-untyped-def]
    content = ContentStore(str(tmp_path))
    data = b"as if it were a tar" * 10_000
    layer = await store_layer(content, _pieces(pack(data)))
    assert layer.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    assert layer.blob.media_type.endswith(suffix)
    assert content.size(layer.blob.digest) == layer.blob.size
    assert content.digests() == (layer.blob.digest,)


async def test_no_data_is_an_empty_archive(tmp_path: Path) -> None:
    layer = await store_layer(ContentStore(str(tmp_path)), _pieces(b""))
    assert EMPTY_LAYER == layer.diff_id


async def test_damaged_data_is_refused(tmp_path: Path) -> None:
    content = ContentStore(str(tmp_path))
    with pytest.raises(CorruptData, match="cut off"):
        await store_layer(content, _pieces(gzip.compress(b"x" * 5000)[:-5]))
    assert content.digests() == ()


def test_an_imported_image() -> None:
    document = json.loads(
        make_imported(
            _LAYER,
            platform=Platform(),
            changes=['CMD ["sh"]', "ENV A=1"],
            message="hello",
            created="2026-01-01T00:00:00Z",
        )
    )
    assert document["config"] == {"Cmd": ["sh"], "Env": ["A=1"]}
    assert document["rootfs"] == {"type": "layers", "diff_ids": [_LAYER.diff_id]}
    assert document["history"] == [{"created": "2026-01-01T00:00:00Z", "comment": "hello"}]
    assert (document["os"], document["architecture"]) == ("linux", "amd64")


def test_a_committed_image_keeps_what_insula_has_no_word_for() -> None:
    base = {
        "os": "linux",
        "architecture": "arm64",
        "container": "abc",
        "config": {"Cmd": ["old"], "User": "nobody", "Healthcheck": {"Test": ["NONE"]}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
        "history": [{"created_by": "base"}],
    }
    made = make_committed(
        base,
        _LAYER,
        config=ImageConfig(command=("new",)),
        author="me",
        message="",
        created="2026-01-01T00:00:00Z",
        created_by="sh",
    )
    document = json.loads(made)
    assert document["config"] == {"Cmd": ["new"], "Healthcheck": {"Test": ["NONE"]}}
    assert document["rootfs"]["diff_ids"] == ["sha256:" + "0" * 64, _LAYER.diff_id]
    assert document["history"][1] == {"created": "2026-01-01T00:00:00Z", "created_by": "sh", "author": "me"}
    assert "container" not in document
    assert base["config"] == {"Cmd": ["old"], "User": "nobody", "Healthcheck": {"Test": ["NONE"]}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('CMD ["a", "b c"]', ImageConfig(command=("a", "b c"))),
        ("cmd echo $HOME", ImageConfig(command=("/bin/sh", "-c", "echo $HOME"))),
        ("ENTRYPOINT [ ]", ImageConfig()),
        ("ENV A=1 B='two words'", ImageConfig(env=("A=1", "B=two words"))),
        ("ENV A the rest", ImageConfig(env=("A=the rest",))),
        ('LABEL a="x y" b=', ImageConfig(labels={"a": "x y", "b": ""})),
        ("EXPOSE 80 53/udp", ImageConfig(exposed_ports=("53/udp", "80/tcp"))),
        ("EXPOSE 8000-8001", ImageConfig(exposed_ports=("8000/tcp", "8001/tcp"))),
        ("VOLUME /a /b", ImageConfig(volumes=("/a", "/b"))),
        ('VOLUME ["/a b"]', ImageConfig(volumes=("/a b",))),
        ("WORKDIR sub/../dir", ImageConfig(working_dir="/dir")),
        ("USER me:us", ImageConfig(user="me:us")),
        ("STOPSIGNAL SIGINT", ImageConfig(stop_signal="SIGINT")),
        ("ONBUILD RUN x", ImageConfig(on_build=("RUN x",))),
        ('SHELL ["/bin/ash", "-c"]', ImageConfig(shell=("/bin/ash", "-c"))),
    ],
)
def test_changes(change: str, expected: ImageConfig) -> None:
    assert apply_changes(ImageConfig(), [change]) == expected


def test_changes_add_up() -> None:
    base = ImageConfig(env=("A=1", "B=2"), working_dir="/srv")
    assert apply_changes(base, ["ENV A=3", "WORKDIR x"]) == ImageConfig(
        env=("A=3", "B=2"), working_dir="/srv/x"
    )


@pytest.mark.parametrize(
    "change",
    ["RUN x", "", "CMD", "ENV A", "ENV =1", "LABEL a=1 b", "EXPOSE 0", "EXPOSE 9-8", "SHELL sh", "ENV A='"],
)
def test_changes_that_are_refused(change: str) -> None:
    with pytest.raises(InvalidRequest):
        apply_changes(ImageConfig(), [change])
