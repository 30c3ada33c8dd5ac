"""Layers that want more than to be unpacked: refused or made harmless, nothing half stored."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from insula.errors import CorruptData, DiskFull
from insula.images.content import ContentStore
from insula.images.layers import Layers
from insula.system import mounts, tar
from insula.system.files import remove_tree
from integration.images.archives import Builder, digest_of, stored

pytestmark = pytest.mark.integration


class Target:
    """A place to unpack into, with something beside it that must stay as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = ContentStore(str(path / "images"))
        self.layers = Layers(str(path / "images"), self.content)
        (path / "secret").write_text("untouched")
        (path / "outside").mkdir()

    async def unpack(self, data: bytes, packed: bytes | None = None) -> Path:
        await self.layers.unpack(blob=stored(self.content, packed or data), diff_id=digest_of(data))
        return Path(self.layers.path(digest_of(data)))

    def check_untouched(self) -> None:
        assert (self.path / "secret").read_text() == "untouched"
        assert os.stat(self.path / "secret").st_nlink == 1
        assert os.listdir(self.path / "outside") == []
        assert sorted(os.listdir(self.path)) == ["images", "outside", "secret"]

    def check_nothing_kept(self) -> None:
        self.check_untouched()
        assert self.layers.diff_ids() == ()
        assert os.listdir(self.path / "images/tmp") == []
        assert [n for n in os.listdir(self.path / "images/layers") if n != "empty"] == []


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/../evil", "../../../../../../tmp/insula-evil", "..", "x/../.."]
)
async def test_names_that_climb_out_are_refused(target: Target, name: str) -> None:
    with pytest.raises(CorruptData, match="outside its root"):
        await target.unpack(Builder().add("good", b"x").add(name, b"evil").done())
    target.check_nothing_kept()


async def test_absolute_names_are_inside(target: Target) -> None:
    name = f"{target.path}/outside/evil"
    root = await target.unpack(Builder().add(name, b"x").done())
    assert (root / name[1:]).read_bytes() == b"x"
    target.check_untouched()


@pytest.mark.parametrize("up", ["/", "../../../../../../../../", "/proc/self/root/", "/proc/1/root/"])
async def test_symlinks_do_not_lead_out(target: Target, up: str) -> None:
    """Through a link to the outside, a write either stays inside the layer or is refused."""
    where = f"{target.path}/outside"[1:]
    data = Builder().symlink("link", up + where).add("link/evil", b"x").done()
    try:
        await target.unpack(data)
    except CorruptData:
        target.check_nothing_kept()
    target.check_untouched()


async def test_a_file_does_not_overwrite_through_a_symlink(target: Target) -> None:
    secret = f"{target.path}/secret"
    data = Builder().symlink("s", secret).add("s", b"evil").symlink("t", secret).directory("t").done()
    root = await target.unpack(data)
    assert (root / "s").read_bytes() == b"evil"
    target.check_untouched()


@pytest.mark.parametrize("prefix", ["", "../../../../../../../.."])
async def test_hard_links_to_the_outside_are_refused(target: Target, prefix: str) -> None:
    data = Builder().link("stolen", f"{prefix}{target.path}/secret").done()
    with pytest.raises(CorruptData):
        await target.unpack(data)
    target.check_nothing_kept()


async def test_a_hard_link_through_a_symlink_stays_inside(target: Target) -> None:
    data = Builder().symlink("out", str(target.path)).link("stolen", "out/secret").add("stolen", b"x").done()
    with pytest.raises(CorruptData, match="hard link"):
        await target.unpack(data)
    target.check_nothing_kept()


async def test_a_bomb_is_refused_long_before_it_has_gone_off(target: Target) -> None:
    """About 10 GiB of zeros, in two layers of gzip members."""
    head = tar.header(tar.Member(name=b"zeros", size=10 << 30))
    mebi = gzip.compress(bytes(64 << 20), 9)
    packed = gzip.compress(head) + mebi * 160
    with pytest.raises((CorruptData, DiskFull)):
        await target.layers.unpack(blob=stored(target.content, packed), diff_id="sha256:" + "0" * 64)
    target.check_nothing_kept()


