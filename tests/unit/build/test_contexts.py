"""Contexts that are kept: who has one, what stays in it, and when it goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from insula.build import contexts as kept
from insula.build.contexts import Contexts, Sifted, sift
from insula.build.leftovers import remove_unfinished_builds
from insula.config import Settings
from insula.system import tar

T = 1_600_000_000_123_456_789


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_root=str(tmp_path / "data"), exec_root=str(tmp_path / "run"))


def a_build(contexts: Contexts, key: str, text: str = "x") -> str:
    lease = contexts.take(key, "context")
    Path(lease.directory, "f").write_text(text)
    lease.size_bytes = len(text)
    contexts.give_back(lease)
    return lease.ident


def test_a_build_finds_what_the_last_one_left(settings: Settings) -> None:
    contexts = Contexts(settings)
    a_build(contexts, "key")
    (one,) = contexts.list()
    assert ("context", 1, 1) == (one.name, one.size_bytes, one.uses)
    lease = Contexts(settings).take("key", "context")
    assert "x" == Path(lease.directory, "f").read_text()
    assert () == contexts.list(), "it is that build's alone"
    lease.size_bytes = 1
    lease.digests["what"] = "file:1"
    contexts.give_back(lease)
    assert {"what": "file:1"} == contexts.list()[0].digests
    assert [2] == [one.uses for one in contexts.list()]
    assert [] == os.listdir(contexts.take("key", "dockerfile").directory)
    assert [] == os.listdir(contexts.take("other", "context").directory)


def test_two_builds_at_once_do_not_see_each_other(settings: Settings) -> None:
    contexts = Contexts(settings)
    a_build(contexts, "key")
    first, second = contexts.take("key", "context"), contexts.take("key", "context")
    assert (["f"], []) == (os.listdir(first.directory), os.listdir(second.directory))
    Path(second.directory, "g").touch()
    first.size_bytes = second.size_bytes = 5
    contexts.give_back(second)
    assert ["g"] == os.listdir(f"{settings.data_root}/contexts/{first.ident}/tree")
    contexts.give_back(first)
    assert ["f"] == os.listdir(f"{settings.data_root}/contexts/{first.ident}/tree")
    assert [] == os.listdir(f"{settings.data_root}/build")


def test_without_a_key_or_content_nothing_is_kept(settings: Settings) -> None:
    contexts = Contexts(settings)
    a_build(contexts, "")
    a_build(contexts, "key", text="")
    assert () == contexts.list()
    assert [] == os.listdir(f"{settings.data_root}/build")


def test_what_cannot_be_kept_fails_no_build(settings: Settings) -> None:
    contexts = Contexts(settings)
    lease = contexts.take("key", "context")
    lease.size_bytes = 1
    Path(lease.place, "record").mkdir()
    contexts.give_back(lease)
    assert () == contexts.list()
    assert [] == os.listdir(f"{settings.data_root}/build")


def test_a_build_that_the_daemon_did_not_survive_leaves_nothing(settings: Settings) -> None:
    contexts = Contexts(settings)
    a_build(contexts, "stays")
    Path(contexts.take("lost", "context").directory, "f").touch()
    remove_unfinished_builds(settings)
    assert 1 == len(contexts.list())
    assert [] == [name for name in os.listdir(settings.data_root) if name != "contexts"]


def test_what_is_damaged_is_not_used(settings: Settings) -> None:
    contexts = Contexts(settings)
    place = Path(settings.data_root, "contexts", a_build(contexts, "key"))
    (place / "record").write_text(json.dumps({"name": "context"}))
    assert [] == os.listdir(contexts.take("key", "context").directory)
    a_build(contexts, "key")
    (place / "tree").rename(place / "else")
    assert [] == os.listdir(contexts.take("key", "context").directory)
    a_build(contexts, "key")
    (place / "record").unlink()
    assert () == contexts.list()
    assert not place.exists()


def test_the_unused_and_the_oldest_of_too_much_go(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = Contexts(settings)
    idents = [a_build(contexts, key, text="x" * 10) for key in ("old", "middle", "new")]
    contexts._trim(25)
    assert set(idents[1:]) == {one.ident for one in contexts.list()}
    then = max(one.used_ns for one in contexts.list()) + kept.KEPT_NS + 1
    monkeypatch.setattr(kept.time, "time_ns", lambda: then)
    contexts.trim()
    assert () == contexts.list()


# what stays in one


def entry(name: str, kind: bytes = tar.FILE, **more: Any) -> tar.Member:
    return tar.Member(name=name.encode(), kind=kind, **({"mode": 0o644, "mtime_ns": T} | more))


def a_tree(top: Path) -> list[tar.Member | None]:
    (top / "d").mkdir()
    for name, text in (("d/f", "hello"), ("empty", "")):
        (top / name).write_text(text)
        (top / name).chmod(0o644)
        os.utime(top / name, ns=(T, T))
    (top / "link").symlink_to("d/f")
    os.utime(top / "link", ns=(T, T), follow_symlinks=False)
    (top / "d").chmod(0o755)
    os.utime(top / "d", ns=(T, T))
    return [
        entry("d/", tar.DIRECTORY, mode=0o755),
        entry("d/f", size=5),
        None,
        entry("empty"),
        entry("link", tar.SYMLINK, mode=0o777, link=b"d/f"),
    ]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a context is root's")


@needs_root
def test_a_tree_that_is_as_told_stays_whole(tmp_path: Path) -> None:
    assert Sifted(frozenset({0, 1, 3, 4}), whole=True) == sift(str(tmp_path), a_tree(tmp_path))
    assert "hello" == (tmp_path / "d/f").read_text()


@needs_root
@pytest.mark.parametrize(
    "changed",
    [
        {"size": 6},
        {"mode": 0o755},
        {"mtime_ns": T + 1},
        {"kind": tar.SYMLINK, "link": b"x"},
        {"kind": tar.LINK, "link": b"empty"},
        {"kind": tar.FIFO},
        {"xattrs": {b"security.capability": b"\1\0\0\2"}},
    ],
)
def test_a_file_that_differs_is_asked_for(tmp_path: Path, changed: dict[str, Any]) -> None:
    members = a_tree(tmp_path)
    members[1] = entry("d/f", **({"size": 5} | changed))
    assert Sifted(frozenset({3, 4})) == sift(str(tmp_path), members), "and its directory's time is told again"
    assert not (tmp_path / "d/f").exists()


@needs_root
def test_what_the_client_has_no_more_is_gone(tmp_path: Path) -> None:
    members = a_tree(tmp_path)
    assert {1, 3} == sift(str(tmp_path), [*members[:4], entry("link/", tar.DIRECTORY)]).same
    assert not (tmp_path / "link").is_symlink()
    assert Sifted(frozenset()) == sift(str(tmp_path), [])
    assert [] == os.listdir(tmp_path)


@needs_root
def test_what_is_removed_alone_is_a_change_too(tmp_path: Path) -> None:
    members = [entry("a"), entry("b")]
    for name in "ab":
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
        os.utime(tmp_path / name, ns=(T, T))
    assert Sifted(frozenset({0, 1}), whole=True) == sift(str(tmp_path), members)
    assert Sifted(frozenset({0})) == sift(str(tmp_path), members[:1])


@needs_root
def test_what_was_damaged_is_asked_for(tmp_path: Path) -> None:
    members = a_tree(tmp_path)
    os.truncate(tmp_path / "d/f", 2)
    os.utime(tmp_path / "d/f", ns=(T, T))
    os.chown(tmp_path / "empty", 1000, 1000)
    (tmp_path / "link").unlink()
    assert Sifted(frozenset()) == sift(str(tmp_path), members)


@needs_root
def test_two_names_of_one_file_are_not_two_files(tmp_path: Path) -> None:
    members = a_tree(tmp_path)
    os.link(tmp_path / "empty", tmp_path / "second")
    same = sift(str(tmp_path), [*members, entry("second")]).same
    assert 1 == len({3, 5} & same)
    assert 1 == os.stat(tmp_path / ("empty" if 3 in same else "second")).st_nlink


@needs_root
@pytest.mark.parametrize("name", ["./d/f", "d//f", "../f", "", "d/f"])
def test_names_that_are_none_or_told_twice_keep_nothing(tmp_path: Path, name: str) -> None:
    assert Sifted(frozenset()) == sift(str(tmp_path), [*a_tree(tmp_path), entry(name)])
    assert [] == os.listdir(tmp_path)
