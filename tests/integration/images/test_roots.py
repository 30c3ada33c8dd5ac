"""Roots on the real kernel: overlays and disks.  Everything that is mounted is unmounted again."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.errors import Failure
from insula.images.content import ContentStore
from insula.images.layers import Layers
from insula.images.roots import Roots
from insula.model.image import Image, ImageConfig, Platform
from insula.system import mounts
from integration.images.archives import Builder, digest_of, stored

pytestmark = pytest.mark.integration

_BASE = (
    Builder()
    .directory("etc")
    .add("etc/passwd", b"root", mode=0o600, uid=1, mtime=1_700_000_000)
    .add("etc/gone", b"x")
    .directory("dir")
    .add("dir/old", b"x")
    .link("etc/hard", "etc/passwd")
    .done()
)
_TOP = Builder().add("etc/.wh.gone").add("dir/.wh..wh..opq").add("dir/new", b"y").add("pure/.wh.stray").done()


class Place:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = ContentStore(str(path / "images"))
        self.layers = Layers(str(path / "images"), self.content)
        self.roots = Roots(str(path / "images"), str(path / "instances"), str(path / "run"))

    async def image(self, *layers: bytes) -> Image:
        for data in layers:
            await self.layers.unpack(blob=stored(self.content, data), diff_id=digest_of(data))
        return Image(
            id="sha256:" + "0" * 64,
            config=ImageConfig(),
            platform=Platform(),
            diff_ids=tuple(digest_of(data) for data in layers),
            layers=(),
        )


_EVERYWHERE = {".dockerenv", "dev", "etc", "proc", "sys"}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    yield Place(tmp_path)
    left = mounts.mount_points(str(tmp_path))
    mounts.umount_below(str(tmp_path))
    assert left == ()


async def test_an_instance_sees_the_layers_merged_and_writes_beside_them(place: Place) -> None:
    image = await place.image(_BASE, _TOP)
    root = await place.roots.make_directory(image, "i1")
    merged = Path(root.merged)
    assert sorted(set(os.listdir(merged)) - _EVERYWHERE) == ["dir", "pure"]
    assert sorted(os.listdir(merged / "etc")) == [
        "hard",
        "hostname",
        "hosts",
        "mtab",
        "passwd",
        "resolv.conf",
    ]
    assert os.listdir(merged / "dir") == ["new"]
    assert stat.S_IMODE(os.stat(merged).st_mode) == 0o755
    (merged / "etc/passwd").write_text("changed")
    assert Path(place.layers.path(digest_of(_BASE)), "etc/passwd").read_text() == "root"
    await place.roots.remove("i1")
    await place.roots.remove("i1")
    assert os.listdir(place.path / "instances/i1") == []
    assert os.listdir(place.path / "run/roots") == []


async def test_mounting_again_keeps_what_was_written(place: Place) -> None:
    image = await place.image(_BASE)
    for name, volatile in (("plain", False), ("volatile", True)):
        root = await place.roots.make_directory(image, name, volatile=volatile)
        Path(root.merged, "new").write_text("kept")
        await place.roots.unmount(root)
        await place.roots.unmount(root)
        assert not mounts.is_mounted(root.merged)
        await place.roots.mount(root)
        await place.roots.mount(root)
        assert mounts.mount_points(root.merged) == (root.merged,)
        assert Path(root.merged, "new").read_text() == "kept"
        await place.roots.remove(name)


async def test_a_reboot_forgets_mount_points_and_nothing_else(place: Place) -> None:
    image = await place.image(_BASE)
    root = await place.roots.make_directory(image, "i1")
    Path(root.merged, "new").write_text("kept")
    await place.roots.unmount(root)
    os.removedirs(root.merged)
    again = Roots(str(place.path / "images"), str(place.path / "instances"), str(place.path / "run"))
    await again.mount(root)
    assert Path(root.merged, "new").read_text() == "kept"
    await again.remove("i1")


async def test_many_layers_and_repeated_ones(place: Place) -> None:
    """More than a page of mount options, and the same layer twice."""
    image = await place.image()
    diff_ids = [digest_of(b"%d" % n) for n in range(120)]
    for n, diff_id in enumerate(diff_ids):
        os.mkdir(place.layers.path(diff_id))
        Path(place.layers.path(diff_id), f"f{n}").touch()
    image = dataclasses.replace(image, diff_ids=(*diff_ids, diff_ids[3], diff_ids[3]))
    root = await place.roots.make_directory(image, "i1")
    assert len(set(os.listdir(root.merged)) - _EVERYWHERE) == 120
    await place.roots.remove("i1")


async def test_an_image_without_layers_is_a_root_of_what_every_one_has(place: Place) -> None:
    root = await place.roots.make_directory(await place.image(), "i1")
    assert set(os.listdir(root.merged)) == _EVERYWHERE
    assert os.readlink(f"{root.merged}/etc/mtab") == "/proc/mounts"
    assert stat.S_IMODE(os.stat(f"{root.merged}/.dockerenv").st_mode) == 0o755
    await place.roots.remove("i1")
    disk = await place.roots.make_disk(await place.image(), "v1", size_gib=1)
    assert {} == await asyncio.to_thread(_on_disk, disk.image_disk, place.path / "mnt")
    await place.roots.remove("v1")


async def test_odd_characters_in_the_data_root(tmp_path: Path) -> None:
    place = Place(tmp_path / 'a,b:c d\\e"')
    root = await place.roots.make_directory(await place.image(_BASE, _TOP), "i1")
    assert mounts.is_mounted(root.merged)
    assert Path(root.merged, "dir/new").exists()
    await place.roots.remove("i1")
    assert mounts.mount_points(str(tmp_path)) == ()


def test_a_data_root_on_an_overlay_is_said(tmp_path: Path) -> None:
    """As in a container of another engine: the kernel lays no overlay upon one."""
    for name in ("lower", "upper", "work", "there"):
        (tmp_path / name).mkdir()
    there = tmp_path / "there"
    mounts.mount_overlay(
        str(there), [str(tmp_path / "lower")], upper=str(tmp_path / "upper"), work=str(tmp_path / "work")
    )
    try:
        for name in ("lower", "upper", "work", "merged"):
            (there / name).mkdir()
        with pytest.raises(Failure, match=r"/there/upper is on overlay .*: the data root belongs on ext4"):
            mounts.mount_overlay(
                str(there / "merged"),
                [str(there / "lower")],
                upper=str(there / "upper"),
                work=str(there / "work"),
            )
    finally:
        mounts.umount(str(there))


async def test_a_missing_layer_is_said_and_nothing_is_left(place: Place) -> None:
    image = await place.image(_BASE)
    await place.layers.remove(digest_of(_BASE))
    with pytest.raises(Failure, match="is not unpacked"):
        await place.roots.make_directory(image, "i1")
    assert os.listdir(place.path / "instances") == []


async def test_a_directory_root_takes_few_milliseconds(place: Place) -> None:
    image = await place.image(_BASE, _TOP)
    loop = asyncio.get_running_loop()
    taken = []
    for turn in range(10):
        begin = loop.time()
        await place.roots.make_directory(image, f"i{turn}")
        taken.append(loop.time() - begin)
        await place.roots.remove(f"i{turn}")
    assert min(taken) < 0.003


def _on_disk(disk: str, at: Path) -> dict[str, str]:
    """What an image disk shows, read through the kernel's erofs."""
    at.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", disk, str(at)], check=True)
    try:
        shown = {}
        for directory, names, files in os.walk(at):
            for name in [*names, *files]:
                path = os.path.join(directory, name)
                found = os.lstat(path)
                shown[os.path.relpath(path, at)] = (
                    f"{found.st_mode:o} {found.st_uid} {found.st_nlink} {int(found.st_mtime)}"
                )
                assert not any(x.startswith("trusted.") for x in os.listxattr(path))
        return shown
    finally:
        subprocess.run(["umount", str(at)], check=True)


