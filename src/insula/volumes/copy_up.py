"""Filling a fresh volume with what the image has at its place, as Docker does.  Async; `cp` does the work.

The source is the image's unpacked layers, not an instance's root, so that it is the same for containers
and VMs.  They are put together by a read-only overlay mount in a place of our own.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Sequence

from insula.errors import DiskFull, InvalidRequest, ProgramFailed
from insula.system.files import remove_tree
from insula.system.mounts import mount_overlay, umount
from insula.system.run import arun

_LONGEST_CHAIN = 40


async def copy_up(layers: Sequence[str], path: str, target: str, *, scratch: str) -> bool:
    """Copy the directory `path` of the image into the empty directory `target`, owners, modes and all.

    `layers` are directories, topmost first.  Nothing is copied (False) when `target` has something in it,
    or the image has nothing there.  Raises InvalidRequest when it has a file there, DiskFull, ProgramFailed.
    """
    if os.listdir(target):
        return False
    if not any(os.path.lexists(layer + path) for layer in layers) and not _crosses_link(layers, path):
        return False  # the usual case, without a mount
    with contextlib.ExitStack() as stack:
        place = tempfile.mkdtemp(prefix="copy-up-", dir=scratch)
        stack.callback(remove_tree, place)
        base = os.path.join(place, "image")
        os.mkdir(base)
        mount_overlay(base, layers)
        stack.callback(umount, base)
        source = resolve_inside(base, path)
        if source is None:
            return False
        if not os.path.isdir(source):
            raise InvalidRequest(  # moby's words
                f"cannot mount volume over existing file, file exists {path}",
                hint="a volume is a directory: mount it at another place",
            )
        try:
            await arun(["cp", "-a", "--reflink=auto", "--", f"{source}/.", target])
        except ProgramFailed as error:
            if "No space left" in error.stderr:
                raise DiskFull(f"no space left while filling the volume at {target}") from error
            raise
    return True


def _crosses_link(layers: Sequence[str], path: str) -> bool:
    """Some parent of `path` is a symbolic link in some layer, so that it may exist under another name."""
    parts = path.strip("/").split("/")
    return any(
        os.path.islink(os.path.join(layer, *parts[:depth]))
        for layer in layers
        for depth in range(1, len(parts) + 1)
    )


def resolve_inside(root: str, path: str) -> str | None:
    """What `path` means when `root` is `/`; None when nothing is there.  Nothing changes the tree meanwhile
    (it is an image), so plain look-ups are enough."""
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            if done:
                done.pop()
            continue
        here = os.path.join(root, *done, part)
        try:
            mode = os.lstat(here).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            links += 1
            if links > _LONGEST_CHAIN:
                return None
            target = os.readlink(here)
            if target.startswith("/"):
                done.clear()
            todo.extend(piece for piece in reversed(target.split("/")) if piece not in ("", "."))
        else:
            done.append(part)
    return os.path.join(root, *done)
