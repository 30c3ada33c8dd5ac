"""Disks: the same on every host; copies keep holes, within a file system and from one to another."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.system.disk_file import (
    MKE2FS_ENVIRONMENT,
    copy_into,
    copy_sparse,
    finalize_mke2fs,
    is_copy,
    make_again,
    make_like,
)
from insula.system.run import run

MIB = 1 << 20


@pytest.fixture(params=["the same", "memory"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory of the same file system, and of a tmpfs, as /run is on most hosts."""
    if request.param == "the same":
        yield tmp_path
        return
    directory = tempfile.mkdtemp(prefix="insula-test-", dir="/dev/shm")
    yield Path(directory)
    shutil.rmtree(directory)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(100 * MIB)
        for at, data in ((0, b"begin"), (50 * MIB + 3, b"middle" * 10_000), (100 * MIB - 3, b"end")):
            file.seek(at)
            file.write(data)
    return path


def check(disk: Path, copy: Path) -> None:
    assert disk.stat().st_size == copy.stat().st_size
    assert copy.stat().st_blocks * 512 < MIB
    assert disk.read_bytes() == copy.read_bytes()


def test_a_copy_has_the_same_bytes_and_holes(disk: Path, elsewhere: Path) -> None:
    copy_sparse(str(disk), str(elsewhere / "copy"))
    check(disk, elsewhere / "copy")


def test_a_copy_into_what_is_there(disk: Path, elsewhere: Path) -> None:
    copy = elsewhere / "copy"
    make_like(str(disk), str(copy))
    copy_into(str(disk), str(copy))
    check(disk, copy)


def test_a_file_that_is_open_becomes_a_copy_again(disk: Path, elsewhere: Path) -> None:
    copy = elsewhere / "copy"
    copy.write_bytes(b"what a guest has written" * MIB)
    with open(copy, "rb") as held:
        make_again(str(disk), str(copy))
        check(disk, copy)
        assert b"begin" == held.read(5)


@pytest.mark.parametrize(
    ("at", "data"), [(3, b"X"), (50 * MIB + 60_000, b"X"), (70 * MIB, b"X"), (0, b"X" * 4 * MIB)]
)
def test_a_copy_is_known_by_its_bytes(disk: Path, elsewhere: Path, at: int, data: bytes) -> None:
    copy = elsewhere / "copy"
    copy_sparse(str(disk), str(copy))
    with open(copy, "r+b") as file:
        file.seek(30 * MIB)
        file.write(bytes(4096))  # no hole any more, but the same
    assert is_copy(str(disk), str(copy))
    with open(copy, "r+b") as file:
        file.seek(at)
        file.write(data)
    assert not is_copy(str(disk), str(copy))
    assert not is_copy(str(copy), str(disk))


def test_one_of_another_length_is_no_copy(disk: Path, tmp_path: Path) -> None:
    copy_sparse(str(disk), str(tmp_path / "copy"))
    os.truncate(tmp_path / "copy", 101 * MIB)
    assert not is_copy(str(disk), str(tmp_path / "copy"))


@pytest.mark.skipif(shutil.which("mke2fs", path="/usr/sbin:/sbin") is None, reason="needs mke2fs")
def test_two_empty_disks_are_copies_of_each_other(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "other")]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(1 << 30)
        run(finalize_mke2fs(path), env=MKE2FS_ENVIRONMENT)
        os.utime(path, (1, 1))
    assert is_copy(*paths)


def test_nothing_is_overwritten_or_left_half_done(disk: Path, elsewhere: Path) -> None:
    there = elsewhere / "there"
    there.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        copy_sparse(str(disk), str(there))
    with pytest.raises(IsADirectoryError):
        copy_sparse(str(disk.parent), str(elsewhere / "never"))
    assert ["there"] == [name for name in os.listdir(elsewhere) if name not in ("disk",)]


@pytest.mark.skipif(shutil.which("mke2fs", path="/usr/sbin:/sbin") is None, reason="mke2fs is not installed")
def test_the_hosts_defaults_are_not_in_a_disk(tmp_path: Path) -> None:
    """Debian 13's mke2fs.conf asks for more than Debian 12's."""
    found = []
    for number, ext4 in enumerate(
        ("has_journal,extent,64bit", "metadata_csum_seed,bigalloc,resize_inode,quota")
    ):
        config, disk = tmp_path / f"conf-{number}", tmp_path / f"disk-{number}"
        config.write_text(
            f"[defaults]\nbase_features = sparse_super\n[fs_types]\next4 = {{\nfeatures = {ext4}\n}}\n"
        )
        with open(disk, "wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(finalize_mke2fs(str(disk)), check=True, env={"MKE2FS_CONFIG": str(config)})
        with open(disk, "rb") as file:
            file.seek(1024 + 0x5C)  # compatible, incompatible, read-only compatible (ext4's superblock)
            found.append(struct.unpack("<III", file.read(12)))
    assert found[0] == found[1]
    assert 0 == found[0][0] & 0x10  # no resize_inode
