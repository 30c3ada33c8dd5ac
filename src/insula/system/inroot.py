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
_MOST_LINKS = 40  # the kernel's own


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


def is_dangling(root: int, path: str) -> bool:
    """Whether a link on the way, or at its end, leads to what is not there."""
    walked = ""
    for part in [p for p in path.split("/") if p not in ("", ".")]:
        walked = f"{walked}/{part}"
        try:
            os.close(open_in_root(root, walked, os.O_PATH))
        except FileNotFoundError:
            return _is_link(root, walked)
        except OSError:
            return False
    return False


def _is_link(root: int, path: str) -> bool:
    try:
        fd = open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return stat.S_ISLNK(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def make_directory_in_root(root: int, path: str, uid: int, gid: int, *, links: int = _MOST_LINKS) -> None:
    """Make `path`, what is missing of its parents and what links lead to; new ones belong to the user.
    Raises OSError (NotADirectoryError when something else is in the way)."""
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
        except FileExistsError:
            if not links:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
            target = os.readlink(part, dir_fd=fd)
            beside = target if target.startswith("/") else f"{parent}/{target}"
            make_directory_in_root(root, beside, uid, gid, links=links - 1)
        finally:
            os.close(fd)
