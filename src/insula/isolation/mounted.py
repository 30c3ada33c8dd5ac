"""Files of an instance that does not run: what its binds and volumes hold is read and written there.  Async.

The same for both isolations, because the host's side of a mount is the host's.  Paths are taken as they are
written: a symbolic link in the root that leads to a mount is not followed into it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from insula.errors import NoSuchPath, NotFound, UnsupportedField
from insula.isolation.backend import Files
from insula.isolation.plan import LaunchPlan
from insula.model.files import Change, PathStat
from insula.model.mounts import MountKind
from insula.model.paths import clean_path
from insula.system import tree


@dataclass(frozen=True, slots=True)
class _Place:
    """`path` below the directory `root` of the host, inside at `at`; `name` is what it is called there."""

    root: str
    path: str
    name: str
    at: str


class MountedFiles:
    """`inner` serves the instance's root.  `owner`: the instance's user, for `copy_owner`."""

    def __init__(self, inner: Files, plan: LaunchPlan, owner: Callable[[], tuple[int, int] | None]) -> None:
        self._inner = inner
        self._plan = plan
        self._owner = owner

    async def stat(self, path: str) -> PathStat:
        place = self._find(path)
        if place is None:
            return await self._inner.stat(path)
        with self._no_such_path(path):
            return dataclasses.replace(tree.stat(place.root, place.path, at=place.at), name=place.name)

    async def get(self, path: str) -> AsyncIterator[bytes]:
        place = self._find(path)
        pieces = self._inner.get(path) if place is None else tree.get(place.root, place.path, name=place.name)
        with self._no_such_path(path):
            try:
                async for piece in pieces:
                    yield piece
            finally:
                if hasattr(pieces, "aclose"):
                    await pieces.aclose()

    async def put(
        self, path: str, archive: AsyncIterator[bytes], *, no_overwrite_dir: bool, copy_owner: bool
    ) -> None:
        place = self._find(path)
        if place is None:
            await self._inner.put(path, archive, no_overwrite_dir=no_overwrite_dir, copy_owner=copy_owner)
            return
        owner = self._owner() if copy_owner else None
        with self._no_such_path(path):
            await tree.put(place.root, place.path, archive, no_overwrite_dir=no_overwrite_dir, owner=owner)

    async def changes(self) -> tuple[Change, ...]:
        return await self._inner.changes()

    def export(self) -> AsyncIterator[bytes]:
        return self._inner.export()

    def layer(self) -> AsyncIterator[bytes]:
        return self._inner.layer()

    def _find(self, path: str) -> _Place | None:
        """In the innermost mount that holds it; None when none does."""
        ending = "/" if path.endswith(("/", "/.")) else ""
        normal = clean_path(path)
        name = posixpath.basename(path.rstrip("/"))
        for mount in sorted(self._plan.mounts, key=lambda m: -len(m.target)):
            target = mount.target.rstrip("/")
            if mount.kind is not MountKind.BIND or not (normal == target or normal.startswith(f"{target}/")):
                continue
            if os.path.isdir(mount.source):
                return _Place(mount.source, normal.removeprefix(target) + ending or "/", name, target)
            if normal == target and os.path.isfile(mount.source):
                directory, base = os.path.split(mount.source)
                return _Place(directory, f"/{base}{ending}", name, posixpath.dirname(target))
            return None
        return None

    @contextlib.contextmanager
    def _no_such_path(self, path: str) -> Iterator[None]:
        try:
            yield
        except NoSuchPath:
            raise
        except NotFound as error:
            raise NoSuchPath(path, self._plan.id) from error


def numeric_owner(user: str) -> tuple[int, int] | None:
    """Of `uid` or `uid:gid`, where there is no /etc/passwd to look into; None of nobody in particular.

    Raises UnsupportedField for a name.
    """
    if not user:
        return None
    uid, _, gid = user.partition(":")
    if not (uid or "0").isdecimal() or not (gid or "0").isdecimal():
        raise UnsupportedField(
            "copyUIDGID", f"the user {user!r} of a virtual machine that does not run cannot be looked up"
        )
    return int(uid or 0), int(gid or 0)
