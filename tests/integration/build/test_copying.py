"""COPY, ADD, WORKDIR and squash as layers, with real confined children and real overlays."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from insula.build.copying import Copying, CopyOrder, Item
from insula.errors import CorruptData, InvalidRequest, NotFound

pytestmark = pytest.mark.integration

TIME = 1_600_000_000


class Bench:
    """A context, an image of two layers, and what a step makes of them."""

    def __init__(self, root: Path) -> None:
        self.context, self.upper, self.lower = root / "context", root / "upper", root / "lower"
        for directory in (self.context, self.upper, self.lower, root / "scratch", root / "empty"):
            directory.mkdir()
        self.copying = Copying(str(root / "scratch"), str(root / "empty"))
        self.scratch = root / "scratch"
        for name, text in {
            "etc/passwd": "root:x:0:0::/:\nuser:x:1000:1001::/:\n",
            "etc/group": "user:x:1001:\n",
        }.items():
            self.put(self.lower, name, text)
        self.put(self.lower, "usr/bin/tool", "tool")
        os.symlink("usr/bin", self.lower / "bin")
        os.symlink("/usr/bin/tool", self.lower / "tool")
        os.symlink("../../../../outside", self.lower / "up")
        os.chmod(self.lower / "etc", 0o751)
        os.chown(self.lower / "etc", 7, 8)
        self.put(self.upper, "srv/file", "file")
        for path in (self.lower, self.upper):
            for directory, _, _ in os.walk(path):
                os.utime(directory, (TIME, TIME))

    def put(self, root: Path, name: str, text: str | bytes = "", mode: int = 0o644) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        os.utime(path, (TIME, TIME))
        return path

    def order(self, *sources: str, target: str, add: bool = False, **fields: Any) -> CopyOrder:
        return CopyOrder(
            word="ADD" if add else "COPY",
            target=target,
            target_layers=(str(self.upper), str(self.lower)),
            roots=((str(self.context),),),
            items=tuple(Item(root=0, pattern=source, unpack=add) for source in sources),
            created_ns=TIME * 10**9,
            **fields,
        )

    async def layer(self, order: CopyOrder) -> dict[str, tarfile.TarInfo]:
        return members(await collected(self.copying.layer(order)))


async def collected(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def tar_of(*entries: tuple[str, Any], packed: str = "") -> bytes:
    """(name, text | None for a directory | ("link", target) | ("hard", target))"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{packed}") as tar:  # type: ignore[call-overload]
        for name, what in entries:
            member = tarfile.TarInfo(name)
            member.mtime, member.uid, member.gid = TIME, 5, 6
            if what is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o700
            elif isinstance(what, tuple):
                member.type = tarfile.SYMTYPE if what[0] == "link" else tarfile.LNKTYPE
                member.linkname = what[1]
            else:
                member.size = len(what)
            tar.addfile(member, io.BytesIO(what.encode()) if isinstance(what, str) else None)
    return buffer.getvalue()


async def test_where_files_go(bench: Bench) -> None:
    bench.put(bench.context, "a", "1")
    bench.put(bench.context, "d/b", "2")
    bench.put(bench.context, "d/e/c", "3", 0o755)
    cases = {
        ("a", "/x"): {"x"},
        ("a", "/x/"): {"x", "x/a"},
        ("a", "/srv"): {"srv", "srv/a"},
        ("a", "/"): {"a"},
        ("d", "/x"): {"x", "x/b", "x/e", "x/e/c"},
        ("d", "/"): {"b", "e", "e/c"},
        (".", "/x"): {"x", "x/a", "x/d", "x/d/b", "x/d/e", "x/d/e/c"},
        ("d/e/c", "/etc/y"): {"etc", "etc/y"},
        ("d/*", "/x/"): {"x", "x/b", "x/c"},
        ("*/e/[a-c]", "/x/"): {"x", "x/c"},
        ("/../a", "/x"): {"x"},
        ("a", "/bin/x"): {"usr", "usr/bin", "usr/bin/x"},
        ("a", "/bin"): {"usr", "usr/bin", "usr/bin/a"},
        ("a", "/tool"): {"usr", "usr/bin", "usr/bin/tool"},
        ("a", "/up/x"): {"outside", "outside/x"},
    }
    for (source, target), expected in cases.items():
        assert expected == set(await bench.layer(bench.order(source, target=target))), (source, target)
    assert os.listdir(bench.scratch) == []


async def test_attributes_of_what_is_copied_and_of_the_way(bench: Bench) -> None:
    bench.put(bench.context, "d/c", "3", 0o4755)
    os.chmod(bench.context / "d", 0o700)
    os.chown(bench.context / "d/c", 3, 4)
    os.chmod(bench.context / "d/c", 0o4755)
    found = await bench.layer(bench.order(".", target="/etc/new"))
    assert (0o751, 7, 8, TIME) == (found["etc"].mode, found["etc"].uid, found["etc"].gid, found["etc"].mtime)
    assert (0o755, 0, 0, TIME) == (found["etc/new"].mode, found["etc/new"].uid, 0, found["etc/new"].mtime)
    assert (0o700, 0o4755) == (found["etc/new/d"].mode, found["etc/new/d/c"].mode)
    assert (3, 4) == (
        found["etc/new/d/c"].uid,
        found["etc/new/d/c"].gid,
    )  # context: root by then; a stage: kept


