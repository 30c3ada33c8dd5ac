"""What there is, who uses what, how much it takes, and what may go: info, df, prune.  Async."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from insula.engine.contents import Contents
from insula.engine.creation import Creation
from insula.engine.instances import Instances
from insula.engine.removal import Removal
from insula.engine.types import (
    DiskUsage,
    EngineInfo,
    InstanceView,
    PruneFilters,
    PruneReport,
    VolumeUsage,
)
from insula.errors import Conflict, Failure, NoSuchInstance
from insula.images.records import Use
from insula.model.image import Image
from insula.model.instance import State

if TYPE_CHECKING:
    from insula.engine.kit import Kit

_ID = "engine-id"
_GONE_STATES = (State.CREATED, State.EXITED, State.DEAD)


class Inventory:
    def __init__(self, kit: Kit, instances: Instances, creation: Creation, contents: Contents) -> None:
        self._kit = kit
        self._instances = instances
        self._creation = creation
        self._contents = contents
        self._started_ns = time.time_ns()
        self.held_images: dict[str, str] = {}
        """Image ids by who holds them: what a build has made so far."""

    # who uses what

    def image_user(self, image_id: str) -> Use | None:
        """One that runs, if any does; creates and builds under way count as running."""
        for holder, used in self.held_images.items():
            if used == image_id:
                return Use(holder=holder, running=True)
        for instance_id, used in self._creation.images.items():
            if used == image_id:
                return Use(holder=instance_id, running=True)
        users = [entry for entry in self._instances.all() if entry.record.image_id == image_id]
        for entry in users:
            if entry.run is not None or entry.alive:
                return Use(holder=entry.id, running=True)
        return Use(holder=users[0].id) if users else None

    # pruning

    async def prune_instances(self, filters: PruneFilters, removal: Removal) -> PruneReport:
        deleted: list[str] = []
        reclaimed = 0
        for entry in self._instances.all():
            record = entry.record
            if record.state not in _GONE_STATES or not filters.matches(
                record.created_ns, record.config.labels
            ):
                continue
            try:
                size = await self._contents.sizes(entry)
                await removal.remove(entry, entry.id, force=False, volumes=False)
            except (Conflict, NoSuchInstance):
                continue  # started, or removed by somebody else, meanwhile
            deleted.append(entry.id)
            reclaimed += size.written_bytes
        self._kit.events.publish("container", "prune", "", reclaimed=str(reclaimed))
        return PruneReport(deleted=tuple(deleted), reclaimed_bytes=reclaimed)

    # telling

    def _layer_sizes(self, images: tuple[Image, ...]) -> dict[str, int]:
        """By diff_id, each once."""
        sizes = dict.fromkeys((diff_id for image in images for diff_id in image.diff_ids), 0)
        for diff_id in sizes:
            with contextlib.suppress(Failure):  # not unpacked: it takes no room
                sizes[diff_id] = self._kit.images.layers.size(diff_id)
        return sizes

    async def shared_sizes(self) -> dict[str, int]:
        """Bytes by image id: of an image's layers, those that others have too."""
        images = self._kit.images.list()
        return _shared(images, await asyncio.to_thread(self._layer_sizes, images))

    async def disk_usage(self, describe: Callable[[str], InstanceView]) -> DiskUsage:
        kit = self._kit
        entries = self._instances.all()
        volumes = []
        for volume in kit.volumes.list():
            users = volume_users(self._instances, self._creation, volume.name)
            volumes.append(
                VolumeUsage(
                    volume=volume, size_bytes=await kit.volumes.size(volume.name), references=len(users)
                )
            )
        images = kit.images.list()
        views = []
        for entry in entries:
            with contextlib.suppress(NoSuchInstance):  # removed meanwhile
                views.append(describe(entry.id))
        layers = await asyncio.to_thread(self._layer_sizes, images)
        return DiskUsage(
            layers_bytes=sum(layers.values()),
            images=images,
            instances=tuple(views),
            shared_bytes=_shared(images, layers),
            sizes={entry.id: await self._contents.sizes(entry) for entry in entries},
            volumes=tuple(volumes),
        )

    def info(self) -> EngineInfo:
        kit = self._kit
        states = [entry.record.state for entry in self._instances.all()]
        running = sum(state in (State.RUNNING, State.RESTARTING) for state in states)
        paused = states.count(State.PAUSED)
        uname = os.uname()
        return EngineInfo(
            id=self._id(),
            name=socket.gethostname(),
            running=running,
            paused=paused,
            stopped=len(states) - running - paused,
            images=len(kit.images.list()),
            default_isolation=kit.settings.default_isolation,
            backends=tuple(backend.info() for backend in kit.backends.values()),
            data_root=kit.settings.data_root,
            kernel=uname.release,
            operating_system=_operating_system(),
            architecture=uname.machine,
            cpus=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            started_ns=self._started_ns,
            warnings=(*kit.networks.warnings(), *(f"WARNING: {damaged}" for damaged in kit.store.damage())),
        )

    def _id(self) -> str:
        known = self._kit.store.get_meta(_ID)
        if known is None:
            known = str(uuid.uuid4())
            self._kit.store.set_meta(_ID, known)
        return known


def _shared(images: tuple[Image, ...], layers: Mapping[str, int]) -> dict[str, int]:
    having = Counter(diff_id for image in images for diff_id in set(image.diff_ids))
    return {
        image.id: sum(layers[diff_id] for diff_id in set(image.diff_ids) if having[diff_id] > 1)
        for image in images
    }


def volume_users(instances: Instances, creation: Creation, name: str) -> tuple[str, ...]:
    """Ids of the instances that use a volume, those being created included."""
    made = [entry.id for entry in instances.all() if name in entry.record.volumes.values()]
    return (*made, *(instance_id for instance_id, names in creation.volumes.items() if name in names))


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
