"""Files with holes: read whole without being read, and left as holes where nothing but zeros is written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from insula.images.content import ContentStore
from insula.system.sparse import is_nothing, read_whole

MIB = 1 << 20
PIECE = 1 << 18


def make(path: Path, size: int, *data: tuple[int, bytes]) -> bytes:
    """A sparse file, and what it holds."""
    held = bytearray(size)
    with open(path, "wb") as file:
        for offset, text in data:
            file.seek(offset)
            file.write(text)
            held[offset : offset + len(text)] = text
        file.truncate(size)
    return bytes(held)


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (0, ()),
        (1, ((0, b"x"),)),
        (3 * MIB, ()),
        (3 * MIB + 7, ((0, b"start"), (MIB, b"middle" * 9000), (3 * MIB, b"the end"))),
        (3 * MIB, ((2 * MIB, b"x"),)),
    ],
)
def test_a_file_is_read_whole(tmp_path: Path, size: int, data: tuple[tuple[int, bytes], ...]) -> None:
    expected = make(tmp_path / "f", size, *data)
    with open(tmp_path / "f", "rb") as file:
        pieces = list(read_whole(file.fileno(), size, PIECE))
    assert expected == b"".join(pieces)
    assert all(0 < len(piece) <= PIECE for piece in pieces)


def test_a_file_that_has_become_shorter_is_filled_up(tmp_path: Path) -> None:
    make(tmp_path / "f", 10, (0, b"0123456789"))
    with open(tmp_path / "f", "rb") as file:
        assert b"0123456789" + bytes(PIECE) == b"".join(read_whole(file.fileno(), 10 + PIECE, PIECE))


def test_what_has_no_holes_is_read_as_it_is() -> None:
    """procfs refuses to look for them."""
    with open("/proc/version", "rb") as file:
        text = file.read()
        assert text == b"".join(read_whole(file.fileno(), len(text), PIECE))


def test_nothing_is_told_from_something() -> None:
    for size in (1, 100, PIECE, PIECE + 1):
        assert is_nothing(bytes(size))
        assert not is_nothing(bytes(size - 1) + b"x")
        assert not is_nothing(b"x" + bytes(size - 1))
    assert not is_nothing(b"")


def test_a_blob_of_zeros_takes_no_space_and_is_the_same_blob(tmp_path: Path) -> None:
    store = ContentStore(str(tmp_path))
    for end in (b"", b"end"):
        whole = b"start" + bytes(8 * MIB) + end
        with store.writer(None, None) as writer:
            for at in range(0, len(whole), PIECE):
                writer.write(whole[at : at + PIECE])
            digest = writer.commit()
        assert digest == "sha256:" + hashlib.sha256(whole).hexdigest()
        path = store.path(digest)
        assert Path(path).read_bytes() == whole
        assert os.stat(path).st_blocks * 512 < 2 * MIB
