"""cp, diff, export and commit on a real overlay."""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from insula.errors import InvalidRequest, NotFound
from insula.model.files import ChangeKind
from insula.system import mounts, tree

pytestmark = pytest.mark.integration


class Overlay:
    def __init__(self, path: Path) -> None:
        self.lowers = [str(path / "top"), str(path / "base")]
        self.upper, self.merged = str(path / "upper"), str(path / "merged")
        for name in (*self.lowers, self.upper, self.merged, str(path / "work")):
            os.mkdir(name)
        base, top = path / "base", path / "top"
        for name in ("etc/passwd", "etc/gone", "dir/a", "dir/b", "deep/er/x"):
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_text(name)
        (top / "etc").mkdir()
        (top / "etc/passwd").write_text("from the top")
        mounts.mount_overlay(self.merged, self.lowers, upper=self.upper, work=str(path / "work"))

    def __truediv__(self, name: str) -> Path:
        return Path(self.merged, name)

    def changes(self) -> dict[str, str]:
        return {c.path: ChangeKind(c.kind).name[0] for c in tree.changes(self.upper, self.lowers)}


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    made = Overlay(tmp_path)
    yield made
    mounts.umount(made.merged)


async def _all(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def _members(pieces: AsyncIterator[bytes]) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(await _all(pieces))) as archive:
        return {member.name: member for member in archive.getmembers()}


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 5000):
        yield data[at : at + 5000]


def _tar(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid = len(data), 1234
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_fresh_instance_has_no_changes(overlay: Overlay) -> None:
    assert overlay.changes() == {}
    (overlay / "etc/passwd").read_text()
    assert overlay.changes() == {}


def test_changes_as_docker_tells_them(overlay: Overlay) -> None:
    (overlay / "etc/passwd").write_text("changed")
    (overlay / "etc/gone").unlink()
    (overlay / "etc/new").write_text("new")
    shutil.rmtree(overlay / "dir")
    (overlay / "dir").mkdir()
    (overlay / "dir/b").write_text("again")
    shutil.rmtree(overlay / "deep")
    (overlay / "made/then").mkdir(parents=True)
    (overlay / "made/then").rmdir()
    assert overlay.changes() == {
        "/deep": "D",
        "/dir": "M",
        "/dir/a": "D",
        "/dir/b": "M",
        "/etc": "M",
        "/etc/gone": "D",
        "/etc/new": "A",
        "/etc/passwd": "M",
        "/made": "A",
    }


async def test_a_layer_has_whiteouts_and_opaque_marks(overlay: Overlay) -> None:
    (overlay / "etc/gone").unlink()
    shutil.rmtree(overlay / "dir")
    (overlay / "dir").mkdir()
    (overlay / "f").write_text("x")
    os.link(overlay / "f", overlay / "g")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(overlay / "socket"))
    found = await _members(tree.layer(overlay.upper))
    assert sorted(found) == ["dir", "dir/.wh..wh..opq", "etc", "etc/.wh.gone", "f", "g"]
    assert (found["g"].type, found["g"].linkname) == (tarfile.LNKTYPE, "f")


async def test_export_is_the_whole_root_without_mounts(overlay: Overlay, tmp_path: Path) -> None:
    (overlay / "proc").mkdir()
    mounts.mount("tmpfs", str(overlay / "proc"), "tmpfs")
    try:
        (overlay / "proc/inside").write_text("x")
        found = await _members(tree.export(overlay.merged))
    finally:
        mounts.umount(str(overlay / "proc"))
    assert "proc" in found
    assert "proc/inside" not in found
    assert {"etc/passwd", "dir/a", "deep/er/x"} < set(found)
    assert not any(name.startswith(("/", "./")) for name in found)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/deep/er", ["er", "er/x"]),
        ("/deep/er/", ["er", "er/x"]),
        ("/deep/er/.", [".", "./x"]),
        ("deep/er/x", ["x"]),
        ("/link", ["link"]),
        ("/link/", ["link", "link/x"]),
        ("/link/x", ["x"]),
    ],
)
async def test_members_are_named_as_docker_names_them(overlay: Overlay, path: str, names: list[str]) -> None:
    (overlay / "link").symlink_to("/deep/er")
    assert sorted(await _members(tree.get(overlay.merged, path))) == names


async def test_symlinks_are_resolved_inside_the_root(overlay: Overlay) -> None:
    (overlay / "abs").symlink_to("/etc")
    (overlay / "up").symlink_to("../../../../../../../etc")
    for name in ("abs", "up"):
        found = await _members(tree.get(overlay.merged, f"/{name}/passwd"))
        assert found["passwd"].size == len("from the top")
        assert tree.stat(overlay.merged, f"/{name}/passwd").size == len("from the top")
        assert tree.stat(overlay.merged, f"/{name}").link_target == "/etc"
    await tree.put(overlay.merged, "/up", _pieces(_tar(new=b"inside")))
    assert (overlay / "etc/new").read_text() == "inside"
    assert not os.path.exists("/etc/new")


