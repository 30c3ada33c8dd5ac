"""Giving back the beginning of a file that somebody else appends to: hole punching.  Synchronous.

Offsets stay as they are, so neither the writer nor a reader need be told.  Where the file system cannot
(ext4, xfs, btrfs and tmpfs can), `can_punch` says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile

BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


def punch(fd: int, start: int, length: int) -> None:
    """What is there reads as zeros from now on, and takes no space.  Raises OSError."""
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def find_data(fd: int, offset: int) -> int:
    """Where, from `offset` on, the file is no hole; `offset` itself at the end.  Moves the descriptor."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return offset


def keep_end(path: str, most: int, unread: int | None = None) -> None:
    """Cut the file down to its last bytes, in whole blocks, when it has more than `most` of them: a quarter
    less, so that it is not done again at once.  What is at `unread` and behind is spared, up to twice `most`.
    Fine if there is no file.  Raises OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        size, start = os.fstat(fd).st_size, find_data(fd, 0)
        end = (size - (most - most // 4)) // BLOCK * BLOCK
        if size - end > most and end + BLOCK <= size:
            end += BLOCK
        if unread is not None:
            end = min(end, max(unread, size - 2 * most) // BLOCK * BLOCK)
        if size - start > most and end > start:
            punch(fd, start, end - start)
    finally:
        os.close(fd)


def can_punch(directory: str) -> bool:
    """Whether its file system can; tried with a file that is gone again at once."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"x" * (2 * BLOCK))
        file.flush()
        try:
            punch(file.fileno(), 0, BLOCK)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        return True
