"""Which of the kernel's security modules work on this host.  Synchronous: reads /sys."""

from __future__ import annotations

import os


def has_apparmor() -> bool:
    try:
        with open("/sys/module/apparmor/parameters/enabled", encoding="ascii") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


def has_selinux() -> bool:
    return os.path.exists("/sys/fs/selinux/enforce")
