"""Places in a root that exist only so that the engine can mount over them.  Synchronous, light to import."""

from __future__ import annotations

import os
import stat as st

# what an engine puts into a root for its own mounts; shown only once there is something in it
SCAFFOLD = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


def is_scaffold(shown: str, path: str | bytes, found: os.stat_result) -> bool:
    """Whether `path`, in the root as `shown`, is only what the engine mounts over."""
    if shown not in SCAFFOLD:
        return False
    if st.S_ISDIR(found.st_mode):
        return not os.listdir(path)
    return st.S_ISREG(found.st_mode) and found.st_size == 0
