"""The content store keeps a blob whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from insula.errors import CorruptData, NotFound
from insula.images.content import ContentStore, check_digest, digest_of


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path))


def _files(content: ContentStore) -> list[str]:
    return sorted(str(p.relative_to(content.root)) for p in Path(content.root).rglob("*") if p.is_file())


def test_a_blob_is_there_after_commit_only(content: ContentStore) -> None:
    digest = digest_of(b"hello")
    with content.writer(digest, 5) as writer:
        writer.write(b"hel")
        writer.write(b"lo")
        assert not content.has(digest)
        assert writer.commit() == digest
    assert content.has(digest)
    assert content.size(digest) == 5
    assert content.read(digest) == b"hello"
    assert content.digests() == (digest,)


def test_a_wrong_digest_is_refused_and_nothing_kept(content: ContentStore) -> None:
    with content.writer(digest_of(b"good"), 4) as writer:
        writer.write(b"evil")
        writer.keep_partial()
        with pytest.raises(CorruptData, match="what came has digest"):
            writer.commit()
    assert _files(content) == []


def test_more_than_the_size_is_refused_at_once(content: ContentStore) -> None:
    with content.writer(digest_of(b"good"), 4) as writer:
        writer.keep_partial()
        with pytest.raises(CorruptData, match="more than the 4 bytes"):
            writer.write(b"goodness")
    assert _files(content) == []


def test_less_than_the_size_is_refused(content: ContentStore) -> None:
    with content.writer(digest_of(b"good"), 4) as writer:
        writer.write(b"goo")
        with pytest.raises(CorruptData, match="3 bytes came"):
            writer.commit()
    assert _files(content) == []


def test_leaving_without_commit_keeps_nothing(content: ContentStore) -> None:
    with content.writer(digest_of(b"good"), 4) as writer:
        writer.write(b"go")
    assert _files(content) == []


def test_a_broken_download_is_resumed(content: ContentStore) -> None:
    digest = digest_of(b"hello world")
    with content.writer(digest, 11, resume=True) as writer:
        assert writer.offset == 0
        writer.write(b"hello ")
        writer.keep_partial()
    assert content.partial_size(digest) == 6
    content.clean()
    with content.writer(digest, 11, resume=True) as writer:
        assert writer.offset == 6
        writer.write(b"world")
        writer.commit()
    assert content.read(digest) == b"hello world"
    assert content.partial_size(digest) == 0


def test_a_resumed_download_can_start_again(content: ContentStore) -> None:
    digest = digest_of(b"hello")
    with content.writer(digest, 5, resume=True) as writer:
        writer.write(b"bad")
        writer.keep_partial()
    with content.writer(digest, 5, resume=True) as writer:
        writer.restart()
        writer.write(b"hello")
        writer.commit()
    assert content.read(digest) == b"hello"


def test_a_blob_of_unknown_digest(content: ContentStore) -> None:
    with content.writer(None, None) as writer:
        writer.write(b"whatever")
        digest = writer.commit()
    assert digest == "sha256:" + hashlib.sha256(b"whatever").hexdigest()
    assert content.has(digest)


def test_put_and_remove(content: ContentStore) -> None:
    digest = content.put(b"small")
    assert content.put(b"small") == digest
    content.remove(digest)
    content.remove(digest)
    assert not content.has(digest)
    with pytest.raises(NotFound):
        content.size(digest)


def test_a_blob_changed_on_the_disk_is_not_believed(content: ContentStore) -> None:
    digest = content.put(b"small")
    os.chmod(content.path(digest), 0o600)
    Path(content.path(digest)).write_bytes(b"SMALL")
    with pytest.raises(CorruptData, match="changed on the disk"):
        content.read(digest)


def test_what_was_arriving_is_cleaned_at_start(content: ContentStore) -> None:
    Path(content.ingest_path()).write_bytes(b"half")
    content.clean()
    assert _files(content) == []


@pytest.mark.parametrize(
    "untrusted", ["", "sha256:", "sha256:" + "0" * 63, "sha256:../" + "0" * 61, "md5:" + "0" * 32]
)
def test_only_digests_become_paths(untrusted: str) -> None:
    with pytest.raises(CorruptData, match="not a sha256 digest"):
        check_digest(untrusted)
