"""One layer for what several have changed (`--squash`).  Synchronous, light; in a confined child."""

from __future__ import annotations

import os
import stat

from insula.build.placing import Placer, Rules, TarSink
from insula.system import tar

Parts = tuple[bytes, ...]


def write_difference(whole: bytes, below: bytes, sink: TarSink) -> None:
    """What has to be put over the tree `below` to have the tree `whole`: what differs, then whiteouts."""
    placer = Placer(below, sink, Rules(keep_owners=True))
    pending: list[Parts] = [()]
    while pending:
        parts = pending.pop()
        now, before = _names(whole, parts), _names(below, parts)
        directories: list[Parts] = []
        for name in now:
            place = (*parts, name)
            found, was = _lstat(whole, place), _lstat(below, place)
            assert found is not None
            if was is None or not _same(whole, below, place, found, was):
                placer.make_way(parts)
                placer.one(b"/".join((whole, *place)), found, place)
            if stat.S_ISDIR(found.st_mode):
                directories.append(place)
        for name in sorted(set(before) - set(now)):
            placer.make_way(parts)
            sink.add(tar.Member(name=b"/".join((*parts, b".wh." + name)), mode=0o600))
        pending += reversed(directories)


def _names(root: bytes, parts: Parts) -> list[bytes]:
    found = _lstat(root, parts)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return []
    return sorted(os.listdir(b"/".join((root, *parts))))


def _lstat(root: bytes, parts: Parts) -> os.stat_result | None:
    try:
        return os.lstat(b"/".join((root, *parts)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _same(whole: bytes, below: bytes, parts: Parts, one: os.stat_result, other: os.stat_result) -> bool:
    """By what stat says, as docker's own comparison: a layer that changes a file changes its time."""
    if (one.st_mode, one.st_uid, one.st_gid, one.st_rdev) != (
        other.st_mode,
        other.st_uid,
        other.st_gid,
        other.st_rdev,
    ):
        return False
    if stat.S_ISLNK(one.st_mode):
        return os.readlink(b"/".join((whole, *parts))) == os.readlink(b"/".join((below, *parts)))
    if stat.S_ISDIR(one.st_mode):
        return one.st_mtime_ns == other.st_mtime_ns
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
