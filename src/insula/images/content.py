"""The content store: blobs by digest, checked while they arrive, whole or not there.  Synchronous.

    root/blobs/sha256/<64 hex>     complete and checked
    root/partial/<64 hex>          a broken download, to be resumed
    root/ingest/…                  arriving now; cleaned at start

Not for what a blob means (manifests, configurations, layers) and not for who refers to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from types import TracebackType

from insula.errors import CorruptData, NotFound
from insula.system.files import disk_errors, remove_tree
from insula.system.sparse import is_nothing

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PIECE = 1 << 20
_LEAST_HOLE = 1 << 16


def check_digest(untrusted_digest: str) -> str:
    """A digest that is safe as part of a path.  Raises CorruptData."""
    if not _DIGEST.fullmatch(untrusted_digest):
        raise CorruptData(f"{untrusted_digest[:100]!r} is not a sha256 digest (sha256 and 64 hex digits)")
    return untrusted_digest


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class BlobWriter:
    """One blob on its way in.  Use as a context manager; nothing is kept unless `commit` was reached.

    `digest` None: not known beforehand, `commit` returns it.  `offset` is how much a resumed download
    already has.
    """

    def __init__(self, store: ContentStore, digest: str | None, size: int | None, resume: bool) -> None:
        self._store = store
        self._digest = digest
        self._size = size
        self._keep = False
        self._done = False
        self._hash = hashlib.sha256()
        self._path = store.ingest_path()
        self.offset = 0
        with disk_errors("starting a blob"):
            if resume and digest is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(store.partial_path(digest), self._path)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if resume:
            self._read_again()

    def _read_again(self) -> None:
        while piece := os.pread(self._fd, _PIECE, self.offset):
            self._hash.update(piece)
            self.offset += len(piece)
        if self._size is not None and self.offset > self._size:
            self.restart()
        os.lseek(self._fd, self.offset, os.SEEK_SET)

    def restart(self) -> None:
        """Forget what is there (the server does not resume)."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.offset = 0

    def write(self, data: bytes) -> None:
        """Raises CorruptData as soon as more than `size` bytes have come, DiskFull."""
        if self._size is not None and self.offset + len(data) > self._size:
            self._keep = False
            raise CorruptData(f"blob {self._digest or ''}: more than the {self._size} bytes it should have")
        self._hash.update(data)
        self.offset += len(data)
        with disk_errors("storing a blob"):
            if len(data) >= _LEAST_HOLE and is_nothing(
                data
            ):  # of a plain layer with a large sparse file in it
                os.lseek(self._fd, self.offset, os.SEEK_SET)
                return
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]

    def keep_partial(self) -> None:
        """Leaving without commit keeps what came, so that `resume` goes on from there."""
        self._keep = self._digest is not None

    def commit(self) -> str:
        """Check, sync, put in place; returns the digest.  A mismatch raises CorruptData and keeps nothing."""
        self._keep = False
        actual = "sha256:" + self._hash.hexdigest()
        if self._size is not None and self.offset != self._size:
            raise CorruptData(
                f"blob {self._digest or actual}: {self.offset} bytes came, it should have {self._size}"
            )
        if self._digest is not None and actual != self._digest:
            raise CorruptData(f"blob {self._digest}: what came has digest {actual}")
        with disk_errors("storing a blob"):
            os.ftruncate(self._fd, self.offset)  # it may end with a hole
            os.fsync(self._fd)
            os.fchmod(self._fd, 0o444)
            os.rename(self._path, self._store.path(actual))
        self._done = True
        return actual

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._done:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._keep and self._digest is not None:
                os.rename(self._path, self._store.partial_path(self._digest))
            else:
                os.unlink(self._path)


class ContentStore:
    def __init__(self, root: str) -> None:
        self.root = root
        self._blobs = f"{root}/blobs/sha256"
        self._partial = f"{root}/partial"
        self._ingest = f"{root}/ingest"
        for directory in (self._blobs, self._partial, self._ingest):
            os.makedirs(directory, mode=0o700, exist_ok=True)

    def path(self, digest: str) -> str:
        """Where a blob is, or would be."""
        return f"{self._blobs}/{check_digest(digest)[7:]}"

    def partial_path(self, digest: str) -> str:
        return f"{self._partial}/{check_digest(digest)[7:]}"

    def ingest_path(self) -> str:
        return f"{self._ingest}/{secrets.token_hex(12)}"

    def has(self, digest: str) -> bool:
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """In bytes.  Raises NotFound."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not stored") from None

    def partial_size(self, digest: str) -> int:
        """How much of a broken download is kept, 0 if nothing."""
        try:
            return os.stat(self.partial_path(digest)).st_size
        except FileNotFoundError:
            return 0

    def read(self, digest: str, *, limit: int = 16 << 20) -> bytes:
        """A small blob (a manifest, a configuration), checked again.  Raises NotFound, CorruptData."""
        if (size := self.size(digest)) > limit:
            raise CorruptData(f"blob {digest}: {size} bytes is more than the {limit} that it may have")
        with open(self.path(digest), "rb") as file:
            data = file.read(limit)
        if digest_of(data) != digest:
            raise CorruptData(f"blob {digest}: its content was changed on the disk")
        return data

    def writer(self, digest: str | None, size: int | None, resume: bool = False) -> BlobWriter:
        """A new blob.  `digest` None: one of unknown digest (load, import, commit)."""
        return BlobWriter(self, check_digest(digest) if digest is not None else None, size, resume)

    def put(self, data: bytes) -> str:
        """A small blob at once; returns its digest."""
        digest = digest_of(data)
        if not self.has(digest):
            with self.writer(digest, len(data)) as writer:
                writer.write(data)
                writer.commit()
        return digest

    def adopt(self, path: str, digest: str) -> None:
        """Take over a file on the same file system whose digest was just computed.  Raises DiskFull."""
        with disk_errors("storing a blob"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                os.fchmod(fd, 0o444)
            finally:
                os.close(fd)
            os.rename(path, self.path(digest))

    def remove(self, digest: str) -> None:
        """Fine if it is not there."""
        for path in (self.path(digest), self.partial_path(digest)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def drop_partial(self) -> int:
        """Give up on every broken download.  Returns bytes given back."""
        freed = 0
        for name in os.listdir(self._partial):
            with contextlib.suppress(FileNotFoundError):  # resumed just now
                freed += os.stat(f"{self._partial}/{name}").st_size
                os.unlink(f"{self._partial}/{name}")
        return freed

    def digests(self) -> tuple[str, ...]:
        return tuple(sorted(f"sha256:{name}" for name in os.listdir(self._blobs) if len(name) == 64))

    def clean(self) -> None:
        """At start: what was arriving when the daemon died is gone; broken downloads stay for a resume."""
        remove_tree(self._ingest)
        os.makedirs(self._ingest, mode=0o700, exist_ok=True)
