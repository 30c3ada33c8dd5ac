"""Events and disk usage as Docker shows them.  Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from insula.api.filters import Filters
from insula.api.times import SECOND_NS, format_time
from insula.api.translate_image import render_summary
from insula.api.translate_list import render_summary as render_container
from insula.api.translate_volume import render_volume
from insula.api.versions import NEWEST, Version
from insula.api.wire.codec import to_builtins
from insula.engine.types import DiskUsage
from insula.events import Event
from insula.model.reports import has_label

if TYPE_CHECKING:
    from insula.build.prune import CacheRecord


def render_event(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {
        "Type": event.kind,
        "Action": event.action,
        "Actor": {"ID": event.actor_id, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time_ns // SECOND_NS,
        "timeNano": event.time_ns,
    }
    if event.kind in ("container", "image"):  # what clients of the oldest versions still read
        document = {"status": event.action, "id": event.actor_id} | document
        if event.kind == "container" and "image" in event.attributes:
            document["from"] = event.attributes["image"]
    return document


EVENT_FILTERS = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
    "secret", "service", "type", "volume",
)  # fmt: skip


def event_matches(event: Event, filters: Filters) -> bool:
    if not (filters.has("type", event.kind) and filters.has("scope", "local")):
        return False
    if "event" in filters and not any(
        event.action == wanted or event.action.startswith(f"{wanted}:") for wanted in filters.get("event")
    ):
        return False
    if not all(has_label(event.attributes, wanted) for wanted in filters.get("label")):
        return False
    for kind in ("config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"):
        if kind in filters and not (event.kind == kind and _names(event, filters.get(kind))):
            return False
    if "image" in filters:
        wanted_images = filters.get("image")
        shown = (
            event.attributes.get("image", "")
            if event.kind == "container"
            else event.attributes.get("name", "")
        )
        names = (event.actor_id, shown, shown.partition(":")[0])
        if event.kind not in ("container", "image") or not any(n and n in wanted_images for n in names):
            return False
    return True


def _names(event: Event, wanted: tuple[str, ...]) -> bool:
    """moby's FuzzyMatch: the beginning of a name or an id is enough."""
    name = event.attributes.get("name", "")
    return any(name.startswith(w) or event.actor_id.startswith(w) for w in wanted)


def _sizes(usage: DiskUsage, instance_id: str) -> dict[str, int]:
    sizes = usage.sizes.get(instance_id)
    return {"SizeRw": sizes.written_bytes, "SizeRootFs": sizes.total_bytes} if sizes else {}


def _render_cache(cache: CacheRecord, version: Version) -> dict[str, Any]:
    return {
        "ID": cache.ident,
        **({"Parents": None} if version >= (1, 42) else {"Parent": ""}),
        "Type": cache.kind,
        "Description": cache.description,
        "InUse": False,
        "Shared": False,
        "Size": cache.size_bytes,
        "CreatedAt": format_time(cache.created_ns),
        "LastUsedAt": format_time(cache.used_ns),
        "UsageCount": cache.uses,
    }


def render_disk_usage(
    usage: DiskUsage, kinds: tuple[str, ...], version: Version = NEWEST, caches: Sequence[CacheRecord] = ()
) -> dict[str, Any]:
    def wanted(kind: str) -> bool:
        return not kinds or kind in kinds

    now_ns = time.time_ns()
    document: dict[str, Any] = (
        {"BuilderSize": sum(cache.size_bytes for cache in caches)} if version < (1, 42) else {}
    )
    if wanted("image"):
        users = Counter(view.instance.image_id for view in usage.instances)
        document["LayersSize"] = usage.layers_bytes
        document["Images"] = [
            render_summary(i, version, containers=users[i.id], shared_size=usage.shared_bytes[i.id])
            for i in usage.images
        ]
    if wanted("container"):
        document["Containers"] = [
            to_builtins(render_container(view, now_ns, version)) | _sizes(usage, view.instance.id)
            for view in usage.instances
        ]
    if wanted("volume"):
        document["Volumes"] = [
            render_volume(v.volume) | {"UsageData": {"RefCount": v.references, "Size": v.size_bytes}}
            for v in usage.volumes
        ]
    if wanted("build-cache"):
        document["BuildCache"] = [_render_cache(cache, version) for cache in caches]
    return document