@pytest.mark.parametrize(
    ("chown", "expected"),
    [
        ("user", (1000, 1001)),
        ("user:0", (1000, 0)),
        ("5", (5, 5)),
        ("5:user", (5, 1001)),
        ("1000", (1000, 1000)),
    ],
)
async def test_chown_by_the_image_s_own_names(bench: Bench, chown: str, expected: tuple[int, int]) -> None:
    bench.put(bench.context, "a", "1")
    found = await bench.layer(bench.order("a", target="/new/a", chown=chown))
    assert [expected, expected] == [(one.uid, one.gid) for one in found.values()]


async def test_mode_exclude_and_parents(bench: Bench) -> None:
    for name in ("d/a.txt", "d/b.o", "d/e/c.o", "d/e/c.txt"):
        bench.put(bench.context, name, name)
    found = await bench.layer(bench.order("d", target="/x", mode="640"))
    assert {0o640} == {one.mode for name, one in found.items() if name != "x"}
    found = await bench.layer(bench.order("d", target="/x", mode="go-rwx,u+X"))
    assert {0o600} == {one.mode for name, one in found.items() if "." in name}
    assert {0o700} == {one.mode for name, one in found.items() if name == "x/e"}
    found = await bench.layer(bench.order("d", target="/x", exclude=("**/*.o",)))
    assert {"x", "x/a.txt", "x/e", "x/e/c.txt"} == set(found)
    found = await bench.layer(bench.order("d", target="/x", exclude=("d/e", "!d/e/c.txt")))
    assert {"x", "x/a.txt", "x/b.o", "x/e", "x/e/c.txt"} == set(found)
    found = await bench.layer(bench.order("d/e/c.o", "d/./e", target="/x/", parents=True))
    assert {"x", "x/d", "x/d/e", "x/d/e/c.o", "x/e", "x/e/c.o", "x/e/c.txt"} == set(found)


async def test_link_does_not_follow_the_image_s_links(bench: Bench) -> None:
    bench.put(bench.context, "a", "1")
    assert {"bin", "bin/x"} == set(await bench.layer(bench.order("a", target="/bin/x", link=True)))


async def test_hard_links_stay_and_what_is_the_same_is_the_same(bench: Bench) -> None:
    bench.put(bench.context, "d/a", "1")
    os.link(bench.context / "d/a", bench.context / "d/b")
    os.symlink("/etc/passwd", bench.context / "d/l")
    order = bench.order("d", target="/x")
    found = await bench.layer(order)
    assert ("x/a", "/etc/passwd") == (found["x/b"].linkname, found["x/l"].linkname)
    once, digest = await collected(bench.copying.layer(order)), await bench.copying.digest(order)
    assert once == await collected(bench.copying.layer(order))
    os.utime(bench.context / "d/a", (1, 1))
    assert digest == await bench.copying.digest(order)  # times do not count for the cache
    assert once != await collected(bench.copying.layer(order))
    newest = replace(order, newest_ns=0)
    assert {0} == {one.mtime for name, one in (await bench.layer(newest)).items() if name != "x"}
    for change in (
        lambda: bench.put(bench.context, "d/a", "2"),
        lambda: os.chmod(bench.context / "d/a", 0o600),
    ):
        before = await bench.copying.digest(order)
        change()
        assert before != await bench.copying.digest(order)
    assert digest.startswith("dir:")


@pytest.mark.parametrize("packed", ["", "gz", "bz2", "xz"])
async def test_add_unpacks_archives(bench: Bench, packed: str) -> None:
    archive = tar_of(
        ("etc/new", "n"), ("d", None), ("d/l", ("link", "/etc")), ("d/h", ("hard", "etc/new")), packed=packed
    )
    bench.put(bench.context, "a.tar", archive)
    found = await bench.layer(bench.order("a.tar", target="/", add=True))
    assert {"etc", "etc/new", "d", "d/l", "d/h"} == set(found)
    assert (0o751, 7) == (
        found["etc"].mode,
        found["etc"].uid,
    )  # as the image has it, not as tar would make it
    assert (5, 6, 0o700) == (found["d"].uid, found["d"].gid, found["d"].mode)
    assert "etc/new" == found["d/h"].linkname
    assert {"x", "x/a.tar"} == set(await bench.layer(bench.order("a.tar", target="/x/")))
    owned = await bench.layer(bench.order("a.tar", target="/y", add=True, chown="9:9"))
    assert (9, 9) == (owned["y/d"].uid, owned["y/d"].gid)


