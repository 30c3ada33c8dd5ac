"""Giving back what builds keep besides images: the volumes of `RUN --mount=type=cache`.  Async."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from insula.build.mounting import CACHE_LABEL
from insula.errors import Conflict
from insula.model.reports import PruneFilters, PruneReport

if TYPE_CHECKING:
    from insula.engine.engine import Engine


async def prune_caches(engine: Engine, filters: PruneFilters) -> PruneReport:
    """Those that no RUN uses now."""
    deleted: list[str] = []
    freed = 0
    for volume in engine.volumes.list():
        if CACHE_LABEL not in volume.labels or not filters.matches(volume.created_ns, volume.labels):
            continue
        size = await engine.volumes.size(volume.name)
        with contextlib.suppress(Conflict):
            await engine.remove_volume(volume.name)
            deleted.append(volume.name)
            freed += size
    return PruneReport(deleted=tuple(deleted), reclaimed_bytes=freed)
