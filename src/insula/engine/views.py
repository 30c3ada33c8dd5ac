"""One instance as inspect and ps show it.  Pure."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from insula.engine.instances import Entry
from insula.engine.types import InstanceView, MountView
from insula.model.image import Image
from insula.model.instance import State
from insula.model.mounts import MountKind, MountSpec
from insula.model.network import Endpoint, PortBinding


def make_view(
    entry: Entry,
    *,
    image: Image | None,
    image_named: bool,
    endpoints: tuple[Endpoint, ...],
    ports: tuple[PortBinding, ...],
    state_dir: str,
    mountpoints: Mapping[str, str],
    links: tuple[tuple[str, str], ...],
    link_names: tuple[str, ...],
) -> InstanceView:
    """What the doors may know of an instance."""
    plan = entry.plan
    record = entry.record
    if entry.restarting and record.state is State.EXITED:
        record = dataclasses.replace(record, state=State.RESTARTING)
    directory = plan.directory if plan is not None else None
    disk = plan.disk if plan is not None else None
    return InstanceView(
        instance=record,
        image=image,
        image_named=image_named,
        config=entry.config,
        plan=plan if entry.record.started_ns else None,
        endpoints=endpoints,
        ports=ports,
        execs=tuple(made.view() for made in entry.execs.values()),
        mounts=make_mount_views(entry, mountpoints),
        log_path=plan.console.log_path if plan is not None else "",
        hosts_path=os.path.join(state_dir, "hosts"),
        hostname_path=os.path.join(state_dir, "hostname"),
        resolv_conf_path=os.path.join(state_dir, "resolv.conf"),
        merged_path=directory.merged if directory is not None else "",
        upper_path=directory.upper if directory is not None else "",
        work_path=directory.work if directory is not None else "",
        lower_paths=directory.lowers if directory is not None else (),
        image_disk=disk.image_disk if disk is not None else "",
        upper_disk=disk.upper_disk if disk is not None else "",
        links=links,
        link_names=link_names,
    )


def make_mount_views(entry: Entry, mountpoints: Mapping[str, str]) -> tuple[MountView, ...]:
    """Volumes with their names; no `--tmpfs`, as Docker's.  `mountpoints`: by name."""
    views = []
    for spec in entry.record.mounts:
        if spec.kind is MountKind.TMPFS and spec.legacy:
            continue
        volume = spec.kind is MountKind.VOLUME
        views.append(
            MountView(
                kind=spec.kind,
                name=spec.source if volume else "",
                source=mountpoints.get(spec.source, "") if volume else spec.source,
                target=spec.target,
                driver="local" if volume else "",
                mode=_mode(spec),
                writable=not spec.read_only,
                propagation=(spec.propagation or "rprivate") if spec.kind is MountKind.BIND else "",
            )
        )
    return tuple(views)


def _mode(spec: MountSpec) -> str:
    """What was written after the second colon.  Where nothing was Docker has a `z`, for a volume, unless it
    was made up for `-v /target` or the image."""
    if spec.text.count(":") == 2:
        return spec.text.rpartition(":")[2]
    return "z" if spec.kind is MountKind.VOLUME and not (spec.legacy and spec.anonymous) else ""
