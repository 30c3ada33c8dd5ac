"""`docker cp`, `diff`, `export` and `commit` of a container: `system.tree` at the right root.  Async.

Of a running container the root is the live one, with its mounts; of a stopped one it is the overlay, and what
lies in a mount is served by `isolation.mounted`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from insula.errors import NoSuchPath, NotFound
from insula.isolation.backend import Files
from insula.isolation.mounted import MountedFiles
from insula.isolation.plan import LaunchPlan
from insula.isolation.process import prepare
from insula.model.files import Change, PathStat
from insula.system import tree


class DirectoryFiles:
    def __init__(self, plan: LaunchPlan, init_pid: int) -> None:
        assert plan.directory is not None
        self._plan = plan
        self._directory = plan.directory
        self._root = f"/proc/{init_pid}/root" if init_pid else plan.directory.merged

    async def stat(self, path: str) -> PathStat:
        with self._no_such_path(path):
            return tree.stat(self._root, path)

    async def get(self, path: str) -> AsyncIterator[bytes]:
        with self._no_such_path(path):
            async with contextlib.aclosing(tree.get(self._root, path)) as pieces:
                async for piece in pieces:
                    yield piece

    async def put(
        self, path: str, archive: AsyncIterator[bytes], *, no_overwrite_dir: bool, copy_owner: bool
    ) -> None:
        owner = self.owner() if copy_owner else None
        with self._no_such_path(path):
            await tree.put(self._root, path, archive, no_overwrite_dir=no_overwrite_dir, owner=owner)

    async def changes(self) -> tuple[Change, ...]:
        return await asyncio.to_thread(tree.changes, self._directory.upper, self._directory.lowers)

    def export(self) -> AsyncIterator[bytes]:
        return tree.export(self._directory.merged)

    def layer(self) -> AsyncIterator[bytes]:
        return tree.layer(self._directory.upper)

    def owner(self) -> tuple[int, int] | None:
        """Of the instance's user; None when it has none, and owners stay as they are."""
        if not self._plan.process.user:
            return None
        root = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            identity = prepare.identify(root, self._plan.process)
        finally:
            os.close(root)
        return identity.uid, identity.gid

    @contextlib.contextmanager
    def _no_such_path(self, path: str) -> Iterator[None]:
        try:
            yield
        except NotFound as error:
            raise NoSuchPath(path, self._plan.id) from error


@contextlib.asynccontextmanager
async def open_files(plan: LaunchPlan, init_pid: int) -> AsyncIterator[Files]:
    files = DirectoryFiles(plan, init_pid)
    yield files if init_pid else MountedFiles(files, plan, files.owner)
