"""The files of an archive, unpacked flat into a scratch directory with their digests.  Synchronous.

Names in the archive are keys of a table, never paths on the disk, so nothing can be written elsewhere.
Symlinks and hard links between members (old docker archives have `<id>/layer.tar` as a symlink to another)
are followed inside that table.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from insula.errors import CorruptData, DiskFull
from insula.system import tar
from insula.system.decompress import PIECE, Source, decompressed
from insula.system.extract import clean_name
from insula.system.files import disk_errors
from insula.system.sparse import is_nothing

_MAX_ENTRIES = 100_000
_MAX_LINKS = 40
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Staged:
    path: str
    digest: str
    size: int

    def read(self, limit: int) -> bytes:
        if self.size > limit:
            raise CorruptData(
                f"the archive has a document of {self.size} bytes; at most {limit} are accepted"
            )
        with open(self.path, "rb") as file:
            return file.read()


class Staging:
    """`directory` exists and is empty; the caller removes it."""

    def __init__(self, directory: str, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        self._directory = directory
        self._on_bytes = on_bytes
        self._files: dict[str, Staged] = {}
        self._links: dict[str, str] = {}
        self._count = 0
        self._bytes = 0

    def fill(self, source: Source) -> None:
        """Read a whole archive, packed or not.  Raises CorruptData, DiskFull."""
        free = os.statvfs(self._directory)
        limit = free.f_bavail * free.f_frsize - _SPARE_BYTES
        plain, _ = decompressed(source)
        buffered = io.BufferedReader(plain, PIECE)
        reader = tar.Reader(buffered)
        for member in reader:
            self._count += 1
            if self._count > _MAX_ENTRIES:
                raise CorruptData(f"the archive has more than {_MAX_ENTRIES} entries")
            name = os.fsdecode(clean_name(member.name))[1:]
            link = os.fsdecode(member.link)
            if member.kind == tar.FILE:
                self._bytes += member.size
                if self._bytes > limit:
                    raise DiskFull(
                        f"the archive holds more than the {max(0, limit) >> 20} MiB that are free",
                        hint="free some space: insula system prune",
                    )
                self._store(name, member, reader)
            elif member.kind == tar.SYMLINK:
                self._links[name] = posixpath.join(posixpath.dirname(name), link)
            elif member.kind == tar.LINK:
                self._links[name] = link
            elif member.kind != tar.DIRECTORY:
                raise CorruptData(f"the archive is not an image: {name!r} is a device or a pipe")
        while buffered.read(PIECE):
            pass

    def _store(self, name: str, member: tar.Member, reader: tar.Reader) -> None:
        if member.pieces is not None:
            raise CorruptData(f"the archive is not an image: {name!r} is a sparse file")
        path = f"{self._directory}/{self._count}"
        digest = hashlib.sha256()
        with disk_errors("loading an image"), open(path, "xb") as file:
            for _, data in reader.data():
                digest.update(data)
                if is_nothing(data):
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    file.write(data)
                self._on_bytes(len(data))
            file.truncate(member.size)  # it may end with a hole
        if (old := self._files.get(name)) is not None:  # the last one counts, as in tar
            os.unlink(old.path)
        self._links.pop(name, None)
        self._files[name] = Staged(path, "sha256:" + digest.hexdigest(), member.size)

    def find(self, untrusted_name: str) -> Staged | None:
        name = untrusted_name
        for _ in range(_MAX_LINKS):
            name = os.fsdecode(clean_name(os.fsencode(name)))[1:]
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                return None
            name = self._links[name]
        raise CorruptData(f"the archive has a circle of links at {untrusted_name!r}")

    def need(self, untrusted_name: str) -> Staged:
        found = self.find(untrusted_name)
        if found is None:
            raise CorruptData(f"the archive does not have {untrusted_name!r}, which its manifest names")
        return found
