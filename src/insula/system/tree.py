"""Directory trees as archives: `docker cp`, `diff`, `export` and `commit` on an instance's directory root.

`root` is the path of a root directory on the host: an overlay's merged directory, or `/proc/<pid>/root`
of a running instance (then its mounts are seen too).  Whatever is inside, nothing outside is reached.

    stat(root, path)              PathStat                        sync, ~0.1 ms, thread-safe
    changes(upper, lowers)        tuple[Change, ...]              sync, walks the upper only, thread-safe
    get(root, path)               tar, named as Docker names      async iterator, confined child
    put(root, path, archive, …)   unpack into the directory path  async, confined child
    export(root)                  tar of the whole root           async iterator, confined child
    layer(upper)                  OCI layer (`.wh.` files)        async iterator, confined child

The iterators must be closed (`aclosing`) or run to their end; that ends their child.  Sockets are left out.
A path that is not there raises NotFound; the caller knows the instance and turns it into NoSuchPath.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as st
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from insula.errors import InvalidRequest, NotFound
from insula.model.files import Change, ChangeKind, PathStat
from insula.model.go_mode import go_mode
from insula.system.child import run_child, start_child
from insula.system.openat import open_in_root
from insula.system.scaffold import is_scaffold

log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MODULE = "insula.system.tree_child"
_MAX_ENTRIES = 5_000_000
_SPARE_BYTES = 64 << 20


def stat(root: str, path: str, *, at: str = "") -> PathStat:
    """Of `path` itself (a symlink is followed only when `path` ends in `/` or `/.`).  `at`: where `root` is
    mounted, for whom the target of a link is told.  Raises NotFound, and InvalidRequest where something that
    is no directory stands for one in it."""
    missing = NotFound(f"{path}: no such file or directory")
    if "\0" in path:
        raise missing
    follow = path.endswith(("/", "/."))
    root_fd = os.open(root, _DIRECTORY)
    try:
        fd = open_in_root(root_fd, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            found = os.fstat(fd)
            target = _final_target(root_fd, path, fd, at) if st.S_ISLNK(found.st_mode) else ""
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG):
            raise missing from None
        if error.errno == errno.ENOTDIR:
            raise InvalidRequest(f"{path}: not a directory") from None
        raise
    finally:
        os.close(root_fd)
    return PathStat(
        name=name_of(path),
        size=found.st_size,
        mode=go_mode(found.st_mode),
        mtime_ns=found.st_mtime_ns,
        link_target=target,
    )


def name_of(path: str) -> str:
    """The last part of a path, as Docker names what it finds there."""
    return os.path.basename(path.rstrip("/")) or "/"


def _final_target(root_fd: int, path: str, link_fd: int, at: str) -> str:
    """Where a symlink leads in the end, inside the root (what Docker's `linkTarget` means).  One that leaves
    what is mounted `at` a place leads into whatever that is in."""
    text = os.readlink("", dir_fd=link_fd)
    lexical = os.path.normpath(os.path.join("/", at, os.path.dirname(path).lstrip("/"), text))
    if at and not lexical.startswith(f"{at}/"):
        return lexical
    try:
        fd = open_in_root(root_fd, path, os.O_PATH)
    except OSError:  # it dangles
        return lexical
    try:
        top, final = os.readlink(f"/proc/self/fd/{root_fd}"), os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    if not (final + "/").startswith(top.rstrip("/") + "/"):
        return lexical
    return f"{at}/{final[len(top) :].lstrip('/')}"


async def _archive(root: str, request: dict[str, object]) -> AsyncGenerator[bytes, None]:
    fd = os.open(root, _DIRECTORY)
    try:
        async with start_child(_MODULE, {**request, "root_fd": fd}, pass_fds=(fd,)) as child:
            async for piece in child.frames():
                yield piece
    finally:
        os.close(fd)


def get(root: str, path: str, *, name: str = "") -> AsyncGenerator[bytes, None]:
    """A tar of `path`, its members named from `name` (else the last part of `path`) on.  May raise NotFound
    when begun."""
    return _archive(root, {"what": "get", "path": path, "name": name or name_of(path)})


def export(root: str) -> AsyncGenerator[bytes, None]:
    """The whole root, on its own file system, as a tar."""
    return _archive(root, {"what": "export"})


def layer(upper: str) -> AsyncGenerator[bytes, None]:
    """An overlay's upper directory as an OCI layer."""
    return _archive(upper, {"what": "layer"})


async def put(
    root: str,
    path: str,
    archive: AsyncIterator[bytes],
    *,
    no_overwrite_dir: bool = False,
    owner: tuple[int, int] | None = None,
) -> None:
    """Unpack a tar (plain or compressed) into the directory `path`.

    `no_overwrite_dir`: refuse to replace a directory by something else and the reverse.  `owner`: uid and
    gid for everything, else the archive's.  Raises NotFound, InvalidRequest (a bad archive; what came
    before the bad entry is there), DiskFull.
    """
    free = os.statvfs(root)
    fd = os.open(root, _DIRECTORY)
    try:
        result = await run_child(
            _MODULE,
            {
                "what": "put",
                "root_fd": fd,
                "path": path,
                "keep_kind": no_overwrite_dir,
                "owner": owner,
                "limit_bytes": max(0, free.f_bavail * free.f_frsize - _SPARE_BYTES),
                "limit_entries": _MAX_ENTRIES,
            },
            stdin=archive,
            pass_fds=(fd,),
        )
    finally:
        os.close(fd)
    for why, count in sorted(result["skipped"].items()):
        log.info("%s: %d entries of the archive without their %s", path, count, why)


def _is_whiteout(found: os.stat_result) -> bool:
    return st.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _below(lowers: Sequence[str], name: str) -> tuple[os.stat_result | None, list[str]]:
    """What the merged lower directories `lowers` show as `name`, and (for a directory) what it merges."""
    first: os.stat_result | None = None
    merged: list[str] = []
    for lower in lowers:
        path = f"{lower}/{name}"
        found = _lstat(path)
        if found is None:
            continue
        if _is_whiteout(found) or (first is not None and not st.S_ISDIR(found.st_mode)):
            break
        first = first or found
        if not st.S_ISDIR(found.st_mode):
            break
        merged.append(path)
        if _is_opaque(path):
            break
    return first, merged


def _names(lowers: Sequence[str]) -> set[str]:
    """The names that merged lower directories show."""
    seen: set[str] = set()
    for lower in lowers:
        seen.update(os.listdir(lower))
    return {name for name in seen if _below(lowers, name)[0] is not None}


def _same_directory(path: str, one: os.stat_result, other: os.stat_result) -> bool:
    # the engine's own files in /etc change its time
    times = path == "/etc" or one.st_mtime_ns == other.st_mtime_ns
    return times and (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)


def changes(upper: str, lowers: Sequence[str]) -> tuple[Change, ...]:
    """An overlay's upper directory against its lowers (topmost first), sorted by path.

    As Docker does, a directory counts as modified when something in it was added or removed.
    """
    kinds: dict[str, ChangeKind] = {}
    pending: list[tuple[str, str, Sequence[str]]] = [(upper, "", lowers)]
    while pending:
        directory, shown, merged = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = f"{shown}/{entry.name}"
                now = _lstat(entry.path)
                if now is None:  # gone meanwhile
                    continue
                before, below = _below(merged, entry.name)
                if _is_whiteout(now):
                    if before is not None:
                        kinds[path] = ChangeKind.DELETED
                        kinds.setdefault(shown, ChangeKind.MODIFIED)
                    continue
                if before is None and is_scaffold(path, entry.path, now):
                    continue
                if before is None:
                    kinds[path] = ChangeKind.ADDED
                    kinds.setdefault(shown, ChangeKind.MODIFIED)
                elif not (st.S_ISDIR(now.st_mode) and below and _same_directory(path, now, before)):
                    kinds[path] = ChangeKind.MODIFIED
                if not st.S_ISDIR(now.st_mode):
                    continue
                if _is_opaque(entry.path):
                    for name in _names(below) - set(os.listdir(entry.path)):
                        kinds[f"{path}/{name}"] = ChangeKind.DELETED
                pending.append((entry.path, path, below))
    kinds.pop("", None)
    return tuple(Change(path, kinds[path]) for path in sorted(kinds))