async def test_an_image_disk_has_the_layers_merged_without_overlayfs_marks(place: Place) -> None:
    image = await place.image(_BASE, _TOP)
    root = await place.roots.make_disk(image, "v1", size_gib=2)
    shown = await asyncio.to_thread(_on_disk, root.image_disk, place.path / "mnt")
    assert sorted(shown) == ["dir", "dir/new", "etc", "etc/hard", "etc/passwd", "pure"]
    assert shown["etc/passwd"] == shown["etc/hard"] == "100600 1 2 1700000000"
    assert os.listdir(place.path / "images/tmp") == []
    await place.roots.remove("v1")
    assert os.listdir(place.path / "instances/v1") == []
    assert os.path.exists(root.image_disk)


async def test_a_single_layer_with_stray_whiteouts(place: Place) -> None:
    root = await place.roots.make_disk(await place.image(_TOP), "v1", size_gib=1)
    shown = await asyncio.to_thread(_on_disk, root.image_disk, place.path / "mnt")
    assert sorted(shown) == ["dir", "dir/new", "etc", "pure"]


async def test_many_who_want_a_disk_at_once_get_one(place: Place) -> None:
    image = await place.image(_BASE)
    begun = []

    def progress(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        begun.append(status)

    made = await asyncio.gather(
        *(place.roots.make_disk(image, f"v{n}", size_gib=1, progress=progress) for n in range(5))
    )
    assert len({root.image_disk for root in made}) == 1
    assert len({root.upper_disk for root in made}) == 5
    assert begun[-1] == "Disk built"
    assert sorted(n.rpartition(".")[2] for n in os.listdir(place.path / "images/disks")) == ["erofs", "ext4"]


async def test_disks_that_no_image_needs_are_swept(place: Place) -> None:
    image = await place.image(_BASE, _TOP)
    disks = place.roots.disks
    root = await place.roots.make_disk(image, "v1", size_gib=1)
    assert disks.sweep([image.diff_ids]) == 0
    assert disks.sweep([]) > 0
    assert not os.path.exists(root.image_disk)
    await place.roots.remove("v1")
    again = await place.roots.make_disk(image, "v1", size_gib=1)
    assert again.image_disk == root.image_disk
    assert os.path.exists(again.image_disk)


async def test_an_upper_disk_is_a_sound_empty_ext4(place: Place) -> None:
    root = await place.roots.make_disk(await place.image(_BASE), "v1", size_gib=10)
    found = os.stat(root.upper_disk)
    assert found.st_size == 10 << 30
    assert found.st_blocks * 512 < 4 << 20
    assert stat.S_IMODE(found.st_mode) == 0o600
    checked = await asyncio.to_thread(
        subprocess.run, ["e2fsck", "-fn", root.upper_disk], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
