"""`insula cp` out of an instance: the archive comes from there, and nothing of it lands elsewhere."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from insula.cli import copy as copying
from insula.errors import InvalidRequest


class Told:
    """A client whose daemon answers with one archive of the directory `x`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def request(self, *_: object, **__: object) -> Told:
        return self

    def pieces(self) -> list[bytes]:
        return iter([self._data])  # type: ignore[return-value]


def make_tar(*members: tuple[str, bytes, str]) -> bytes:
    """(name, kind, link) of each; files have an x in them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o777
            member.size = 1 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"x") if member.size else None)
    return out.getvalue()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(copying, "_stat", lambda *_: {"mode": 1 << 31, "linkTarget": ""})

    def run(*members: tuple[str, bytes, str]) -> Path:
        target = tmp_path / "target"
        target.mkdir(exist_ok=True)
        told = Told(make_tar(*members))
        copying._copy_out(told, "ref", "/x", str(target), False)  # type: ignore[arg-type]
        return target

    return run


DIR, FILE, LINK, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_what_is_copied_is_there(copy) -> None:  # type: ignore[no-untyped-def]
    target = copy(("x", DIR, ""), ("x/a", FILE, ""), ("x/b", HARD, "x/a"), ("x/c", LINK, "/etc"))
    assert b"x" == (target / "x/a").read_bytes()
    assert os.path.samefile(target / "x/a", target / "x/b")
    assert "/etc" == os.readlink(target / "x/c")


@pytest.mark.parametrize(
    "members",
    [
        (("x", DIR, ""), ("x/way", LINK, "OUT"), ("x/way", DIR, "")),
        (("x", DIR, ""), ("x/way", LINK, "OUT"), ("x/way/in", FILE, "")),
        (("x", DIR, ""), ("x/way", LINK, "OUT"), ("x/way/in", DIR, "")),
        (("x/../../out/in", FILE, ""),),
        (("x", DIR, ""), ("x/hard", HARD, "../out/kept")),
        (("x", DIR, ""), ("x/..", DIR, "")),
    ],
)
def test_nothing_outside_changes(copy, tmp_path: Path, members) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    out.mkdir(mode=0o700)
    (out / "kept").write_text("kept")
    os.utime(out, (1, 1))
    with pytest.raises(InvalidRequest, match=r"not safe|cannot overwrite"):
        copy(*((name, kind, link.replace("OUT", str(out))) for name, kind, link in members))
    assert (0o40700, 1.0) == (out.stat().st_mode, out.stat().st_mtime)
    assert ["kept"] == os.listdir(out)
    assert 1 == (out / "kept").stat().st_nlink


def test_a_file_replaces_a_link_instead_of_going_through_it(copy, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "kept").write_text("kept")
    target = copy(("x", DIR, ""), ("x/way", LINK, str(tmp_path / "kept")), ("x/way", FILE, ""))
    assert "kept" == (tmp_path / "kept").read_text()
    assert "x" == (target / "x/way").read_text()
