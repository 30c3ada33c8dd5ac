"""Named directories that outlive instances: the `local` driver.  Async where a tree is removed or measured.

Not for what is mounted where (`mounts`), nor for filling a fresh volume from an image (`copy_up`).  Who
uses a volume is the engine's knowledge and comes in as a function.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping

from insula.errors import Conflict, InvalidRequest, NoSuchVolume, UnsupportedField
from insula.events import EventBus
from insula.model.ids import make_id
from insula.model.reports import PruneFilters, PruneReport
from insula.model.volume import Volume
from insula.store.store import Store
from insula.system.files import disk_errors, remove_tree

Users = Callable[[str], tuple[str, ...]]
"""Ids of the instances that use the volume of this name."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_REMOVING = ".removing-"


def check_volume_name(name: str) -> str:
    """Raises InvalidRequest in moby's words."""
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise InvalidRequest(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use '
            "absolute path"
        )
    return name


class Volumes:
    def __init__(self, root: str, store: Store, events: EventBus) -> None:
        """`root` holds `<name>/_data` of every volume."""
        self._root = root
        self._store = store
        self._events = events
        self._volumes: dict[str, Volume] = {}

    async def start(self) -> None:
        """Read the records; finish removals that a crash has cut."""
        os.makedirs(self._root, mode=0o701, exist_ok=True)
        self._volumes = {volume.name: volume for volume in self._store.volumes()}
        for entry in os.listdir(self._root):
            if entry.startswith(_REMOVING):
                name = entry.removeprefix(_REMOVING)
                if name in self._volumes and not os.path.exists(os.path.join(self._root, name)):
                    os.rename(os.path.join(self._root, entry), os.path.join(self._root, name))
                else:
                    await asyncio.to_thread(remove_tree, os.path.join(self._root, entry))
        for volume in self._volumes.values():
            os.makedirs(volume.mountpoint, mode=0o755, exist_ok=True)

    def find(self, name: str) -> Volume:
        """Raises NoSuchVolume."""
        try:
            return self._volumes[name]
        except KeyError:
            raise NoSuchVolume(name) from None

    def have(self, name: str) -> bool:
        return name in self._volumes

    def list(self) -> tuple[Volume, ...]:
        return tuple(self._volumes[name] for name in sorted(self._volumes))

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        anonymous: bool = False,
    ) -> Volume:
        """The volume of this name, made if there is none.  "": a new one with a name made up.

        Raises InvalidRequest for a bad name, UnsupportedField for another driver or driver options,
        Conflict when it exists with other options, DiskFull.
        """
        if driver not in ("", "local"):
            raise UnsupportedField("Driver", f"{driver!r}: insula has the local volume driver only")
        if options:
            raise UnsupportedField(
                "DriverOpts",
                f"the local driver takes no options, got {', '.join(sorted(options))}",
                hint="mount what you need on the host and bind it",
            )
        if not name:
            name = make_id()
        check_volume_name(name)
        if (known := self._volumes.get(name)) is not None:
            return known
        mountpoint = os.path.join(self._root, name, "_data")
        volume = Volume(
            name=name,
            mountpoint=mountpoint,
            created_ns=time.time_ns(),
            labels=dict(labels or {}),
            anonymous=anonymous,
        )
        with disk_errors(f"making volume {name}"):
            os.makedirs(mountpoint, mode=0o755, exist_ok=True)
        self._store.put_volume(volume)
        self._volumes[name] = volume
        self._events.publish("volume", "create", name, driver="local")
        return volume

    async def remove(self, name: str, *, force: bool = False, users: Users) -> None:
        """Raises Conflict while an instance uses it; NoSuchVolume unless `force`."""
        volume = self._volumes.get(name)
        if volume is None:
            if force:
                return
            raise NoSuchVolume(name)
        if holders := users(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(holders)}]")
        # Renamed first, so that a crash leaves either a whole volume or nothing of it.
        base = os.path.join(self._root, name)
        doomed = os.path.join(self._root, _REMOVING + name)
        del self._volumes[name]
        try:
            os.rename(base, doomed)
        except FileNotFoundError:
            pass  # somebody removed the directory by hand; the record goes too
        self._store.delete_volume(name)
        await asyncio.to_thread(remove_tree, doomed)
        self._events.publish("volume", "destroy", name, driver="local")

    async def prune(self, filters: PruneFilters, *, all: bool = False, users: Users) -> PruneReport:
        """Remove what nobody uses: anonymous ones, or `all`."""
        deleted: list[str] = []
        reclaimed = 0
        for volume in self.list():
            if not (all or volume.anonymous) or users(volume.name):
                continue
            if not filters.matches(volume.created_ns, volume.labels):
                continue
            size = await self.size(volume.name)
            await self.remove(volume.name, force=True, users=users)
            deleted.append(volume.name)
            reclaimed += size
        self._events.publish("volume", "prune", "", reclaimed=str(reclaimed))
        return PruneReport(deleted=tuple(deleted), reclaimed_bytes=reclaimed)

    async def size(self, name: str) -> int:
        """Bytes allocated on the disk."""
        return await asyncio.to_thread(tree_size, self.find(name).mountpoint)


def tree_size(path: str) -> int:
    """Bytes of disk that a tree takes, hard links once; what vanishes meanwhile not counted.  Synchronous."""
    seen: set[tuple[int, int]] = set()
    total = 0
    stack = [path]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (info.st_dev, info.st_ino) in seen:
                            continue
                        seen.add((info.st_dev, info.st_ino))
                    total += info.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total