async def test_a_file_of_impossible_size_is_refused(target: Target) -> None:
    head = tar.header(tar.Member(name=b"huge", size=1 << 50))
    with pytest.raises((CorruptData, DiskFull)):
        await target.unpack(head + b"x" * 512)
    target.check_nothing_kept()


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, lambda d: d], ids=["gzip", "zstd", "plain"])
async def test_cut_off_streams_are_refused(target: Target, pack) -> None:  # type: ignore[no-untyped-def]
    data = Builder().add("a", os.urandom(50_000)).add("b", os.urandom(50_000)).done()
    packed = pack(data)
    for length in (20, len(packed) // 2):
        with pytest.raises(CorruptData, match="cut off"):
            await target.layers.unpack(blob=stored(target.content, packed[:length]), diff_id=digest_of(data))
    target.check_nothing_kept()


@pytest.mark.parametrize("data", [b"not a tar at all" * 64, b"\x1f\x8bnot gzip either", os.urandom(4096)])
async def test_what_is_no_archive_is_refused(target: Target, data: bytes) -> None:
    with pytest.raises(CorruptData):
        await target.unpack(data)
    target.check_nothing_kept()


async def test_overlayfs_own_nodes_cannot_be_smuggled_in(target: Target) -> None:
    whiteout = Builder().add("w", kind=tarfile.CHRTYPE, devmajor=0, devminor=0).done()
    with pytest.raises(CorruptData, match="whiteout"):
        await target.unpack(whiteout)
    redirect = Builder().directory("d", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"}).done()
    root = await target.unpack(redirect)
    assert os.listxattr(root / "d") == []


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.."])
async def test_whiteouts_of_nothing_are_refused(target: Target, name: str) -> None:
    with pytest.raises(CorruptData, match="whiteout of nothing"):
        await target.unpack(Builder().add(name).done())
    target.check_nothing_kept()


async def test_a_whiteout_through_a_symlink_stays_inside(target: Target) -> None:
    data = Builder().symlink("link", str(target.path)).add("link/.wh.secret").done()
    with pytest.raises(CorruptData):
        await target.unpack(data)
    target.check_nothing_kept()


async def test_an_opaque_mark_through_a_symlink_stays_inside(target: Target) -> None:
    """The mark is set by the parent, which is not confined."""
    data = Builder().directory("real").symlink("link", "/real").add("link/.wh..wh..opq").done()
    root = await target.unpack(data)
    assert os.getxattr(root / "real", "trusted.overlay.opaque") == b"y"
    assert "trusted.overlay.opaque" not in os.listxattr(target.path / "outside")


@pytest.mark.parametrize("name", ["n" * 300, "d/" * 3000 + "f"])
async def test_names_that_are_too_long_are_refused(target: Target, name: str) -> None:
    with pytest.raises(CorruptData, match=r"cannot be made|a name of \d+ bytes"):
        await target.unpack(Builder().add(name, b"x").done())
    target.check_nothing_kept()


async def test_a_very_deep_tree_can_be_removed_again(target: Target) -> None:
    """Deeper than Python's stack, made through symlinks."""
    deep = "d/" * 600
    data = Builder().directory(deep).symlink("link", deep).add("link/" + deep + "f", b"x").done()
    root = await target.unpack(data)
    remove_tree(str(root))
    assert not root.exists()


async def test_odd_owners_and_times_do_not_crash(target: Target) -> None:
    good = Builder().add("f", b"x", uid=2**32 - 2, gid=2**32 - 2).done()
    root = await target.unpack(good)
    assert os.lstat(root / "f").st_uid == 2**32 - 2
    with pytest.raises(CorruptData):
        await target.unpack(Builder().add("f", b"x", pax_headers={"uid": str(2**63)}).done())
    with pytest.raises(CorruptData):
        await target.unpack(Builder().add("f", b"x", pax_headers={"mtime": "9" * 19}).done())


async def test_duplicate_entries_do_not_confuse(target: Target) -> None:
    data = Builder()
    for turn in range(50):
        data.add("same", b"%d" % turn).directory("same").symlink("same", "/")
    root = await target.unpack(data.add("same", b"last").done())
    assert (root / "same").read_bytes() == b"last"
    target.check_untouched()


async def test_device_numbers_and_setuid_stay_what_they_are_inside(target: Target) -> None:
    data = Builder().add("kmem", kind=tarfile.CHRTYPE, devmajor=1, devminor=2, mode=0o666).done()
    root = await target.unpack(data)
    assert stat.S_ISCHR(os.lstat(root / "kmem").st_mode)
    for above in root.parents:
        if above.name == "layers":
            assert stat.S_IMODE(os.stat(above).st_mode) == 0o700  # nobody but root gets that far
            break


async def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    """On a small file system of its own."""
    small = tmp_path / "small"
    small.mkdir()
    mounts.mount("tmpfs", str(small), "tmpfs", 0, "size=80m")
    try:
        target = Target(small)
        data = Builder().add("f", os.urandom(1 << 20) * 30).done()
        with pytest.raises(DiskFull):
            await target.unpack(data)
        target.check_nothing_kept()
    finally:
        mounts.umount(str(small))
