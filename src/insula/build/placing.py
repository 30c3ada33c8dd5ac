"""Putting files where COPY and ADD want them, as a layer.  Synchronous, light to import; confined child only.

Nothing is written into the image's root: what comes out is a tar with just what the step adds, in an order
and with times that depend on the input alone, so that the same input is the same layer.  Directories on the
way that the image has are named as they are there (else unpacking would give them other modes).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from insula.build.sources import Found, parts_of, resolve
from insula.dockerfile.modes import Mode
from insula.dockerfile.patterns import Ignored
from insula.errors import CorruptData, InvalidRequest
from insula.system import tar
from insula.system.child import Pieces, Reply
from insula.system.decompress import decompressed
from insula.system.extract import clean_name
from insula.system.sparse import read_whole

_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFIFO: tar.FIFO,
}
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Parts = tuple[bytes, ...]


class Sink(Protocol):
    """Where a step's files go.  `add` is followed by `data` for what a regular file holds, `size` bytes."""

    def way(self, member: tar.Member) -> None:
        """A directory that is only on the way to something."""
        ...

    def add(self, member: tar.Member) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def end(self, member: tar.Member) -> None: ...


class TarSink:
    def __init__(self, reply: Reply) -> None:
        self._out = Pieces(reply)

    def way(self, member: tar.Member) -> None:
        self.add(member)

    def add(self, member: tar.Member) -> None:
        self.data(tar.header(member))

    def data(self, piece: bytes) -> None:
        self._out.put(piece)

    def end(self, member: tar.Member) -> None:
        self.data(tar.padding(member.size))

    def close(self) -> None:
        self.data(tar.END)
        self._out.flush()


class HashSink:
    """What the cache compares: names, kinds, modes, owners and content; not times (as Docker's)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def way(self, member: tar.Member) -> None:
        pass

    def add(self, member: tar.Member) -> None:
        self.count += 1
        for value in (
            member.name,
            member.kind,
            b"%o %d %d %d %d %d" % (
                member.mode, member.uid, member.gid, member.size, member.major, member.minor,
            ),
            member.link,
            *(part for pair in sorted(member.xattrs.items()) for part in pair),
        ):  # fmt: skip
            self._hash.update(b"%d:" % len(value) + value)

    def data(self, piece: bytes) -> None:
        self._hash.update(piece)

    def end(self, member: tar.Member) -> None:
        pass

    def digest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`owner` (uid, gid) of everything, unless `keep_owners`; `mode` None: as it is.  `created_ns` is the
    time of directories that are made on the way; nothing is newer than `newest_ns`.  `follow`: links of the
    image are followed on the way to the target (`COPY --link` does not)."""

    owner: tuple[int, int] = (0, 0)
    keep_owners: bool = False
    mode: Mode | None = None
    created_ns: int = 0
    newest_ns: int | None = None
    follow: bool = True


