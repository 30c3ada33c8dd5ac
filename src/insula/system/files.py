"""Files: whole or not at all.  Synchronous."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

from insula.errors import DiskFull

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk or quota into a sentence.  Raises DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left on the disk while {what}", hint="free some space: insula system prune"
            ) from error
        raise


def write_atomic(path: str, data: bytes | str, mode: int = 0o600) -> None:
    """Replace `path` by `data`, synced: a reader sees the old file or the new one.  Raises DiskFull."""
    raw = data.encode() if isinstance(data, str) else data
    fresh = f"{path}.{secrets.token_hex(4)}.new"
    with disk_errors(f"writing {path}"):
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with open(fd, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            raise


def remove_tree(path: str | bytes) -> None:
    """Remove a directory and all that is in it; fine if it is not there.  Does not follow symlinks.

    Not shutil.rmtree: that recurses, and an archive can make a tree deeper than Python's stack.
    """
    try:
        fd = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    pending = [_remove_files(fd)]
    names: list[bytes] = []
    try:
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                child = os.open(name, _DIRECTORY, dir_fd=fd)
                names.append(name)
            elif names:
                child = os.open("..", _DIRECTORY, dir_fd=fd)
                pending.pop()
                os.rmdir(names.pop(), dir_fd=child)
                os.close(fd)
                fd = child
                continue
            else:
                break
            os.close(fd)
            fd = child
            pending.append(_remove_files(fd))
    finally:
        os.close(fd)
    os.rmdir(path)


def _remove_files(fd: int) -> list[bytes]:
    """All but the directories, which are returned."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(os.fsencode(entry.name))
            else:
                os.unlink(entry.name, dir_fd=fd)
    return directories


def remove_file(path: str) -> None:
    """Fine if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
