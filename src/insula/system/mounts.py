"""Mounts by system call: overlay, bind, propagation, unmount.  Synchronous, thread-safe; executes no program.

For whoever mounts inside this process's mount namespace.  Not for deciding what is mounted where, and
not for confining children (`system.confine`).  Every function raises Failure (Unavailable where the
kernel or a missing privilege forbids it) with the mount point in the sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence

from insula.errors import Failure, Unavailable

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# mount(2) copies one page of options, its last byte a NUL
_OPTION_BYTES = 4095

# Renames of lower directories answer EXDEV and files are copied up whole, so that an upper directory can
# be read as a layer (moby needs the same: its "native diff" check); redirects in a layer are not followed.
OVERLAY_OPTIONS = ("index=off", "metacopy=off", "redirect_dir=nofollow")

_SOUND = ("ext4", "xfs", "btrfs", "tmpfs")  # what can hold an upper directory, of those that are common

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _failure(action: str, number: int) -> Failure | Unavailable:
    sentence = f"{action}: {os.strerror(number)}"
    if number in (errno.EPERM, errno.EACCES):
        return Unavailable(sentence, hint="mounting needs root with CAP_SYS_ADMIN")
    if number == errno.ENODEV:
        return Unavailable(sentence, hint="the kernel lacks this file system; try modprobe")
    return Failure(sentence)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2).  Raises Unavailable, Failure."""
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, os.fsencode(options) or None
    )
    if done != 0:
        raise _failure(f"cannot mount {kind or 'by ' + hex(flags)} at {target}", ctypes.get_errno())


def umount(target: str, *, lazy: bool = False) -> bool:
    """Unmount the topmost mount at `target`; False if there was none.  `lazy` detaches even when busy.

    Without `lazy`, a busy mount is detached lazily too: whoever still holds a file in it keeps it alive,
    but the tree is free of it.  Raises Unavailable, Failure.
    """
    name = os.fsencode(target)
    for flags in (MNT_DETACH | UMOUNT_NOFOLLOW,) if lazy else (UMOUNT_NOFOLLOW, MNT_DETACH | UMOUNT_NOFOLLOW):
        if _libc.umount2(name, flags) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOENT):
            return False
        if number != errno.EBUSY:
            break
    raise _failure(f"cannot unmount {target}", number)


def _plain(path: str) -> bool:
    return not any(c in path for c in ',:\\"')


@contextlib.contextmanager
def _short_names(paths: Sequence[str]) -> Iterator[list[str]]:
    """The same directories as /proc/self/fd/N: short, and free of the characters that options quote."""
    with contextlib.ExitStack() as stack:
        names = []
        for path in paths:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            names.append(f"/proc/self/fd/{fd}")
        yield names


def mount_overlay(
    merged: str,
    lowers: Sequence[str],
    *,
    upper: str = "",
    work: str = "",
    volatile: bool = False,
    flags: int = 0,
) -> None:
    """Mount an overlay at `merged`.  `lowers` has the topmost first; no `upper`: read-only.

    Works for as many lowers as the kernel takes (500), whatever their names.  `volatile`: the upper
    file system is not synced at unmount and fsync does nothing (for what is thrown away anyway).  Not
    every file system can hold an upper directory, and overlay itself cannot: the hint then says so.
    Raises Unavailable, Failure.
    """

    def options(paths: Sequence[str]) -> str:
        words = [*OVERLAY_OPTIONS, "lowerdir=" + ":".join(paths[: len(lowers)])]
        if upper:
            words += [f"upperdir={paths[-2]}", f"workdir={paths[-1]}"]
        return ",".join([*words, "volatile"] if volatile else words)

    if not upper and len(lowers) == 1:  # overlayfs wants two layers; one needs none
        bind(lowers[0], merged, read_only=True)
        return
    paths = [*lowers, upper, work] if upper else list(lowers)
    text = options(paths)
    try:
        if len(os.fsencode(text)) <= _OPTION_BYTES and all(map(_plain, paths)):
            mount("overlay", merged, "overlay", flags, text)
            return
        with _short_names(paths) as names:
            mount("overlay", merged, "overlay", flags, options(names))
    except Failure as error:
        if not upper or (kind := file_system_of(upper)) in _SOUND:
            raise
        raise Failure(
            error.message,
            hint=f"{upper} is on {kind or 'a file system'} that may not do for it: the data root belongs on "
            f"{', '.join(_SOUND[:-1])} or {_SOUND[-1]}",
        ) from error


def bind(source: str, target: str, *, recursive: bool = False, read_only: bool = False) -> None:
    """Show the file or directory `source` at `target`, which exists."""
    flags = MS_BIND | (MS_REC if recursive else 0)
    mount(source, target, "", flags)
    if read_only:
        try:
            mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
        except Failure:
            umount(target, lazy=True)
            raise


def make_private(target: str, *, recursive: bool = True) -> None:
    mount("", target, "", MS_PRIVATE | (MS_REC if recursive else 0))


def make_slave(target: str, *, recursive: bool = True) -> None:
    mount("", target, "", MS_SLAVE | (MS_REC if recursive else 0))


def make_shared(target: str, *, recursive: bool = False) -> None:
    mount("", target, "", MS_SHARED | (MS_REC if recursive else 0))


def _unquote(field: bytes) -> str:
    r"""mountinfo writes space, tab, newline and backslash as \ooo."""
    if b"\\" in field:
        pieces = field.split(b"\\")
        field = pieces[0] + b"".join(bytes([int(p[:3], 8)]) + p[3:] for p in pieces[1:])
    return os.fsdecode(field)


def mount_points(prefix: str = "/") -> tuple[str, ...]:
    """Mount points at or below `prefix` (an absolute path without symlinks), in the order they were mounted.

    A path mounted over twice is there twice.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        found = [_unquote(line.split(b" ", 5)[4]) for line in file.read().splitlines()]
    below = prefix.rstrip("/") + "/"
    return tuple(p for p in found if p == prefix or p.startswith(below))


def file_system_of(path: str) -> str:
    """The type (`ext4`) of the file system that `path` is on; "" when the kernel does not say."""
    device = os.stat(path).st_dev
    number = b"%d:%d" % (os.major(device), os.minor(device))
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().splitlines():
            before, _, after = line.partition(b" - ")
            if before.split(b" ", 3)[2] == number:
                return os.fsdecode(after.split(b" ", 1)[0])
    return ""


def is_mounted(target: str) -> bool:
    """Whether `target` itself is a mount point (symlinks in its parents resolved)."""
    return os.path.realpath(target) in mount_points(os.path.realpath(target))


def umount_below(prefix: str) -> None:
    """Unmount everything at or below `prefix`, last mounted first."""
    for point in reversed(mount_points(os.path.realpath(prefix))):
        umount(point)
