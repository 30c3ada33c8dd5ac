"""Files of many GiB in which there is next to nothing.  Synchronous, light to import: children load it.

Their holes are not read, zeros are passed on as a number (`child.Pieces`), and not written where a hole does
as well.  What remains is hashing them.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator

PIECE = 1 << 18


@functools.cache
def zeros() -> bytes:
    """A piece of them; made by the first that needs it."""
    return bytes(PIECE)


def read_whole(fd: int, size: int, piece: int) -> Iterator[bytes]:
    """`size` bytes from the beginning, at most `piece` at a time.  Holes are not read but made up, which is
    what lets a file of many GiB of nothing pass quickly; so is what is missing when the file is shorter."""
    nothing = bytes(min(size, piece))
    at = 0
    while at < size:
        data = min(_seek(fd, at, os.SEEK_DATA, size), size)
        while at < data:
            count = min(data - at, piece)
            yield nothing if count == len(nothing) else nothing[:count]
            at += count
        end = min(_seek(fd, at, os.SEEK_HOLE, size), size)
        while at < end:
            some = os.pread(fd, min(end - at, piece), at) or nothing[: end - at]
            yield some
            at += len(some)


def _seek(fd: int, offset: int, how: int, end: int) -> int:
    """`end` when there is no more of it; a file system that knows no holes has data all through."""
    try:
        return os.lseek(fd, offset, how)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return offset if how == os.SEEK_DATA else end


def is_nothing(data: bytes) -> bool:
    """Only zeros: a hole does as well.  Costs nothing where there is data, else a comparison."""
    if not data or data[0]:
        return False
    return data == (zeros() if len(data) == PIECE else bytes(len(data)))
