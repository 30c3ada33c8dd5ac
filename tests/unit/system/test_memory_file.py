"""Memory files: holes stay holes, digests do not see them, seals hold."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from insula.system import memory_file

PAGE = 4096


@pytest.fixture
def file() -> Iterator[int]:
    fd = memory_file.make_memory_file("test", 64 * PAGE)
    os.pwrite(fd, b"one", 3 * PAGE)
    os.pwrite(fd, b"two" * PAGE, 40 * PAGE)
    yield fd
    os.close(fd)


def test_a_copy_has_the_same_bytes_and_holes(file: int) -> None:
    copy = memory_file.make_memory_file("copy")
    memory_file.copy_sparse(file, copy)
    assert os.pread(file, 64 * PAGE, 0) == os.pread(copy, 64 * PAGE, 0)
    assert list(memory_file.find_extents(file)) == list(memory_file.find_extents(copy))
    os.close(copy)


def test_the_digest_is_of_the_contents_not_of_the_holes(file: int) -> None:
    before, held = memory_file.digest_sparse(file)
    assert 4 * PAGE == held
    os.pwrite(file, bytes(PAGE), 10 * PAGE)  # no hole any more, still zero
    assert (before, 5 * PAGE) == memory_file.digest_sparse(file)
    os.pwrite(file, b"\1", 10 * PAGE)
    assert before != memory_file.digest_sparse(file)[0]


def test_the_digest_sees_where_something_is_and_how_long_the_file(file: int) -> None:
    before = memory_file.digest_sparse(file)[0]
    os.ftruncate(file, 65 * PAGE)
    longer = memory_file.digest_sparse(file)[0]
    assert before != longer
    os.pwrite(file, bytes(3), 3 * PAGE)
    os.pwrite(file, b"one", 4 * PAGE)
    assert longer != memory_file.digest_sparse(file)[0]


def test_a_sealed_one_is_written_privately_only(file: int) -> None:
    memory_file.seal(file)
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    again = os.open(f"/proc/self/fd/{file}", os.O_RDWR)  # as QEMU opens it
    with pytest.raises(PermissionError):
        mmap.mmap(again, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with mmap.mmap(again, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mine:
        mine[0:3] = b"own"
    os.close(again)
    assert bytes(3) == os.pread(file, 3, 0)


def test_reading_again_begins_at_the_start(file: int) -> None:
    os.lseek(file, 0, os.SEEK_END)
    again = memory_file.open_again(file)
    assert 0 == os.lseek(again, 0, os.SEEK_CUR)
    os.close(again)
