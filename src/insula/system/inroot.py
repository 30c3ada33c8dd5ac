"""Read files and make directories inside somebody else's root, symlinks resolved in it.

Synchronous.  What is in the root is untrusted: nothing here follows a link out of it, opens a device or a
FIFO, or reads without a bound.  `openat` opens single names; `tree` is for archives.
"""

from __future__ import annotations

import errno
import os
import stat

from insula.system.openat import open_in_root

_MAX_TEXT = 1 << 20


def read_in_root(root: int, path: str) -> str:
    """Text of a regular file, at most 1 MiB; "" when there is none."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENXIO):
            return ""
        raise
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return file.read(_MAX_TEXT).decode(errors="replace")


def make_directory_in_root(root: int, path: str, uid: int, gid: int) -> None:
    """Make `path` and what is missing of its parents; new ones belong to the user.  Raises OSError
    (NotADirectoryError when something else is in the way)."""
    walked = ""
    for part in [p for p in path.split("/") if p not in ("", ".")]:
        parent, walked = walked, f"{walked}/{part}"
        try:
            os.close(open_in_root(root, walked, os.O_PATH | os.O_DIRECTORY))
            continue
        except FileNotFoundError:
            pass
        fd = open_in_root(root, parent, os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(part, 0o755, dir_fd=fd)
            os.chown(part, uid, gid, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
