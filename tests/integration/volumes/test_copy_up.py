"""Copy-up from layers with the kernel's own overlay.  Needs root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.errors import InvalidRequest
from insula.system.mounts import mount_points
from insula.volumes.copy_up import copy_up

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


async def test_what_the_image_shows_is_what_is_copied(tmp_path: Path) -> None:
    low, high, volume, scratch = (tmp_path / name for name in ("low", "high", "volume", "scratch"))
    (low / "data/sub").mkdir(parents=True)
    (low / "data/old").write_text("old")
    (low / "data/sub/deep").write_text("deep")
    os.chown(low / "data/sub/deep", 1000, 1000)
    os.chmod(low / "data/sub", 0o700)
    (high / "data").mkdir(parents=True)
    os.chmod(high / "data", 0o750)
    (high / "data/new").write_text("new")
    os.mknod(high / "data/old", 0o600 | 0o020000, os.makedev(0, 0))  # a whiteout
    volume.mkdir()
    scratch.mkdir()
    layers = [str(high), str(low)]
    assert await copy_up(layers, "/data", str(volume), scratch=str(scratch))
    assert sorted(os.listdir(volume)) == ["new", "sub"]
    assert (volume / "sub/deep").stat().st_uid == 1000
    assert (volume / "sub").stat().st_mode & 0o777 == 0o700
    assert volume.stat().st_mode & 0o777 == 0o750
    assert os.listdir(scratch) == []
    assert mount_points(str(scratch)) == ()
    assert not await copy_up(layers, "/data", str(volume), scratch=str(scratch))  # it is not empty now


async def test_one_layer_and_symlinks(tmp_path: Path) -> None:
    layer, volume = tmp_path / "layer", tmp_path / "volume"
    (layer / "srv/data").mkdir(parents=True)
    (layer / "srv/data/file").write_text("x")
    (layer / "var").symlink_to("srv")
    volume.mkdir()
    assert await copy_up([str(layer)], "/var/data", str(volume), scratch=str(tmp_path))
    assert os.listdir(volume) == ["file"]
    assert mount_points(str(tmp_path)) == ()


async def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "volume").mkdir()
    volume = str(tmp_path / "volume")
    assert not await copy_up([str(tmp_path / "layer")], "/none", volume, scratch=str(tmp_path))


async def test_a_file_is_no_place_for_a_volume(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/file").write_text("")
    (tmp_path / "layer/link").symlink_to("file")
    (tmp_path / "volume").mkdir()
    for path in ("/file", "/link"):
        with pytest.raises(
            InvalidRequest, match=f"cannot mount volume over existing file, file exists {path}"
        ):
            await copy_up([str(tmp_path / "layer")], path, str(tmp_path / "volume"), scratch=str(tmp_path))
    assert mount_points(str(tmp_path)) == ()
