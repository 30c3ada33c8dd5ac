"""The confined child that unpacks one layer.  Synchronous; started by `layers`, never imported by it.

stdin is the blob, `directory_fd` of the request the directory to fill.  It decompresses, hashes and
extracts in one pass: everything that understands untrusted bytes happens after `confine`.  The answer
carries the digest of the uncompressed stream, the size, and which directories the parent has to mark
opaque.
"""

from __future__ import annotations

import hashlib
import io
import os
from typing import Any

from insula.errors import CorruptData, DiskFull
from insula.system.child import Reply
from insula.system.confine import confine, die_with_parent, own_namespaces
from insula.system.decompress import PIECE, decompressed, preload
from insula.system.extract import Extractor, Limits
from insula.system.sparse import read_whole
from insula.system.tar import Reader

_PROGRESS_STEP = 4 << 20

# A stream that grows like this is a bomb: real layers reach 20, gzip's own limit is about 1030.
_BOMB_BYTES = 1 << 30
_BOMB_RATIO = 200


class _Blob:
    """The packed blob, counted."""

    def __init__(self, reply: Reply) -> None:
        self._pieces = read_whole(0, os.fstat(0).st_size, PIECE)
        self._rest = b""
        self.count = 0
        self._told = 0
        self._reply = reply

    def read(self, size: int, /) -> bytes:
        data = self._rest or next(self._pieces, b"")
        data, self._rest = data[:size], data[size:]
        self.count += len(data)
        if self.count - self._told >= _PROGRESS_STEP:
            self._told = self.count
            self._reply.progress(self.count)
        return data


class _Hashed(io.RawIOBase):
    """The plain stream: hashed, and refused when it outgrows what may be."""

    def __init__(self, plain: io.RawIOBase, blob: _Blob, limit_bytes: int) -> None:
        self._plain = plain
        self._blob = blob
        self._limit = limit_bytes
        self.hash = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._plain.readinto(buffer) or 0
        self.hash.update(memoryview(buffer)[:count])
        self.count += count
        if self.count > _BOMB_BYTES and self.count > _BOMB_RATIO * self._blob.count:
            raise CorruptData(
                f"the layer is a decompression bomb: {self._blob.count} bytes became more than {self.count}"
            )
        if self.count > self._limit:
            raise DiskFull(
                f"the layer unpacks to more than the {self._limit >> 20} MiB that are free",
                hint="free some space: insula system prune",
            )
        return count


def _is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def main(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    die_with_parent()
    preload()
    own_namespaces()
    limit_bytes = int(request["limit_bytes"])
    confine(int(request["directory_fd"]), file_bytes=limit_bytes)
    blob = _Blob(reply)
    plain, _ = decompressed(blob)
    hashed = _Hashed(plain, blob, limit_bytes)
    buffered = io.BufferedReader(hashed, PIECE)
    extractor = Extractor(Limits(entries=int(request["limit_entries"]), bytes=limit_bytes), layer=True)
    extractor.extract(Reader(buffered))
    while buffered.read(PIECE):  # what follows the archive's end belongs to the digest
        pass
    report = extractor.report
    return {
        "diff_id": "sha256:" + hashed.hash.hexdigest(),
        "size": report.size_bytes,
        "entries": report.entries,
        "opaque": sorted(os.fsdecode(path) for path in report.opaque if _is_directory(path)),
        "skipped": report.skipped,
    }
