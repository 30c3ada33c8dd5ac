"""What builds had under way when the daemon died.  Synchronous; before any build begins."""

from __future__ import annotations

import glob
import os

from insula.config import Settings
from insula.system.files import remove_tree
from insula.system.mounts import umount_below


def remove_unfinished_builds(settings: Settings) -> None:
    """Their directories, and what is mounted there.  Their instances are the engine's to remove."""
    shown = glob.glob(os.path.join(glob.escape(settings.exec_root), "mounts", "build-*"))
    own = [os.path.join(root, "build") for root in (settings.exec_root, settings.data_root)]
    for place in (*shown, *own):
        if os.path.isdir(place):
            umount_below(place)
            remove_tree(place)
    if os.path.isdir(os.path.join(settings.data_root, "contexts")):
        from insula.build.contexts import Contexts

        Contexts(settings).trim()