async def test_an_archive_s_entries_go_through_the_image_s_links(bench: Bench) -> None:
    bench.put(
        bench.context, "a.tar", tar_of(("bin/new", "n"), ("up/x", "o"), ("l", ("link", "/srv")), ("l/y", "y"))
    )
    found = await bench.layer(bench.order("a.tar", target="/", add=True))
    assert {"usr", "usr/bin", "usr/bin/new", "outside", "outside/x", "l", "srv", "srv/y"} == set(found)
    found = await bench.layer(bench.order("a.tar", target="/in", add=True))
    inside = {"in/bin", "in/bin/new", "in/up", "in/up/x", "in/l", "in/srv", "in/srv/y"}
    assert {"in", *inside} == set(found)  # no link of an archive leads out of where that is unpacked


@pytest.mark.parametrize(
    "archive",
    [
        tar_of(("../x", "x")),
        tar_of(("a/../../x", "x")),
        tar_of((".wh.etc", "")),
        tar_of(("d/.wh..wh..opq", "")),
    ],
)
async def test_archives_that_mean_harm(bench: Bench, archive: bytes) -> None:
    bench.put(bench.context, "a.tar", archive)
    with pytest.raises((CorruptData, InvalidRequest)):
        await bench.layer(bench.order("a.tar", target="/", add=True))


async def test_links_in_the_context_lead_nowhere_else(bench: Bench, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for name, target in {
        "absolute": str(secret),
        "climbing": "../" * 20 + str(secret),
        "kernel": "/proc/self/environ",
        "dir": str(tmp_path),
    }.items():
        os.symlink(target, bench.context / name)
        with pytest.raises(InvalidRequest, match="file does not exist"):
            await bench.layer(bench.order(name, target="/x"))
    with pytest.raises(InvalidRequest, match="file does not exist"):
        await bench.layer(bench.order("dir/secret", target="/x"))
    os.symlink("loop", bench.context / "loop")
    with pytest.raises(InvalidRequest, match="too many levels"):
        await bench.layer(bench.order("loop", target="/x"))
    found = await bench.layer(bench.order(".", target="/x"))
    assert all(found[f"x/{name}"].issym() for name in ("absolute", "climbing", "kernel", "dir", "loop"))
    os.mkfifo(bench.context / "pipe")  # not opened: that would wait for ever
    assert (await bench.layer(bench.order("pipe", target="/x")))["x"].isfifo()


async def test_what_cannot_be_copied_is_said_in_docker_s_words(bench: Bench) -> None:
    bench.put(bench.context, "a", "1")
    bench.put(bench.context, "b", "1")
    cases: list[tuple[CopyOrder, str]] = [
        (
            bench.order("none", target="/x"),
            "COPY failed: file not found in build context or excluded by .dockerignore: stat none: file does not exist",
        ),
        (bench.order("none", target="/x", named_root=True), "COPY failed: stat none: file does not exist"),
        (bench.order("*.none", target="/x"), "COPY failed: no source files were specified"),
        (
            bench.order("a", "b", target="/x"),
            "When using COPY with more than one source file, the destination must be",
        ),
        (bench.order("a", target="/srv/file/x"), "/srv/file is not a directory"),
        (bench.order("a", target="/" + "x" * 300), "COPY failed: /xxx"),
        (
            bench.order("a", target="/x", chown="nobody"),
            "unable to convert uid/gid chown string to host mapping: can't find uid for user nobody: no such user: nobody",
        ),
    ]
    for order, expected in cases:
        with pytest.raises(InvalidRequest) as caught:
            await bench.copying.digest(order)
        assert caught.value.message.startswith(expected)


async def test_a_working_directory_is_made_when_it_is_not_there(bench: Bench) -> None:
    layers = (str(bench.upper), str(bench.lower))

    async def made(path: str) -> set[str]:
        pieces = bench.copying.directory(layers, path, created_ns=0, newest_ns=None)
        return set(members(await collected(pieces)))

    assert set() == await made("/srv")
    assert set() == await made("/bin")
    assert {"srv", "srv/a", "srv/a/b"} == await made("/srv/a/b")
    assert {"usr", "usr/bin", "usr/bin/x"} == await made("/bin/x")


async def test_finding_and_missing(bench: Bench) -> None:
    layers = (str(bench.upper), str(bench.lower))
    assert ("usr/bin", True) == await bench.copying.find(layers, "/bin")
    assert ("usr/bin/tool", False) == await bench.copying.find(layers, "/tool")
    with pytest.raises(NotFound):
        await bench.copying.find(layers, "/up")
    assert ["/run", "/run/x"] == await bench.copying.missing(layers, ["/run/x", "/bin/tool", "/srv"])


async def test_several_layers_as_one(bench: Bench, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    bench.put(whole, "etc/passwd", "changed")
    bench.put(whole, "new/x", "x")
    os.mknod(whole / "srv", 0o600 | stat.S_IFCHR, os.makedev(0, 0))  # overlayfs's mark of what is gone
    below = (str(bench.upper), str(bench.lower))
    found = members(await collected(bench.copying.difference((str(whole), *below), below)))
    assert {"etc", "etc/passwd", "new", "new/x", ".wh.srv"} == set(found)
    assert set() == set(members(await collected(bench.copying.difference(below, below))))
