"""What every root has, whatever its image: places that the engine mounts over, and Docker's own files.

Synchronous, light to import.  The guest's agent makes the same (`guest/agent/root.c`).
"""

from __future__ import annotations

import contextlib
import os
import stat as st

# what an engine puts into a root for its own mounts; shown only once there is something in it
SCAFFOLD = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")

_DIRECTORIES = ("proc", "sys", "dev", "etc")
_FILES = {"etc/hosts": 0o644, "etc/hostname": 0o644, "etc/resolv.conf": 0o644, ".dockerenv": 0o755}
_LINKS = {"etc/mtab": "/proc/mounts"}


def make_scaffold(directory: str) -> None:
    """A layer to go below an image's: what the image has itself is what is seen.  Fine if it is there.

    As in dockerd's layer for each container: programs look for `/.dockerenv` to know that they are in a
    container, and read `/etc/mtab` (Java up to 17 asks it for a file's file system).
    """
    for name in ("", *_DIRECTORIES):
        os.makedirs(f"{directory}/{name}", exist_ok=True)
        os.chmod(f"{directory}/{name}", 0o755)
    for name, mode in _FILES.items():
        with open(f"{directory}/{name}", "ab") as file:
            os.fchmod(file.fileno(), mode)
    for name, target in _LINKS.items():
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"{directory}/{name}")


def is_scaffold(shown: str, path: str | bytes, found: os.stat_result) -> bool:
    """Whether `path`, in the root as `shown`, is only what the engine mounts over."""
    if shown not in SCAFFOLD:
        return False
    if st.S_ISDIR(found.st_mode):
        return not os.listdir(path)
    return st.S_ISREG(found.st_mode) and found.st_size == 0
