"""What several followers of one log read alike is read, parsed and rendered once.  Not async.

They come by one after the other, so a few blocks are kept, of all logs together.  A block that is kept begins
and ends with a line, so that who takes it has neither half a line before nor after.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from insula.engine.types import LogBatch

_MOST = 32
"""A block of short lines is some 150 KiB in memory."""

_Key = tuple[int, int, Hashable]


class Batches:
    """By the file (inotify's number for it), the offset, and what of it is wanted."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, tuple[int, LogBatch]] = OrderedDict()

    def find(self, file: int, offset: int, wanted: Hashable) -> tuple[int, LogBatch] | None:
        """Where it ends, and what it holds."""
        key = (file, offset, wanted)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, file: int, offset: int, wanted: Hashable, end: int, batch: LogBatch) -> None:
        self._kept[file, offset, wanted] = end, batch
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    def forget(self, file: int) -> None:
        for key in [key for key in self._kept if key[0] == file]:
            del self._kept[key]