class Placer:
    """`root` is the image's, read only."""

    def __init__(self, root: bytes, sink: Sink, rules: Rules, ignored: Ignored | None = None) -> None:
        self._root = root
        self._sink = sink
        self._rules = rules
        self._ignored = ignored
        self._made: dict[Parts, bytes | bool] = {}
        self._links: dict[tuple[int, int], bytes] = {}

    # where

    def resolve(self, path: bytes) -> Parts:
        """Where a path leads in the image as this step has changed it."""
        if not self._rules.follow:
            return tuple(p for p in parts_of(os.path.normpath(b"/" + path.lstrip(b"/"))))
        return resolve(self._root, path, look=self._made.get)

    def is_directory(self, parts: Parts) -> bool:
        made = self._made.get(parts)
        if made is not None:
            return made is True
        found = self._lstat(parts)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def _lstat(self, parts: Parts) -> os.stat_result | None:
        try:
            return os.lstat(b"/".join((self._root, *parts)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def make_way(self, parts: Parts) -> None:
        """The directory `parts` and all above it, as the image has them, or new."""
        for depth in range(1, len(parts) + 1):
            here = parts[:depth]
            if self._made.get(here) is True:
                continue
            found = self._lstat(here)
            if found is not None and not stat.S_ISDIR(found.st_mode) and self._rules.follow:
                raise InvalidRequest(f"/{os.fsdecode(b'/'.join(here))} is not a directory")
            member = tar.Member(name=b"/".join(here) + b"/", kind=tar.DIRECTORY, mode=0o755)
            if found is not None and stat.S_ISDIR(found.st_mode):
                member.mode, member.uid, member.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
                member.mtime_ns = whole_seconds(found.st_mtime_ns)
                member.xattrs = xattrs_of(b"/".join((self._root, *here)))
            else:
                member.uid, member.gid = self._rules.owner
                member.mtime_ns = self._rules.created_ns
            self._made[here] = True
            self._sink.way(member)

    # what

    def place(self, found: Found, target: bytes, *, as_name: bytes = b"", into: bool = False) -> None:
        """A file as `target`, or in the directory `target` (`into`, or it is one); a directory's content into
        `target`.  `as_name`: the file's name there."""
        parts = self.resolve(target)
        if stat.S_ISDIR(found.status.st_mode):
            self.make_way(parts)
            self._content(found.path, found.name, parts, b"")
            return
        name = as_name or found.name.rpartition(b"/")[2]
        if into or self.is_directory(parts):
            parts = (*parts, name)
        self.make_way(parts[:-1])
        if not self._is_ignored(found.name):
            self.one(found.path, found.status, parts, name)

    def _is_ignored(self, name: bytes) -> bool:
        return self._ignored is not None and self._ignored.matches(os.fsdecode(name))

    def _content(self, directory: bytes, name: bytes, parts: Parts, shown: bytes) -> None:
        pending: list[Iterator[tuple[bytes, bytes, Parts, bytes]]] = [_below(directory, name, parts, shown)]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
                continue
            path, source, place, label = entry
            found = os.lstat(path)
            is_directory = stat.S_ISDIR(found.st_mode)
            if self._is_ignored(source):
                # something below may be wanted all the same; its directory then is made on the way
                if is_directory and self._ignored is not None and self._ignored.has_exceptions:
                    pending.append(_below(path, source, place, label))
                continue
            self.make_way(place[:-1])
            self.one(path, found, place, label)
            if is_directory:
                pending.append(_below(path, source, place, label))

    def one(self, path: bytes, found: os.stat_result, parts: Parts, label: bytes = b"") -> None:
        """`path` alone, as `parts`."""
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:  # sockets: tar has no word for them
            return
        if kind == tar.CHAR and found.st_rdev == 0:  # would be a whiteout
            return
        uid, gid = (found.st_uid, found.st_gid) if self._rules.keep_owners else self._rules.owner
        member = tar.Member(
            name=b"/".join(parts),
            kind=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=uid,
            gid=gid,
            mtime_ns=whole_seconds(found.st_mtime_ns),
        )
        identity = (found.st_dev, found.st_ino)
        if kind not in (tar.DIRECTORY, tar.SYMLINK) and found.st_nlink > 1 and identity in self._links:
            member.kind, member.link = tar.LINK, self._links[identity]
            self._add(member, parts, label)
            return
        if kind == tar.SYMLINK:
            member.link = os.readlink(path)
        elif kind in (tar.CHAR, tar.BLOCK_DEVICE):
            member.major, member.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        else:
            member.xattrs = xattrs_of(path)
        if kind == tar.FILE:
            with open(os.open(path, _READ), "rb", buffering=0) as file:
                member.size = found.st_size
                self._add(member, parts, label, read_whole(file.fileno(), found.st_size, tar.PIECE))
        else:
            self._add(member, parts, label)
        if found.st_nlink > 1 and kind != tar.DIRECTORY:
            self._links[identity] = member.name

    def _add(self, member: tar.Member, parts: Parts, label: bytes, data: Iterable[bytes] = ()) -> None:
        """`label` is its name in the step, which the hash has in place of where it goes."""
        rules = self._rules
        if rules.mode is not None and member.kind != tar.SYMLINK:
            member.mode = rules.mode.of(member.mode, directory=member.kind == tar.DIRECTORY)
        if rules.newest_ns is not None:
            member.mtime_ns = min(member.mtime_ns, rules.newest_ns)
        if member.kind == tar.DIRECTORY:
            member.name = member.name.rstrip(b"/") + b"/"
        self._made[parts] = member.link if member.kind == tar.SYMLINK else member.kind == tar.DIRECTORY
        shown = replace(member, name=label) if isinstance(self._sink, HashSink) else member
        self._sink.add(shown)
        for piece in data:
            self._sink.data(piece)
        self._sink.end(member)

    def unpack(self, found: Found, target: bytes) -> None:
        """An archive's content into `target`: its own owners and modes, unless the step says others."""
        base = self.resolve(target)
        self.make_way(base)
        with open(os.open(found.path, _READ), "rb", buffering=0) as file:
            plain, _ = decompressed(file)
            reader = tar.Reader(io.BufferedReader(plain, tar.PIECE))
            for member in reader:
                inner = clean_name(member.name)[1:]
                if inner:
                    self._member(member, inner, base, reader)

    def _member(self, member: tar.Member, inner: bytes, base: Parts, reader: tar.Reader) -> None:
        *above, last = parts_of(inner)
        parent = self._inside(base, above)
        self.make_way(parent)
        if member.kind == tar.LINK:
            *above, target = parts_of(clean_name(member.link))
            member.link = b"/".join((*self._inside(base, above), target))
        if not self._rules.keep_owners:
            member.uid, member.gid = self._rules.owner
        member.mtime_ns = whole_seconds(member.mtime_ns)
        member.xattrs = {
            name: value for name, value in member.xattrs.items() if os.fsdecode(name).startswith(_KEPT_XATTRS)
        }
        if last.startswith(b".wh."):
            raise CorruptData(f"the archive has a name that layers use for what is removed: {inner[:200]!r}")
        if member.kind == tar.CHAR and member.major == 0 and member.minor == 0:
            raise CorruptData(f"the archive has overlayfs's own whiteout: {inner[:200]!r}")
        member.name = b"/".join((*parent, last))
        data = whole(reader, member.size) if member.kind == tar.FILE else ()
        self._add(member, (*parent, last), inner, data)

    def _inside(self, base: Parts, above: Iterable[bytes]) -> Parts:
        """Where directories of an archive are: no link leads out of where that is unpacked, as in dockerd,
        which unpacks with that for its root."""
        if not self._rules.follow:
            return self.resolve(b"/".join((*base, *above)))
        root = b"/".join((self._root, *base))
        return (*base, *resolve(root, b"/".join(above), look=lambda parts: self._made.get((*base, *parts))))


def is_archive(found: Found) -> bool:
    """Whether ADD would unpack it: a tar, packed or not."""
    if not stat.S_ISREG(found.status.st_mode) or found.status.st_size == 0:
        return False
    with open(os.open(found.path, _READ), "rb", buffering=0) as file:
        try:
            plain, _ = decompressed(file)
            return next(iter(tar.Reader(io.BufferedReader(plain, tar.BLOCK))), None) is not None
        except CorruptData:
            return False


def _below(
    directory: bytes, name: bytes, parts: Parts, label: bytes
) -> Iterator[tuple[bytes, bytes, Parts, bytes]]:
    """(path, name in the source, place, label) of what is in a directory, in order."""
    for entry in sorted(os.listdir(directory)):
        yield (
            b"/".join((directory, entry)),
            b"/".join((name, entry)) if name else entry,
            (*parts, entry),
            b"/".join((label, entry)) if label else entry,
        )


def whole(reader: tar.Reader, size: int) -> Iterator[bytes]:
    """A member's content with its holes filled."""
    at = 0
    for offset, data in reader.data():
        yield from _zeros(offset - at)
        yield data
        at = offset + len(data)
    yield from _zeros(size - at)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, tar.PIECE))
        count -= tar.PIECE


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    try:
        names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(_KEPT_XATTRS)]
        return {os.fsencode(n): os.getxattr(path, n, follow_symlinks=False) for n in sorted(names)}
    except OSError:
        return {}


def whole_seconds(time_ns: int) -> int:
    return time_ns // 1_000_000_000 * 1_000_000_000
