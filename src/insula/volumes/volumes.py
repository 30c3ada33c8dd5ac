"""Named directories that outlive instances: the `local` driver.  Async where a tree is removed or measured.

A volume with driver options is mounted while somebody holds it (`hold`, `drop`), and only then.  Not for
what is mounted where in an instance, nor for filling a fresh volume from an image (`copy_up`).  Who uses a
volume is the engine's knowledge and comes in as a function.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from insula.errors import Conflict, InsulaError, InvalidRequest, NoSuchVolume
from insula.events import EventBus
from insula.model.ids import make_id
from insula.model.reports import PruneFilters, PruneReport
from insula.model.volume import Volume
from insula.store.store import Store
from insula.system.files import disk_errors, remove_tree
from insula.system.mounts import umount_below
from insula.volumes.driver import check_driver, check_options, needs_mount
from insula.volumes.mounting import mount_volume, umount_volume

log = logging.getLogger(__name__)

Users = Callable[[str], tuple[str, ...]]
"""Ids of the instances that use the volume of this name."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_REMOVING = ".removing-"
ANONYMOUS = "com.docker.volume.anonymous"
"""Docker's label of volumes whose name was made up."""


def check_volume_name(name: str) -> str:
    """Raises InvalidRequest in moby's words."""
    if len(name) == 1:
        raise InvalidRequest(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise InvalidRequest(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use '
            "absolute path"
        )
    return name


@dataclass(slots=True)
class _Use:
    """Of a volume with options.  `holders`: who keeps it mounted."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holders: set[str] = field(default_factory=set)


class Volumes:
    def __init__(self, root: str, store: Store, events: EventBus) -> None:
        """`root` holds `<name>/_data` of every volume."""
        self._root = root
        self._store = store
        self._events = events
        self._volumes: dict[str, Volume] = {}
        self._uses: dict[str, _Use] = {}

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
                    umount_below(os.path.join(self._root, entry))  # never remove what is only mounted there
                    await asyncio.to_thread(remove_tree, os.path.join(self._root, entry))
        for volume in self._volumes.values():
            os.makedirs(volume.mountpoint, mode=0o755, exist_ok=True)

    async def recover(self, holders: Mapping[str, Iterable[str]]) -> None:
        """Who holds what, by volume, after the daemon was away: nobody else's mounts stay."""
        for name, volume in self._volumes.items():
            if not needs_mount(volume.options):
                continue
            use = self._use(name)
            use.holders = set(holders.get(name, ()))
            try:
                await asyncio.to_thread(mount_volume if use.holders else umount_volume, volume)
            except InsulaError as error:
                log.error("volume %s: %s", name, error)

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

        One that exists stays as it is, whatever labels and options are asked for, as Docker's.  Raises
        InvalidRequest for a bad name or option, NoSuchPlugin for another driver, DiskFull.
        """
        check_driver(driver)
        check_options(options or {})
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
            labels={**(labels or {}), **({ANONYMOUS: ""} if anonymous else {})},
            options=dict(options or {}),
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
        base = os.path.join(self._root, name)
        doomed = os.path.join(self._root, _REMOVING + name)
        # before anything is removed: what is mounted there belongs to somebody else
        umount_below(base)
        # Renamed first, so that a crash leaves either a whole volume or nothing of it.
        del self._volumes[name]
        self._uses.pop(name, None)
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
            with contextlib.suppress(NoSuchVolume, Conflict):  # it is gone, or in use, since then
                size = max(0, await self.size(volume.name))
                await self.remove(volume.name, users=users)
                deleted.append(volume.name)
                reclaimed += size
        self._events.publish("volume", "prune", "", reclaimed=str(reclaimed))
        return PruneReport(deleted=tuple(deleted), reclaimed_bytes=reclaimed)

    async def size(self, name: str) -> int:
        """Bytes allocated on the disk; -1, Docker's *not known*, where options say what is mounted."""
        volume = self.find(name)
        return -1 if volume.options else await asyncio.to_thread(tree_size, volume.mountpoint)

    # in use

    async def hold(self, name: str, holder: str) -> Volume:
        """Mounted from now on for `holder`, an instance's id.  Raises NoSuchVolume, Failure."""
        volume = self.find(name)
        if needs_mount(volume.options):
            use = self._use(name)
            async with use.lock:
                await asyncio.to_thread(mount_volume, volume)
                use.holders.add(holder)
        return volume

    async def drop(self, name: str, holder: str) -> None:
        """`holder` needs it no more; unmounted with the last one.  Idempotent.  Raises Failure."""
        volume = self._volumes.get(name)
        if volume is None or not needs_mount(volume.options):
            return
        use = self._use(name)
        async with use.lock:
            use.holders.discard(holder)
            if not use.holders:
                await asyncio.to_thread(umount_volume, volume)

    def _use(self, name: str) -> _Use:
        return self._uses.setdefault(name, _Use())


def tree_size(path: str) -> int:
    """Bytes in the files of a tree, hard links once, as Docker counts; what vanishes meanwhile not counted.
    Synchronous."""
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
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += info.st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total
