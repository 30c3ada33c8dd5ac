"""Logs that are kept to a size (`max-size`, `max-file`), whoever writes them.  Async.

conmon and QEMU write on, at the end of the same file; its beginning is given back to the file system.  So
there is nothing to reopen, no gap, and a follower goes on reading where it is; for one that is slow as much
again is kept.  A log that grew while the daemon was away is cut when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from insula.engine.instances import Entry
from insula.engine.log_options import log_limit
from insula.errors import UnsupportedField
from insula.model.instance import LogConfig
from insula.system.holes import can_punch, keep_end

if TYPE_CHECKING:
    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

_BREATH_S = 0.2
"""Between two looks at a log that grows without end."""


class Rotation:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._possible: bool | None = None

    def check(self, config: LogConfig) -> None:
        """Raises UnsupportedField where logs cannot be kept to a size."""
        if not log_limit(config):
            return
        if self._possible is None:
            self._possible = can_punch(self._kit.settings.data_root)
        if not self._possible:
            raise UnsupportedField(
                "HostConfig.LogConfig.Config.max-size",
                f"the file system of {self._kit.settings.data_root} cannot give back the beginning of a file",
                hint="use json-file without max-size, or a data root on ext4, xfs, btrfs or tmpfs",
            )

    def watch(self, entry: Entry) -> None:
        """Keep its log to its size from now on."""
        self.stop(entry)
        if limit := log_limit(entry.record.spec.log):
            path = self._kit.log_path(entry.id)
            entry.trimmer = asyncio.create_task(self._watch(path, limit), name=f"log of {entry.id}")

    def stop(self, entry: Entry) -> None:
        if entry.trimmer is not None:
            entry.trimmer.cancel()
            entry.trimmer = None

    async def finish(self, entry: Entry) -> None:
        """Its last output is written."""
        self.stop(entry)
        if limit := log_limit(entry.record.spec.log):
            await self._trim(self._kit.log_path(entry.id), limit)

    async def settle(self, entry: Entry) -> None:
        """Somebody who followed its log has gone: what was kept for that one alone may go too."""
        limit = log_limit(entry.record.spec.log)
        if limit and not entry.removed:
            await self._trim(self._kit.log_path(entry.id), limit)

    async def _watch(self, path: str, limit: int) -> None:
        try:
            with self._kit.growth.watch(path) as grown:
                while True:
                    grown.clear()
                    await self._trim(path, limit)
                    await grown.wait()
                    await asyncio.sleep(_BREATH_S)
        except FileNotFoundError:
            return  # the instance was removed

    async def _trim(self, path: str, limit: int) -> None:
        try:
            await asyncio.to_thread(keep_end, path, limit, self._kit.growth.unread(path))
        except OSError as error:
            log.error("%s cannot be kept to %d bytes: %s", path, limit, error)
