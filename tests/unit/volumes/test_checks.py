from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import InvalidRequest, UnsupportedField
from insula.model.mounts import MountKind, MountSpec
from insula.volumes.checks import check_mounts, clean_target, prepare_bind
from insula.volumes.copy_up import resolve_inside


def bind(source: str, **fields: object) -> MountSpec:
    return MountSpec(kind=MountKind.BIND, source=source, target="/x", **fields)  # type: ignore[arg-type]


def tmpfs(*options: str) -> MountSpec:
    return MountSpec(kind=MountKind.TMPFS, target="/x", options=options)


@pytest.mark.parametrize(
    ("untrusted", "clean"),
    [
        ("/a", "/a"),
        ("//a/./b/", "/a/b"),
        ("/a/../b", "/b"),
        ("/../etc", "/etc"),
        ("/proc/cpuinfo", "/proc/cpuinfo"),
    ],
)
def test_targets(untrusted: str, clean: str) -> None:
    assert clean_target(untrusted) == clean


@pytest.mark.parametrize("untrusted", ["", "a", "/", "/..", "/a\0b", "./x", "/proc//sys", "/proc/1/root"])
def test_targets_that_are_refused(untrusted: str) -> None:
    with pytest.raises(InvalidRequest):
        clean_target(untrusted)


def test_mounts_that_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Duplicate mount point: /x"):
        check_mounts([bind("/a"), bind("/b")])
    with pytest.raises(InvalidRequest, match="must be absolute"):
        check_mounts([bind("relative")])
    with pytest.raises(InvalidRequest, match="propagation"):
        check_mounts([bind("/a", propagation="sideways")])
    with pytest.raises(UnsupportedField):
        check_mounts([bind("/a", options=("size=1",))])


def test_nothing_else_stands_in_the_place_of_proc(tmp_path: Path) -> None:
    wrong = [
        MountSpec(kind=MountKind.VOLUME, source="data", target="/proc"),
        MountSpec(kind=MountKind.TMPFS, target="/./proc/"),
        MountSpec(kind=MountKind.BIND, source=str(tmp_path), target="/proc"),
    ]
    for mount in wrong:
        with pytest.raises(InvalidRequest, match='"/proc" cannot be mounted because it is not of type proc'):
            check_mounts([mount])
    check_mounts([MountSpec(kind=MountKind.BIND, source="/proc", target="/proc")])


@pytest.mark.parametrize("option", ["size=64m", "mode=1777", "noexec", "ro", "uid=1000", "nr_inodes=1k"])
def test_tmpfs_options(option: str) -> None:
    check_mounts([tmpfs(option)])


@pytest.mark.parametrize("option", ["", "size", "size=", "bogus", "lowerdir=/etc", "noexec=1"])
def test_tmpfs_options_that_are_refused(option: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid tmpfs option"):
        check_mounts([tmpfs(option)])


def test_a_missing_source_is_made_for_v_and_refused_for_mount(tmp_path: Path) -> None:
    missing = tmp_path / "a/b"
    with pytest.raises(InvalidRequest, match="bind source path does not exist"):
        prepare_bind(bind(str(missing)))
    prepare_bind(bind(str(missing), legacy=True))
    assert missing.is_dir()
    (tmp_path / "file").write_text("")
    prepare_bind(bind(str(tmp_path / "file")))
    with pytest.raises(InvalidRequest, match="error while creating mount source path"):
        prepare_bind(bind(str(tmp_path / "file/below"), legacy=True))


def test_symlinks_of_an_image_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "srv/data").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "abs").symlink_to("/srv")
    (root / "up").symlink_to("../../../outside")
    (root / "loop").symlink_to("loop")
    (root / "file").write_text("")
    assert resolve_inside(str(root), "/abs/data") == str(root / "srv/data")
    assert resolve_inside(str(root), "/srv/../../srv/data") == str(root / "srv/data")
    assert resolve_inside(str(root), "/file") == str(root / "file")
    for nowhere in ("/up", "/loop", "/missing", "/file/x"):
        assert resolve_inside(str(root), nowhere) is None
