"""`docker ps`: which instances, by its filters.  Pure but for asking the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from insula.api.filters import Filters
from insula.api.translate_health import health_word
from insula.engine.planner import wanted_networks
from insula.engine.types import InstanceView
from insula.errors import InvalidRequest, NotFound
from insula.model.instance import State

if TYPE_CHECKING:
    from insula.engine.engine import Engine

_KNOWN = (
    "ancestor", "before", "exited", "expose", "health", "id", "isolation", "is-task", "label", "name",
    "network", "publish", "since", "status", "volume",
)  # fmt: skip


def select(
    engine: Engine, filters: Filters, *, all: bool = False, limit: int = 0, since: str = "", before: str = ""
) -> Iterator[InstanceView]:
    """Newest first.  Raises InvalidRequest for filters that do not exist or make no sense."""
    filters.accept(*_KNOWN)
    for status in filters.get("status"):
        if status not in State._value2member_map_:
            raise InvalidRequest(f"invalid filter 'status={status}'")
    for health in filters.get("health"):
        if health not in ("starting", "healthy", "unhealthy", "none"):
            raise InvalidRequest(f"unrecognized filter value for health: {health[:64]}")
    exited = filters.number("exited")
    floor = _created(engine, (*filters.get("since"), since))
    ceiling = _created(engine, (*filters.get("before"), before))
    ancestors = _ancestors(engine, filters)
    everything = all or limit > 0 or "status" in filters  # no other filter shows those that do not run
    shown = 0
    for instance in engine.list(all=everything):
        if not (filters.starts("id", instance.id) and filters.has("status", instance.state.value)):
            continue
        if not filters.searches("name", (instance.name, f"/{instance.name}")):
            continue
        if exited and not (instance.state is State.EXITED and instance.exit_code in exited):
            continue
        if floor and instance.created_ns <= max(floor):
            continue
        if ceiling and instance.created_ns >= min(ceiling):
            continue
        if ancestors is not None and instance.image_id not in ancestors:
            continue
        if not filters.has("isolation", instance.spec.isolation.value):
            continue
        if not filters.has("health", health_word(instance.health)):
            continue
        if filters.flag("is-task"):
            continue
        try:
            view = engine.describe(instance.id)
        except NotFound:  # removed since
            continue
        if not (filters.labels(view.config.labels) and _matches_view(view, filters)):
            continue
        yield view
        shown += 1
        if limit > 0 and shown >= limit:
            return


def _created(engine: Engine, refs: tuple[str, ...]) -> list[int]:
    return [engine.find(ref).created_ns for ref in refs if ref]


def _ancestors(engine: Engine, filters: Filters) -> set[str] | None:
    """Images named, and everything built on them."""
    if "ancestor" not in filters:
        return None
    wanted: set[str] = set()
    for ref in filters.get("ancestor"):
        try:
            base = engine.images.find(ref)
        except NotFound:
            continue
        wanted |= {i.id for i in engine.images.list() if i.diff_ids[: len(base.diff_ids)] == base.diff_ids}
    return wanted


def _matches_view(view: InstanceView, filters: Filters) -> bool:
    if "volume" in filters:
        places = {m.target for m in view.mounts} | {m.name or m.source for m in view.mounts}
        if not places & set(filters.get("volume")):
            return False
    if "network" in filters:
        spec = view.instance.spec
        networks = {each.name for each in wanted_networks(spec)} | {spec.network_mode}
        if not any(
            n in networks or any(e.network_id.startswith(n) for e in view.endpoints)
            for n in filters.get("network")
        ):
            return False
    if "publish" not in filters and "expose" not in filters:
        return True
    # by the port of the host, and by that of the instance; either is enough (moby)
    published = {f"{p.host_port}/{p.protocol}" for p in view.ports}
    exposed = {p if "/" in p else f"{p}/tcp" for p in view.config.exposed_ports}
    inside = {f"{p.container_port}/{p.protocol}" for p in view.ports}
    found = [
        _ports_match("publish", published, filters),
        _ports_match("expose", inside | exposed, filters),
    ]
    return any(found)


def _ports_match(name: str, ports: set[str], filters: Filters) -> bool:
    for text in filters.get(name):
        span, _, protocol = text.partition("/")
        low, _, high = span.partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()) or len(low) > 5 or len(high) > 5:
            raise InvalidRequest(f"invalid filter '{name}={text[:64]}'")
        if any(f"{n}/{protocol or 'tcp'}" in ports for n in range(int(low), int(high or low) + 1)):
            return True
    return False
