"""An instance's volumes while it has a workload: mounted, parts of them pinned, and that told.  Async.

Pins lie in a directory of their own below the exec root, which is shared with the thread that starts runtimes
(`isolation/process/launcher.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from insula.engine.instances import Entry
from insula.engine.operations import uncut
from insula.errors import InsulaError, InvalidRequest, NoSuchInstance
from insula.model.ids import make_id
from insula.model.mounts import Mount, MountKind, MountSpec
from insula.model.volume import Volume
from insula.volumes.checks import parse_volumes_from
from insula.volumes.mounting import open_part, pin, unpin

if TYPE_CHECKING:
    from insula.engine.instances import Instances
    from insula.engine.kit import Kit


class VolumeUse:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    async def hold(self, entry: Entry, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
        """`mounts` with the places where the volumes are now.  `drop` undoes it, also when this fails in its
        middle.  Raises NoSuchVolume, InvalidRequest (no such subpath), Failure."""
        specs = {mount.target: mount for mount in volume_mounts(entry)}
        held = []
        entry.holds_volumes = bool(specs)
        for mount in mounts:
            spec = specs.get(mount.target)
            held.append(mount if spec is None else await self._hold(entry, mount, spec))
        return tuple(held)

    async def _hold(self, entry: Entry, mount: Mount, spec: MountSpec) -> Mount:
        volume = await self._kit.volumes.hold(spec.source, entry.id)
        source = volume.mountpoint
        if spec.subpath:
            source = self._pin_path(entry.id, mount.tag)
            await asyncio.to_thread(pin, volume, spec.subpath, source)
        self._tell(
            "mount",
            entry,
            spec,
            destination=spec.target,
            **{"read/write": str(not spec.read_only).lower(), "propagation": ""},
        )
        return dataclasses.replace(mount, source=source)

    async def drop(self, entry: Entry) -> None:
        """Its volumes are its no more; idempotent.  Raises Failure for one that cannot be unmounted."""
        if not entry.holds_volumes:
            return
        await self.forget_pins(entry.id)
        problems: list[InsulaError] = []
        for spec in volume_mounts(entry):
            try:
                await self._kit.volumes.drop(spec.source, entry.id)
            except InsulaError as error:
                problems.append(error)
            self._tell("unmount", entry, spec)
        entry.holds_volumes = False
        if problems:
            raise problems[0]

    async def recover(self, live: Iterable[Entry]) -> None:
        """Those that run hold theirs, and nobody else does."""
        holders: dict[str, set[str]] = {}
        for entry in live:
            for spec in volume_mounts(entry):
                holders.setdefault(spec.source, set()).add(entry.id)
        await self._kit.volumes.recover(holders)

    async def forget_pins(self, instance_id: str) -> None:
        """Also after a crash.  Idempotent."""
        directory = self._pin_directory(instance_id)
        if os.path.isdir(directory):
            await asyncio.to_thread(_unpin_all, directory)

    @contextlib.asynccontextmanager
    async def held(self, name: str, holder: str) -> AsyncIterator[Volume]:
        """A volume, mounted for as long as this is open."""
        volume = await self._kit.volumes.hold(name, holder)
        try:
            yield volume
        finally:
            await uncut(self._kit.volumes.drop(name, holder))

    async def lend(self, entry: Entry, mounts: tuple[Mount, ...], stack: AsyncExitStack) -> tuple[Mount, ...]:
        """`mounts` of an instance without a workload, with the places where its volumes are until `stack` is
        closed: for copying.  A part that is not there is not lent."""
        specs = {mount.target: mount for mount in volume_mounts(entry)}
        lent = []
        for mount in mounts:
            spec = specs.get(mount.target)
            source = mount.source if spec is None else await self._lend(spec, stack)
            lent.append(dataclasses.replace(mount, source=source))
        return tuple(lent)

    async def _lend(self, spec: MountSpec, stack: AsyncExitStack) -> str:
        volume = await stack.enter_async_context(self.held(spec.source, make_id()))
        if not spec.subpath:
            return volume.mountpoint
        try:
            return stack.enter_context(open_part(volume, spec.subpath))
        except InvalidRequest:
            return ""

    def _pin_directory(self, instance_id: str) -> str:
        return os.path.join(self._kit.settings.exec_root, "mounts", instance_id)

    def _pin_path(self, instance_id: str, tag: str) -> str:
        return os.path.join(self._pin_directory(instance_id), tag)

    def _tell(self, action: str, entry: Entry, spec: MountSpec, **attributes: str) -> None:
        self._kit.events.publish(
            "volume", action, spec.source, driver="local", container=entry.id, **attributes
        )


def _unpin_all(directory: str) -> None:
    for name in os.listdir(directory):
        unpin(os.path.join(directory, name))
    os.rmdir(directory)


def volume_mounts(entry: Entry) -> Iterator[MountSpec]:
    return (mount for mount in entry.record.mounts if mount.kind is MountKind.VOLUME)


def inherited_mounts(volumes_from: Iterable[str], instances: Instances) -> tuple[MountSpec, ...]:
    """The mounts of other instances (`--volumes-from`), a later one's in the place of an earlier one's.

    Raises InvalidRequest, also for an instance that does not exist: at 404 docker pulls the image anew.
    """
    found: dict[str, MountSpec] = {}
    for text in volumes_from:
        ref, read_only = parse_volumes_from(text)
        try:
            source = instances.find(ref).record
        except NoSuchInstance as error:
            raise InvalidRequest(error.message) from None
        for mount in source.mounts:
            if mount.kind is MountKind.TMPFS:  # what is in memory belongs to one
                continue
            found[mount.target] = dataclasses.replace(
                mount, read_only=mount.read_only or read_only, no_copy=True
            )
    return tuple(found.values())
