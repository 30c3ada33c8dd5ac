"""Layers unpacked by the real confined child, onto the real file system."""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from insula.errors import CorruptData
from insula.images.content import ContentStore
from insula.images.layers import Layers
from integration.images.archives import Builder, digest_of, stored

pytestmark = pytest.mark.integration


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path / "images"))


@pytest.fixture
def layers(tmp_path: Path, content: ContentStore) -> Layers:
    return Layers(str(tmp_path / "images"), content)


async def _unpack(content: ContentStore, layers: Layers, data: bytes) -> Path:
    await layers.unpack(blob=stored(content, data), diff_id=digest_of(data))
    return Path(layers.path(digest_of(data)))


async def test_every_kind_of_entry(content: ContentStore, layers: Layers) -> None:
    data = (
        Builder()
        .directory("./", mode=0o755)
        .directory("d", mode=0o1777, uid=5, gid=6, mtime=1_000_000_000)
        .add("d/file", b"hello", mode=0o4755, uid=7, gid=8, pax_headers={"mtime": "1700000000.123456789"})
        .link("d/hard", "d/file")
        .symlink("d/soft", "/etc/shadow")
        .add("d/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        .add("d/disk", kind=tarfile.BLKTYPE, devmajor=7, devminor=250, mode=0o600)
        .add("d/pipe", kind=tarfile.FIFOTYPE, mode=0o640)
        .add("d/" + "n" * 200, b"long")
        .done()
    )
    root = await _unpack(content, layers, data)
    directory, file = os.lstat(root / "d"), os.lstat(root / "d/file")
    assert (directory.st_mode, directory.st_uid, directory.st_gid) == (stat.S_IFDIR | 0o1777, 5, 6)
    assert directory.st_mtime == 1_000_000_000
    assert (file.st_mode, file.st_uid, file.st_gid) == (stat.S_IFREG | 0o4755, 7, 8)
    assert file.st_mtime_ns == 1_700_000_000_123_456_789
    assert os.lstat(root / "d/hard").st_ino == file.st_ino
    assert os.readlink(root / "d/soft") == "/etc/shadow"
    assert os.lstat(root / "d/null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.lstat(root / "d/disk").st_mode)
    assert os.lstat(root / "d/pipe").st_mode == stat.S_IFIFO | 0o640
    assert (root / "d" / ("n" * 200)).read_bytes() == b"long"
    assert layers.size(digest_of(data)) == 9


async def test_xattrs_and_file_capabilities(content: ContentStore, layers: Layers) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    record = capability.decode("utf-8")
    data = (
        Builder()
        .add(
            "ping",
            b"x",
            mode=0o755,
            uid=3,
            pax_headers={
                "SCHILY.xattr.security.capability": record,
                "SCHILY.xattr.user.note": "a=b",
                "SCHILY.xattr.trusted.overlay.opaque": "y",
            },
        )
        .done()
    )
    root = await _unpack(content, layers, data)
    assert os.getxattr(root / "ping", "security.capability") == capability
    assert os.getxattr(root / "ping", "user.note") == b"a=b"
    assert "trusted.overlay.opaque" not in os.listxattr(root / "ping")


@pytest.mark.parametrize("pack", [lambda d: d, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
async def test_compressed_layers(content: ContentStore, layers: Layers, pack) -> None:  # type: ignore[no-untyped-def]
    data = Builder().add("f", b"x" * 3_000_000).done()
    told: list[tuple[str, str, int]] = []

    def progress(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        told.append((status, id, current))

    packed = pack(data)
    await layers.unpack(blob=stored(content, packed), diff_id=digest_of(data), progress=progress)
    assert Path(layers.path(digest_of(data)), "f").stat().st_size == 3_000_000
    assert told[-1] == ("Extracting", digest_of(packed)[7:19], len(packed))


def _is_whiteout(path: Path) -> bool:
    found = os.lstat(path)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


async def test_whiteouts_hide_lower_layers_only(content: ContentStore, layers: Layers) -> None:
    data = (
        Builder()
        .add(".wh.gone")
        .add("kept", b"ours")
        .add(".wh.kept")  # after it
        .add(".wh.early")  # before it
        .add("early", b"ours")
        .add(".wh.dir")
        .add("dir/new", b"in a directory that is new")
        .directory("old/opaque")
        .add("old/opaque/.wh..wh..opq")
        .add("late/.wh..wh..opq")
        .add("late/file", b"ours")
        .add(".wh..wh.plnk/1.2")
        .done()
    )
    root = await _unpack(content, layers, data)
    assert _is_whiteout(root / "gone")
    assert (root / "kept").read_bytes() == b"ours"
    assert (root / "early").read_bytes() == b"ours"
    for name in ("dir", "old/opaque", "late"):
        assert os.getxattr(root / name, "trusted.overlay.opaque") == b"y"
    assert "trusted.overlay.opaque" not in os.listxattr(root / "old")
    assert (root / "dir/new").exists()
    assert (root / "late/file").exists()


async def test_later_entries_replace_earlier_ones(content: ContentStore, layers: Layers) -> None:
    data = (
        Builder()
        .add("a", b"file")
        .directory("a")
        .add("a/inner", b"1")
        .add("a", b"file again")
        .symlink("link", "a")
        .add("link", b"not through the link")
        .directory("d", mode=0o700)
        .add("d/x", b"stays")
        .directory("d", mode=0o755)
        .done()
    )
    root = await _unpack(content, layers, data)
    assert (root / "a").read_bytes() == b"file again"
    assert not (root / "link").is_symlink()
    assert (root / "d/x").read_bytes() == b"stays"
    assert stat.S_IMODE(os.lstat(root / "d").st_mode) == 0o755


async def test_missing_parents_are_made(content: ContentStore, layers: Layers) -> None:
    root = await _unpack(content, layers, Builder().add("/a/./b//c/f", b"x").done())
    assert (root / "a/b/c/f").read_bytes() == b"x"
    assert stat.S_IMODE(os.lstat(root / "a/b").st_mode) == 0o755


async def test_one_layer_wanted_by_many_is_unpacked_once(content: ContentStore, layers: Layers) -> None:
    data = Builder().add("f", b"x").done()
    blob, begun = stored(content, data), 0

    def progress(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        nonlocal begun
        begun += current == 0

    await asyncio.gather(
        *(layers.unpack(blob=blob, diff_id=digest_of(data), progress=progress) for _ in range(5))
    )
    assert begun == 1
    assert layers.diff_ids() == (digest_of(data),)


async def test_a_removed_layer_is_gone(content: ContentStore, layers: Layers) -> None:
    data = Builder().add("d/f", b"x").done()
    root = await _unpack(content, layers, data)
    await layers.remove(digest_of(data))
    await layers.remove(digest_of(data))
    assert not root.exists()
    assert layers.diff_ids() == ()
    assert os.listdir(root.parent) == []


async def test_a_cancelled_unpack_leaves_nothing(
    content: ContentStore, layers: Layers, tmp_path: Path
) -> None:
    data = Builder().add("f", os.urandom(1 << 20) * 60).done()
    begun = asyncio.Event()

    def progress(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        if current:
            begun.set()

    work = asyncio.create_task(
        layers.unpack(blob=stored(content, data), diff_id=digest_of(data), progress=progress)
    )
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not layers.has(digest_of(data))
    assert os.listdir(tmp_path / "images/tmp") == []


async def test_what_a_crash_left_is_cleaned(content: ContentStore, layers: Layers, tmp_path: Path) -> None:
    os.makedirs(tmp_path / "images/tmp/half/deep")
    (tmp_path / "images/layers" / ("0" * 64 + ".size")).write_text("5")
    layers.clean()
    assert os.listdir(tmp_path / "images/tmp") == []
    assert layers.diff_ids() == ()


async def test_a_wrong_diff_id_is_refused(content: ContentStore, layers: Layers, tmp_path: Path) -> None:
    data = Builder().add("f", b"x").done()
    with pytest.raises(CorruptData, match="unpacked it has digest"):
        await layers.unpack(blob=stored(content, data), diff_id="sha256:" + "0" * 64)
    assert layers.diff_ids() == ()
    assert os.listdir(tmp_path / "images/tmp") == []
