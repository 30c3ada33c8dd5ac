"""Files: whole or not at all.  Synchronous."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator

from insula.errors import DiskFull


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk or quota into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left on the disk while {what}", hint="free some space: insula system prune"
            ) from error
        raise


def write_atomic(path: str, data: bytes | str, mode: int = 0o600) -> None:
    """Replace `path` by `data`, synced, so that a reader sees the old file or the new one.  Raises DiskFull."""
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


def remove_tree(path: str) -> None:
    """Remove a directory and all that is in it; fine if it is not there.  Does not follow symlinks."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
