"""Snapshots: a running instance as it was, kept in files, to go on from.  Async.

    <state dir>/snapshots/<name>/snapshot.json        what the instance was
                                 ram, state, …        what the backend keeps of its machine
                                 upper.ext4           its disk
                                 image.erofs          its image's (a hard link)

They belong to their instance and go with it, as Docker's checkpoints do; `insula snapshot export` makes a
file of one that goes anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from insula.engine import snapshot_files as files
from insula.engine.copies import CAPTURE_PREFIX, Copies, need_copier
from insula.engine.instances import Entry, Instances
from insula.engine.lifecycle import Continuation, Lifecycle
from insula.engine.operations import exclusive
from insula.engine.snapshot_files import SnapshotRecord
from insula.engine.types import SnapshotView
from insula.errors import Conflict, CorruptData, InvalidRequest, NotFound
from insula.model.ids import make_id, short_id
from insula.system.disk_file import copy_sparse
from insula.system.files import disk_errors, remove_file, remove_tree

if TYPE_CHECKING:
    from insula.engine.kit import Kit

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")  # moby's, for checkpoints
_MOST_NAME = 128
BEFORE = ".before"
"""Ends the name of the disk that a restore has put aside, until it has worked."""


class Snapshots:
    def __init__(self, kit: Kit, instances: Instances, copies: Copies, lifecycle: Lifecycle) -> None:
        self._kit = kit
        self._instances = instances
        self._copies = copies
        self._lifecycle = lifecycle

    def _base(self, entry: Entry) -> str:
        return os.path.join(self._kit.state_dir(entry.id), "snapshots")

    def _find(self, entry: Entry, name: str) -> str:
        """Its directory.  Raises NotFound."""
        path = os.path.join(self._base(entry), name)
        if not _NAME.fullmatch(name) or not os.path.exists(os.path.join(path, files.RECORD)):
            raise NotFound(f"checkpoint {name} does not exist for container {entry.record.name}")
        return path

    async def create(self, entry: Entry, ref: str, name: str, *, leave_running: bool) -> SnapshotView:
        """Of a running instance, which goes on, or else ends at that instant.  Raises as `Copies.capture`,
        and InvalidRequest, Conflict (the name is taken), DiskFull."""
        name = name or time.strftime("%Y%m%d-%H%M%S")
        if not _NAME.fullmatch(name) or len(name) > _MOST_NAME:
            raise InvalidRequest(f"Invalid checkpoint ID ({name[:64]}), only {_NAME.pattern} are allowed")
        copier = need_copier(self._kit, entry, ref)
        async with exclusive(entry, "checkpoint"):
            path = os.path.join(self._base(entry), name)
            if os.path.exists(path):
                raise Conflict(
                    f"checkpoint with name {name} already exists for container {entry.record.name}"
                )
            fresh = os.path.join(self._base(entry), f".{secrets.token_hex(6)}")
            try:
                with disk_errors(f"keeping snapshot {name}"):
                    os.makedirs(fresh, mode=0o700)
                upper = os.path.join(fresh, files.UPPER)
                async with self._copies.capture(entry, ref, upper, leave_running=leave_running) as captured:
                    assert entry.plan is not None
                    record = SnapshotRecord(
                        format=files.FORMAT,
                        name=name,
                        created_ns=time.time_ns(),
                        instance=entry.record,
                        plan=entry.plan,
                    )
                    await copier.save(captured, fresh)
                    await asyncio.to_thread(files.finish, fresh, record)
                    if not leave_running:
                        entry.no_restart = True
                        self._instances.put(entry, stopped_by_user=True)
                    os.rename(fresh, path)
            except BaseException:
                await asyncio.to_thread(remove_tree, fresh)
                raise
            run = entry.run
        self._instances.event(entry, "checkpoint", checkpoint=name)
        if not leave_running and run is not None:
            await run.over.wait()
        return files.view_of(entry.record, record, path)

    def list(self, entry: Entry) -> tuple[SnapshotView, ...]:
        """Newest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._base(entry)):
                path = os.path.join(self._base(entry), name)
                with contextlib.suppress(CorruptData):
                    if not name.startswith("."):
                        found.append(files.view_of(entry.record, files.read_record(path), path))
        return tuple(sorted(found, key=lambda view: view.created_ns, reverse=True))

    async def remove(self, entry: Entry, name: str) -> None:
        """Raises NotFound."""
        async with exclusive(entry, "remove checkpoint"):
            await asyncio.to_thread(remove_tree, self._find(entry, name))

    async def restore(self, entry: Entry, ref: str, name: str) -> None:
        """Start it where the snapshot was taken, with its disk as that was then.  Raises as a start does, and
        NotFound, CorruptData; its disk is as before then."""
        path = self._find(entry, name)
        captured = await need_copier(self._kit, entry, ref).load(path)

        async def put_disks(undo: AsyncExitStack) -> None:
            assert entry.plan is not None
            assert entry.plan.disk is not None
            upper = entry.plan.disk.upper_disk
            fresh = os.path.join(os.path.dirname(upper), f"{CAPTURE_PREFIX}{secrets.token_hex(6)}.ext4")
            undo.callback(remove_file, fresh)
            await asyncio.to_thread(copy_sparse, os.path.join(path, files.UPPER), fresh)
            image = files.give_image(path, entry.plan.disk.image_disk, self._kit.state_dir(entry.id))
            self._instances.put_plan(entry, files.with_image(entry.plan, image))
            os.rename(upper, upper + BEFORE)
            undo.callback(os.replace, upper + BEFORE, upper)
            os.rename(fresh, upper)

        await self._lifecycle.start(
            entry,
            ref,
            continuation=Continuation(captured=captured, how=f"snapshot {name}", before=put_disks),
        )
        assert entry.plan is not None
        assert entry.plan.disk is not None
        remove_file(entry.plan.disk.upper_disk + BEFORE)

    async def restore_as(self, entry: Entry, ref: str, name: str, new_name: str) -> str:
        """Another instance that goes on from the snapshot; its id.  Raises as `restore`, and NameInUse."""
        path = self._find(entry, name)
        captured = await need_copier(self._kit, entry, ref).load(path)
        copy = await self._copy_of(path, new_name)
        await self._copies.go_on(copy, captured, f"snapshot {name} of {short_id(entry.id)}")
        return copy.id

    async def _copy_of(self, path: str, new_name: str) -> Entry:
        record = files.read_record(path)
        [name] = self._copies.choose_names(record.instance.name, 1, new_name)
        entry = await self._copies.create(
            record.instance, record.plan, name, make_id(), os.path.join(path, files.UPPER)
        )
        assert entry.plan is not None
        assert entry.plan.disk is not None
        image = files.give_image(path, entry.plan.disk.image_disk, self._kit.state_dir(entry.id))
        self._instances.put_plan(entry, files.with_image(entry.plan, image))
        return entry

    # as a file

    async def export(self, entry: Entry, name: str) -> AsyncIterator[bytes]:
        """A tar with digests of all that is in it; its pieces.  Raises NotFound, DiskFull."""
        path = self._find(entry, name)
        await asyncio.to_thread(files.write_digests, path)
        return files.pack(path)

    async def import_(self, archive: AsyncIterator[bytes], new_name: str) -> tuple[str, str]:
        """(id, name of the snapshot) of a new instance that has the exported snapshot.  Raises InvalidRequest
        for an archive that is damaged or none, NameInUse, DiskFull."""
        fresh = os.path.join(self._kit.settings.data_root, "instances", f".import-{secrets.token_hex(6)}")
        try:
            with disk_errors("importing a snapshot"):
                os.makedirs(fresh, mode=0o700)
            record = await _take_out(archive, fresh)
            entry = await self._copy_of(fresh, new_name)
            os.makedirs(self._base(entry), mode=0o700, exist_ok=True)
            os.rename(fresh, os.path.join(self._base(entry), record.name))
        finally:
            await asyncio.to_thread(remove_tree, fresh)
        return entry.id, record.name


async def _take_out(archive: AsyncIterator[bytes], directory: str) -> SnapshotRecord:
    """What is wrong with it is the sender's fault, not a fault of what is kept here."""
    try:
        await files.unpack(archive, directory)
        record = await asyncio.to_thread(files.check, directory)
        if not _NAME.fullmatch(record.name):
            raise CorruptData(f"the archive is of a snapshot with the name {record.name[:64]!r}")
    except CorruptData as error:
        raise InvalidRequest(error.message, hint=error.hint) from error
    return record
