"""Mounting what a volume's options say while somebody uses it, and pinning a part of a volume.  Synchronous.

A pin is a bind mount of what a path inside a volume is *now*, made through a descriptor: whoever writes to
the volume cannot turn the path into a link to somewhere else between the look and the mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from insula.errors import Failure, InvalidRequest, Unavailable
from insula.model.volume import Volume
from insula.system import mounts
from insula.system.openat import open_beneath
from insula.volumes.driver import decide_mount, with_address, without_password


def mount_volume(volume: Volume) -> None:
    """At its mountpoint, unless that is mounted already.  May wait for a network.  Raises Failure."""
    if os.path.ismount(volume.mountpoint):
        return
    try:
        call = with_address(decide_mount(volume.options))
        mounts.mount(call.device, volume.mountpoint, call.kind, call.flags, call.data)
    except (Failure, Unavailable) as error:
        shown = ", ".join(f"{name}={value}" for name, value in sorted(volume.options.items()))
        raise Failure(
            without_password(
                f"error while mounting volume '{volume.mountpoint}': failed to mount local volume: "
                f"mount {volume.options.get('device', '')}:{volume.mountpoint} ({shown}): {error.message}"
            ),
            hint=error.hint,
        ) from error
    try:
        if call.propagation:
            mounts.mount("", volume.mountpoint, "", call.propagation)
        if call.flags & mounts.MS_BIND and call.flags & mounts.MS_RDONLY:
            mounts.mount("", volume.mountpoint, "", call.flags | mounts.MS_REMOUNT)
    except BaseException:
        umount_volume(volume)
        raise


def umount_volume(volume: Volume) -> None:
    """Fine if it is not mounted."""
    while mounts.umount(volume.mountpoint):
        pass


@contextlib.contextmanager
def open_part(volume: Volume, subpath: str) -> Iterator[str]:
    """A name for the part `subpath` of a volume that holds while this is open.

    Raises InvalidRequest when there is no such part, or when it lies outside the volume.
    """
    root = os.open(volume.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fd = open_beneath(root, subpath, os.O_PATH)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise InvalidRequest(
                    "path concatenation escapes the base directory, "
                    f"base: {volume.mountpoint}, subpath: {subpath}",
                    hint="no link of a subpath may lead out of the volume",
                ) from None
            raise InvalidRequest(
                f"cannot access path {os.path.join(volume.mountpoint, subpath)}: {error.strerror}",
                hint="a subpath must exist in the volume",
            ) from None
    finally:
        os.close(root)
    try:
        # of this process by its number: `cp` is another one
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def pin(volume: Volume, subpath: str, at: str) -> None:
    """Show that part of the volume at `at`, which is made.  Raises InvalidRequest, Failure."""
    with open_part(volume, subpath) as name:
        if stat.S_ISDIR(os.stat(name).st_mode):
            os.makedirs(at, mode=0o700, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(at), mode=0o700, exist_ok=True)
            with open(at, "ab"):
                pass
        mounts.bind(name, at, recursive=True)
        mounts.make_private(at)


def unpin(at: str) -> None:
    """Idempotent."""
    while mounts.umount(at):
        pass
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(at):
            os.rmdir(at)
        else:
            os.unlink(at)
