"""The fake backend's file system: a dictionary, with the verbs of the seam's `Files`.  Async, no disk."""

from __future__ import annotations

import io
import posixpath
import stat
import tarfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from insula.errors import InvalidRequest, NoSuchPath
from insula.model.files import Change, ChangeKind, PathStat
from insula.model.go_mode import GO_DIRECTORY, GO_SYMLINK
from insula.model.paths import clean_path

_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Node:
    """`mode` with the type bits of st_mode."""

    mode: int
    data: bytes = b""
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


def _directory() -> Node:
    return Node(stat.S_IFDIR | 0o755, mtime_ns=time.time_ns())


class FakeTree:
    """Files of one instance.  Starts with a few that programs and tests expect of an image."""

    def __init__(self, instance_id: str) -> None:
        self._id = instance_id
        self._base: dict[str, Node] = {p: _directory() for p in ("/", "/bin", "/etc", "/tmp", "/root")}
        for path, text in (
            ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("/etc/os-release", "ID=fake\n"),
        ):
            self._base[path] = Node(stat.S_IFREG | 0o644, text.encode(), time.time_ns())
        self._now = dict(self._base)

    # for programs

    def read_file(self, path: str) -> bytes | None:
        node = self._now.get(clean_path(path))
        return None if node is None or node.is_dir else node.data

    def write_file(self, path: str, data: bytes, *, append: bool = False) -> None:
        path = clean_path(path)
        old = self._now.get(path)
        self._make_parents(path)
        self._now[path] = Node(
            stat.S_IFREG | 0o644, (old.data if append and old else b"") + data, time.time_ns()
        )

    def remove(self, path: str) -> bool:
        path = clean_path(path)
        gone = [p for p in self._now if p == path or p.startswith(path.rstrip("/") + "/")]
        for each in gone:
            del self._now[each]
        return bool(gone)

    def _make_parents(self, path: str) -> None:
        parent = posixpath.dirname(path)
        while parent not in self._now:
            self._now[parent] = _directory()
            parent = posixpath.dirname(parent)

    # the seam's Files

    async def stat(self, path: str) -> PathStat:
        node = self._node(path)
        mode = stat.S_IMODE(node.mode) | (GO_DIRECTORY if node.is_dir else 0)
        mode |= GO_SYMLINK if stat.S_ISLNK(node.mode) else 0
        name = posixpath.basename(clean_path(path)) or "/"
        return PathStat(name=name, size=len(node.data), mode=mode, mtime_ns=node.mtime_ns)

    async def get(self, path: str) -> AsyncIterator[bytes]:
        path = clean_path(path)
        self._node(path)
        name = posixpath.basename(path) or "."
        prefix = path.rstrip("/") + "/"
        members = {name: self._now[path]}
        members |= {
            f"{name}/{p.removeprefix(prefix)}": n
            for p, n in self._now.items()
            if p.startswith(prefix) and p != path
        }
        for piece in _pieces(_make_tar(members)):
            yield piece

    async def put(
        self, path: str, archive: AsyncIterator[bytes], *, no_overwrite_dir: bool, copy_owner: bool
    ) -> None:
        base = clean_path(path)
        if not self._node(base).is_dir:
            raise InvalidRequest(f"{path} is not a directory")
        raw = b"".join([piece async for piece in archive])
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            for member in tar:
                target = clean_path(posixpath.join(base, member.name))
                old = self._now.get(target)
                if old is not None and no_overwrite_dir and old.is_dir != member.isdir():
                    raise InvalidRequest(
                        f"cannot overwrite {target}: one is a directory and the other is not"
                    )
                if member.isdir() and old is not None and old.is_dir:
                    continue
                kind = stat.S_IFDIR if member.isdir() else stat.S_IFREG
                source = tar.extractfile(member)
                node = Node(kind | member.mode, source.read() if source else b"", int(member.mtime * 10**9))
                self._make_parents(target)
                self._now[target] = replace(node, uid=member.uid, gid=member.gid) if copy_owner else node

    async def changes(self) -> tuple[Change, ...]:
        found = {p: ChangeKind.DELETED for p in self._base if p not in self._now}
        found |= {p: ChangeKind.ADDED for p in self._now if p not in self._base}
        found |= {
            p: ChangeKind.MODIFIED for p, n in self._now.items() if p in self._base and n != self._base[p]
        }
        for path in list(found):
            parent = posixpath.dirname(path)
            while parent != "/" and parent not in found:
                found[parent] = ChangeKind.MODIFIED
                parent = posixpath.dirname(parent)
        return tuple(Change(p, found[p]) for p in sorted(found))

    async def export(self) -> AsyncIterator[bytes]:
        for piece in _pieces(_make_tar({p.lstrip("/"): n for p, n in self._now.items() if p != "/"})):
            yield piece

    async def layer(self) -> AsyncIterator[bytes]:
        members: dict[str, Node] = {}
        for change in await self.changes():
            if change.kind is ChangeKind.DELETED:
                head, tail = posixpath.split(change.path.lstrip("/"))
                members[posixpath.join(head, ".wh." + tail)] = Node(stat.S_IFREG)
            else:
                members[change.path.lstrip("/")] = self._now[change.path]
        for piece in _pieces(_make_tar(members)):
            yield piece

    def _node(self, path: str) -> Node:
        node = self._now.get(clean_path(path))
        if node is None:
            raise NoSuchPath(path, self._id)
        return node


def _make_tar(members: dict[str, Node]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in sorted(members):
            node = members[name]
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if node.is_dir else tarfile.REGTYPE
            info.mode, info.uid, info.gid = stat.S_IMODE(node.mode), node.uid, node.gid
            info.mtime, info.size = node.mtime_ns // 10**9, len(node.data)
            tar.addfile(info, io.BytesIO(node.data))
    return buffer.getvalue()


def _pieces(raw: bytes) -> list[bytes]:
    return [raw[i : i + _PIECE] for i in range(0, len(raw), _PIECE)]
