"""What builds keep besides images, and giving it back.  Async.

Caches of `RUN --mount=type=cache`, which are volumes, and contexts (`contexts`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from insula.build.contexts import Contexts
from insula.build.mounting import CACHE_LABEL
from insula.errors import Conflict, NoSuchVolume
from insula.model.reports import PruneFilters, PruneReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from insula.engine.engine import Engine

MOUNT, LOCAL = "exec.cachemount", "source.local"
"""Kinds of records, by BuildKit's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """`used_ns` is when it was used last, as far as that is known; `uses` 0: it is not counted."""

    ident: str
    kind: str
    description: str
    size_bytes: int
    created_ns: int
    used_ns: int
    uses: int = 0
    labels: Mapping[str, str]


async def list_caches(engine: Engine) -> list[CacheRecord]:
    """Those unused for longest first."""
    found = await list_contexts(engine)
    for volume in engine.volumes.list():
        if CACHE_LABEL not in volume.labels:
            continue
        with contextlib.suppress(NoSuchVolume):  # somebody else has removed it
            found.append(
                CacheRecord(
                    ident=volume.name,
                    kind=MOUNT,
                    description=f"cached mount {volume.labels[CACHE_LABEL]}",
                    size_bytes=await engine.volumes.size(volume.name),
                    created_ns=volume.created_ns,
                    used_ns=volume.created_ns,
                    labels=volume.labels,
                )
            )
    return sorted(found, key=lambda record: record.used_ns)


async def list_contexts(engine: Engine) -> list[CacheRecord]:
    """The contexts alone: caches are volumes too, and counted there."""
    return [
        CacheRecord(
            ident=kept.ident,
            kind=LOCAL,
            description=f"local source for {kept.name}",
            size_bytes=kept.size_bytes,
            created_ns=kept.created_ns,
            used_ns=kept.used_ns,
            uses=kept.uses,
            labels={},
        )
        for kept in await asyncio.to_thread(Contexts(engine.settings).list)
    ]


async def prune_caches(
    engine: Engine,
    filters: PruneFilters,
    *,
    chosen: Callable[[CacheRecord], bool] = lambda _: True,
    keep_bytes: int = 0,
) -> PruneReport:
    """As `remove_caches`, told as Docker's pages tell it."""
    removed = await remove_caches(engine, filters, chosen=chosen, keep_bytes=keep_bytes)
    return PruneReport(
        deleted=tuple(cache.ident for cache in removed),
        reclaimed_bytes=sum(cache.size_bytes for cache in removed),
    )


async def remove_caches(
    engine: Engine, filters: PruneFilters, *, chosen: Callable[[CacheRecord], bool], keep_bytes: int
) -> list[CacheRecord]:
    """Those that no build uses now, oldest first.  `keep_bytes`: so much of all may stay."""
    caches = await list_caches(engine)
    removed: list[CacheRecord] = []
    left = sum(cache.size_bytes for cache in caches)
    for cache in caches:
        if not filters.matches(cache.used_ns, cache.labels) or not chosen(cache) or left <= keep_bytes > 0:
            continue
        if cache.kind == LOCAL:
            if not await asyncio.to_thread(Contexts(engine.settings).remove, cache.ident):
                continue  # a build has taken it
        else:
            try:
                await engine.remove_volume(cache.ident)
            except (Conflict, NoSuchVolume):
                continue
        removed.append(cache)
        left -= cache.size_bytes
    return removed
