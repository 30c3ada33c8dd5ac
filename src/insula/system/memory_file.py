"""Files in memory (memfd): sparse copies, and seals that make one unwritable for whoever has it open.
Synchronous."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_PIECE = 1 << 20


def make_memory_file(name: str, size: int = 0) -> int:
    """A descriptor, close-on-exec.  Private mappings of it are writable also once it is sealed."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


def close_all(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def seal(fd: int) -> None:
    """From now on nobody changes it.  Raises OSError (EBUSY) while someone has it mapped writable and
    shared."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def open_again(fd: int) -> int:
    """The same file with a position of its own, for reading."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def find_extents(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole."""
    end = os.fstat(fd).st_size
    at = 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at - start


def copy_sparse(source: int, target: int) -> None:
    """All of `source`, holes as holes; `target` is empty or has holes there.  Raises OSError."""
    os.ftruncate(target, os.fstat(source).st_size)
    for start, length in find_extents(source):
        done = 0
        while done < length:
            piece = os.pread(source, min(_PIECE, length - done), start + done)
            if not piece:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            done += os.pwrite(target, piece, start + done)


def load_sealed(path: str, digest: str | None = None) -> int:
    """A sealed memory file with what is in a file.  Raises ValueError when that is not what it was, by its
    digest; OSError."""
    fd = make_memory_file("insula-" + os.path.basename(path))
    try:
        with start_file(path, os.O_RDONLY) as source:
            copy_sparse(source, fd)
        if digest is not None and digest_sparse(fd)[0] != digest:  # of the copy: the file may change yet
            raise ValueError("does not match its digest")
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def digest_sparse(fd: int) -> tuple[str, int]:
    """(sha256 of size, and of the offset and bytes of every page that is not zero; bytes that are not holes).

    The same for two files of equal content, wherever their holes are."""
    digest = hashlib.sha256(os.fstat(fd).st_size.to_bytes(8, "little"))
    page = 4096
    zero = bytes(page)
    total = 0
    for start, length in find_extents(fd):
        total += length
        for at in range(start, start + length, _PIECE):
            piece = memoryview(os.pread(fd, min(_PIECE, start + length - at), at))
            for offset in range(0, len(piece), page):
                part = piece[offset : offset + page]
                if part != zero[: len(part)]:
                    digest.update((at + offset).to_bytes(8, "little"))
                    digest.update(part)
    return digest.hexdigest(), total


@contextlib.contextmanager
def start_file(path: str, flags: int, mode: int = 0o600) -> Iterator[int]:
    """An open descriptor, closed at the end."""
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)
