"""Configuration documents of images, as registries and archives bring them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from insula.errors import CorruptData, InvalidRequest
from insula.images.records import check_document, digest_of, read_image
from insula.model.image import Descriptor, HistoryEntry, ImageConfig, Platform

_D = "sha256:" + "d" * 64
_LAYER = Descriptor(media_type="", digest=_D, size=1)


def _raw(**changes: Any) -> bytes:
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [_D]}}
    return json.dumps({**document, **changes}).encode()


def test_everything_is_read() -> None:
    raw = _raw(
        created="2024-01-01T00:00:00Z",
        author="ali",
        config={
            "Cmd": ["sh"],
            "Entrypoint": None,
            "Env": ["PATH=/bin"],
            "User": "1",
            "WorkingDir": "/w",
            "Labels": {"a": "b"},
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/data": {}},
            "StopSignal": "SIGINT",
        },
        history=[{"created_by": "x", "empty_layer": True}],
    )
    image = read_image(raw, (_LAYER,), size_bytes=9, manifest=_D)
    assert image.id == digest_of(raw)
    assert image.platform == Platform(os="linux", architecture="amd64")
    assert image.config == ImageConfig(
        command=("sh",),
        env=("PATH=/bin",),
        user="1",
        working_dir="/w",
        labels={"a": "b"},
        exposed_ports=("80/tcp",),
        volumes=("/data",),
        stop_signal="SIGINT",
    )
    assert image.history == (HistoryEntry(created_by="x", empty_layer=True),)
    assert (image.diff_ids, image.size_bytes, image.manifest, image.author) == ((_D,), 9, _D, "ali")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (_raw(rootfs={"diff_ids": []}), "don't match image configuration"),
        (_raw(rootfs={"diff_ids": ["sha256:zz"]}), "digest"),
        (_raw(rootfs={"diff_ids": [1]}), "not a string"),
        (_raw(rootfs=[]), "rootfs is not of type dict"),
        (_raw(config={"Cmd": "sh"}), "Cmd is not of type list"),
        (_raw(config={"Labels": {"a": 1}}), "Labels"),
        (_raw(history=[1]), "history"),
        (b"nonsense", "not JSON"),
    ],
)
def test_refused(raw: bytes, words: str) -> None:
    with pytest.raises(CorruptData, match=words):
        read_image(raw, (_LAYER,))


def test_other_systems_are_refused() -> None:
    with pytest.raises(InvalidRequest, match='image operating system "windows" cannot be used'):
        read_image(_raw(os="windows"), (_LAYER,))


def test_document_must_match_its_digest() -> None:
    assert check_document(b"x", digest_of(b"x"), "it") == b"x"
    assert check_document(b"x", digest_of(b"x", "sha512"), "it") == b"x"
    with pytest.raises(CorruptData, match="it does not match its digest"):
        check_document(b"x", _D, "it")


def test_half_a_surrogate_pair_is_read_as_go_reads_it() -> None:
    """Else the image could be neither written down nor shown."""
    raw = _raw(config={"Env": ["A=\ud800", "B=\U0001f600"], "Labels": {"\udfff": "\udc00x"}})
    assert b"\\ud800" in raw
    config = read_image(raw, (_LAYER,)).config
    assert ("A=\ufffd", "B=\U0001f600") == config.env
    assert {"\ufffd": "\ufffdx"} == config.labels
    with pytest.raises(CorruptData, match="not JSON"):
        read_image(b'{"a":"\\ud800","b":' + b"[" * 5000 + b"]" * 5000 + b"}", (_LAYER,))
