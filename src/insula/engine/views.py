"""One instance as inspect and ps show it.  Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping

from insula.engine.creation import decide_mounts
from insula.engine.instances import Entry
from insula.engine.types import InstanceView, MountView
from insula.isolation.plan import LaunchPlan
from insula.model.image import Image
from insula.model.mounts import MountKind
from insula.model.network import Endpoint, PortBinding


def make_view(
    entry: Entry,
    *,
    image: Image | None,
    endpoints: tuple[Endpoint, ...],
    ports: tuple[PortBinding, ...],
    state_dir: str,
    origin: Mapping[str, str],
) -> InstanceView:
    plan = entry.plan
    directory = plan.directory if plan is not None else None
    disk = plan.disk if plan is not None else None
    return InstanceView(
        instance=entry.record,
        image=image,
        config=entry.config,
        plan=plan if entry.record.started_ns else None,
        endpoints=endpoints,
        ports=ports,
        execs=tuple(made.view() for made in entry.execs.values()),
        mounts=make_mount_views(entry, plan),
        log_path=plan.console.log_path if plan is not None else "",
        hosts_path=os.path.join(state_dir, "hosts"),
        hostname_path=os.path.join(state_dir, "hostname"),
        resolv_conf_path=os.path.join(state_dir, "resolv.conf"),
        merged_path=directory.merged if directory is not None else "",
        upper_path=directory.upper if directory is not None else "",
        work_path=directory.work if directory is not None else "",
        lower_paths=directory.lowers if directory is not None else (),
        origin=origin,
        image_disk=disk.image_disk if disk is not None else "",
        upper_disk=disk.upper_disk if disk is not None else "",
    )


def make_mount_views(entry: Entry, plan: LaunchPlan | None) -> tuple[MountView, ...]:
    """tmpfs mounts of `--tmpfs` and `--mount` alike; volumes with their names."""
    sources = {mount.target: mount.source for mount in plan.mounts} if plan is not None else {}
    views = []
    for spec in decide_mounts(entry.record.spec, entry.config.volumes):
        volume = spec.kind is MountKind.VOLUME
        views.append(
            MountView(
                kind=spec.kind,
                name=entry.record.volumes.get(spec.target, "") if volume else "",
                source=sources.get(spec.target, spec.source),
                target=spec.target,
                driver="local" if volume else "",
                mode="ro" if spec.read_only else ("z" if volume and spec.legacy else ""),
                writable=not spec.read_only,
                propagation=(spec.propagation or "rprivate") if spec.kind is MountKind.BIND else "",
            )
        )
    return tuple(views)
