"""Giving back what builds keep besides images: the volumes of `RUN --mount=type=cache`.  Async."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from typing import TYPE_CHECKING

from insula.build.mounting import CACHE_LABEL
from insula.errors import Conflict, NoSuchVolume
from insula.model.reports import PruneFilters, PruneReport

if TYPE_CHECKING:
    from insula.engine.engine import Engine


async def prune_caches(
    engine: Engine, filters: PruneFilters, *, ids: Container[str] = (), keep_bytes: int = 0
) -> PruneReport:
    """Those that no RUN uses now, oldest first.  `ids`: of these names alone; none means any.  `keep_bytes`:
    so much of all caches may stay."""
    caches = sorted(
        (volume for volume in engine.volumes.list() if CACHE_LABEL in volume.labels),
        key=lambda volume: volume.created_ns,
    )
    sizes: dict[str, int] = {}
    for volume in caches:
        with contextlib.suppress(NoSuchVolume):  # somebody else has removed it
            sizes[volume.name] = await engine.volumes.size(volume.name)
    deleted: list[str] = []
    freed, left = 0, sum(sizes.values())
    for volume in caches:
        size = sizes.get(volume.name)
        if size is None or not filters.matches(volume.created_ns, volume.labels):
            continue
        if (ids and volume.name not in ids) or left <= keep_bytes > 0:
            continue
        with contextlib.suppress(Conflict, NoSuchVolume):
            await engine.remove_volume(volume.name)
            deleted.append(volume.name)
            freed += size
            left -= size
    return PruneReport(deleted=tuple(deleted), reclaimed_bytes=freed)
