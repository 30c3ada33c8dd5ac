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

from insula.system.disk_file import copy_into, copy_sparse, finalize_mke2fs, make_like

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