def test_links_in_what_is_mounted_are_told_as_they_are_inside(overlay: Overlay) -> None:
    for name, text, told in (
        ("rel", "etc/passwd", "/vol/etc/passwd"),
        ("chain", "rel", "/vol/etc/passwd"),
        ("gone", "nothing", "/vol/nothing"),
        ("abs", "/etc", "/etc"),
        ("back", "/vol/deep", "/vol/deep"),
        ("out", "../srv", "/srv"),
    ):
        (overlay / name).symlink_to(text)
        assert told == tree.stat(overlay.merged, f"/{name}", at="/vol").link_target


def test_stat_has_go_modes(overlay: Overlay) -> None:
    os.chmod(overlay / "deep", 0o1777)
    assert tree.stat(overlay.merged, "/deep").mode == (1 << 31) | (1 << 20) | 0o777
    assert tree.stat(overlay.merged, "/").name == "/"
    os.mkfifo(overlay / "pipe")
    assert tree.stat(overlay.merged, "/pipe").mode & 1 << 25


@pytest.mark.parametrize("path", ["/nope", "/etc/passwd/x", "/" + "n" * 300, "/a\0b"])
async def test_what_is_not_there(overlay: Overlay, path: str) -> None:
    with pytest.raises(InvalidRequest if path.startswith("/etc/passwd/") else NotFound):
        tree.stat(overlay.merged, path)
    if "\0" not in path:
        with pytest.raises(NotFound):
            await _all(tree.get(overlay.merged, path))
        with pytest.raises(NotFound):
            await tree.put(overlay.merged, path, _pieces(_tar(f=b"")))


async def test_put_into_a_file_is_refused(overlay: Overlay) -> None:
    with pytest.raises(InvalidRequest, match="not a directory"):
        await tree.put(overlay.merged, "/etc/passwd", _pieces(_tar(f=b"")))


async def test_put_keeps_the_owner_or_takes_the_one_given(overlay: Overlay) -> None:
    await tree.put(overlay.merged, "/", _pieces(_tar(f=b"x")))
    assert os.lstat(overlay / "f").st_uid == 1234
    await tree.put(overlay.merged, "/", _pieces(_tar(f=b"x")), owner=(5, 6))
    assert (os.lstat(overlay / "f").st_uid, os.lstat(overlay / "f").st_gid) == (5, 6)


async def test_put_can_refuse_to_change_a_directory_into_a_file(overlay: Overlay) -> None:
    with pytest.raises(InvalidRequest, match='cannot overwrite directory "/dir" with non-directory "/dir"'):
        await tree.put(overlay.merged, "/", _pieces(_tar(dir=b"x")), no_overwrite_dir=True)
    assert (overlay / "dir/a").exists()
    await tree.put(overlay.merged, "/", _pieces(_tar(dir=b"x")))
    assert (overlay / "dir").read_text() == "x"


@pytest.mark.parametrize("data", [_tar(**{"../evil": b"x"}), _tar(f=b"x" * 5000)[:2000], b"no tar" * 500])
async def test_hostile_archives_are_the_callers_fault(overlay: Overlay, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        await tree.put(overlay.merged, "/etc", _pieces(data))
    assert not (tmp_path / "evil").exists()
    assert not (overlay / "evil").exists()


async def test_an_upload_that_breaks_off_is_raised(overlay: Overlay) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield _tar(f=b"x" * 100_000)[:5000]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await tree.put(overlay.merged, "/", broken())


async def test_a_reader_that_stops_early_ends_the_child(overlay: Overlay) -> None:
    (overlay / "big").write_bytes(os.urandom(5 << 20))
    children = Path("/proc/self/task", str(os.getpid()), "children")
    before = set(children.read_text().split())  # other tests' daemons
    async with aclosing(tree.export(overlay.merged)) as pieces:
        await anext(pieces)
        assert set(children.read_text().split()) > before
    assert set(children.read_text().split()) <= before


async def test_what_was_committed_unpacks_to_the_same(overlay: Overlay, tmp_path: Path) -> None:
    (overlay / "f").write_bytes(b"x" * 100_000)
    os.setxattr(overlay / "f", "user.note", b"\0binary=\n")
    os.chmod(overlay / "f", 0o4711)
    (overlay / ("long" * 40)).mkdir()
    (overlay / ("long" * 40) / "é").symlink_to("t" * 200)
    other = tmp_path / "other"
    other.mkdir()
    await tree.put(str(other), "/", tree.export(overlay.merged))
    assert (other / "f").read_bytes() == b"x" * 100_000
    assert os.getxattr(other / "f", "user.note") == b"\0binary=\n"
    assert os.lstat(other / "f").st_mode == os.lstat(overlay / "f").st_mode
    assert os.readlink(other / ("long" * 40) / "é") == "t" * 200
