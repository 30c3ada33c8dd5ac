"""Files that are a guest's disks: an empty ext4, and copies of one.  Synchronous."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from insula.errors import Failure
from insula.system import memory_file
from insula.system.files import disk_errors
from insula.system.memory_file import find_extents
from insula.system.run import need_program

_FEATURES = (
    *("has_journal", "ext_attr", "dir_index", "filetype", "extent", "flex_bg", "64bit", "metadata_csum"),
    *("sparse_super", "sparse_super2", "large_file", "huge_file", "dir_nlink", "extra_isize"),
)
# the same on every host and each time, so that of two empty disks one is a copy of the other
_UUID = "1a5e6f4e-77a1-4b1e-9c52-8d0b5a3c1e10"
MKE2FS_ENVIRONMENT = {"E2FSPROGS_FAKE_TIME": "1735689600"}
"""For `finalize_mke2fs`; a mke2fs that does not know it makes disks that differ, which are as good."""
_FICLONE = 0x40049409
_COPY = 1 << 24
_SLACK_BLOCKS = 2048  # of 512 bytes
# copy_file_range(2)
_NOT_BY_KERNEL = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def finalize_mke2fs(path: str) -> list[str]:
    """The command that makes an empty upper disk of a sparse file.

    A fresh sparse file is all zeros, so tables need not be written, neither now nor by the guest's
    ext4lazyinit; metadata packed at the start keeps the copy short.  No reserved blocks: in there the user
    is root.  The features are ours, not those of the host's mke2fs.conf: disks are the same on every host
    (Debian 13's orphan file would be 2 MiB to copy for each).
    """
    return [
        need_program("mke2fs"),
        *("-q", "-F", "-t", "ext4", "-m", "0", "-L", "insula-upper"),
        *("-b", "4096", "-I", "256", "-i", "32768", "-J", "size=16"),
        *("-O", ",".join(("none", *_FEATURES))),
        *(
            "-E",
            f"nodiscard,assume_storage_prezeroed=1,packed_meta_blocks=1,num_backup_sb=0,hash_seed={_UUID}",
        ),
        *("-U", _UUID),
        path,
    ]


def is_copy(one: str, other: str) -> bool:
    """Both files have the same bytes.  Cheap where one is an empty disk: what has grown by more than its size
    is no copy.  Raises OSError."""
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        stats = os.fstat(first.fileno()), os.fstat(second.fileno())
        used = [stat.st_blocks for stat in stats]
        if stats[0].st_size != stats[1].st_size or max(used) > 2 * min(used) + _SLACK_BLOCKS:
            return False
        for extents in (find_extents(first.fileno()), find_extents(second.fileno())):
            for start, length in extents:
                for at in range(start, start + length, _COPY):
                    size = min(_COPY, start + length - at)
                    if os.pread(first.fileno(), size, at) != os.pread(second.fileno(), size, at):
                        return False
    return True


def make_again(source: str, target: str) -> None:
    """`target`, which is there and may be open elsewhere, becomes a copy of `source`.  Raises DiskFull."""
    with disk_errors("copying a disk"):
        os.truncate(target, 0)
        os.truncate(target, os.stat(source).st_size)
    copy_into(source, target)


def copy_sparse(source: str, target: str) -> None:
    """Copy a file, holes as holes: a clone where the file system can, else its data only.  Synchronous.

    Raises DiskFull; nothing is left then.
    """
    with contextlib.ExitStack() as stack, disk_errors("copying a disk"):
        old = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, old)
        new = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, new)
        try:
            _copy(old, new)
        except BaseException:
            os.unlink(target)
            raise


def replace_disk(source: str, target: str) -> None:
    """As `make_again`, of a file that nobody has open: all of it, or nothing.  Raises DiskFull."""
    fresh = f"{target}.new"
    with contextlib.suppress(FileNotFoundError):  # a crash
        os.unlink(fresh)
    copy_sparse(source, fresh)
    os.rename(fresh, target)


def make_like(source: str, target: str) -> None:
    """A file as long as another, all hole, for `copy_into`.  Raises DiskFull, FileExistsError."""
    with disk_errors("copying a disk"):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, os.stat(source).st_size)
        finally:
            os.close(fd)


def copy_into(source: str, target: str) -> None:
    """As `copy_sparse`, into a file that is there (`make_like`), and may be open elsewhere.  Raises
    DiskFull."""
    with contextlib.ExitStack() as stack, disk_errors("copying a disk"):
        old = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, old)
        new = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, new)
        _copy(old, new)


def _copy(old: int, new: int) -> None:
    try:
        fcntl.ioctl(new, _FICLONE, old)
    except OSError:
        _copy_data(old, new)


def _copy_data(old: int, new: int) -> None:
    """The kernel copies within one file system, and not between those of different kinds: a disk, and the
    tmpfs that /run usually is."""
    os.ftruncate(new, os.fstat(old).st_size)
    try:
        for start, length in find_extents(old):
            at, end = start, start + length
            while at < end:
                copied = os.copy_file_range(old, new, min(end - at, _COPY), at, at)
                if copied == 0:
                    raise Failure("a disk changed while it was copied")
                at += copied
    except OSError as error:
        if error.errno not in _NOT_BY_KERNEL:
            raise
        memory_file.copy_sparse(old, new)
