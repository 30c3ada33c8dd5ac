"""Taking an instance away with all that is its own.  Async.

What is not stored is the state `removing`: a removal that a crash has cut is finished at the next start,
from the journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from insula.engine.execs import Execs
from insula.engine.instances import Entry, Instances
from insula.engine.legality import Action, check
from insula.engine.lifecycle import end_pending
from insula.engine.mounting import Mounting
from insula.engine.operations import Journal, exclusive
from insula.engine.volume_use import volume_mounts
from insula.errors import InsulaError, NoSuchInstance
from insula.model import codec
from insula.model.instance import State
from insula.system.files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

REMOVE = "remove"
REMOVE_WITH_VOLUMES = "remove-volumes"
_ATTEMPTS = 5


class Removal:
    def __init__(
        self,
        kit: Kit,
        instances: Instances,
        execs: Execs,
        mounting: Mounting,
        *,
        volume_users: Callable[[str], tuple[str, ...]],
        end: Callable[[Entry], Awaitable[None]],
    ) -> None:
        """`end` kills whatever runs and waits until that is over."""
        self._kit = kit
        self._instances = instances
        self._execs = execs
        self._volume_users = volume_users
        self._mounting = mounting
        self._end = end

    async def remove(self, entry: Entry, ref: str, *, force: bool, volumes: bool) -> None:
        """Raises Conflict for one that runs, unless `force`; Failure when something of it stays behind."""
        action = Action.FORCE_REMOVE if force else Action.REMOVE
        check(action, entry.record, ref)
        for attempt in range(_ATTEMPTS):
            if force:
                await self._end(entry)
            try:
                async with exclusive(entry, "remove"):
                    if force and attempt < _ATTEMPTS - 1 and entry.run is not None:
                        continue  # started meanwhile
                    check(Action.REMOVE, entry.record, ref)
                    await self.take_apart(entry, volumes=volumes)
                return
            except NoSuchInstance:
                if force:
                    return  # somebody else (auto-remove) was faster; it is gone, as asked
                raise

    async def auto_remove(self, entry: Entry) -> None:
        """After its end.  Raises nothing: there is nobody to tell but the log."""
        try:
            async with exclusive(entry, "remove"):
                if entry.record.state in (State.CREATED, State.EXITED, State.DEAD):
                    await self.take_apart(entry, volumes=True)
        except NoSuchInstance:
            return
        except (InsulaError, OSError) as error:
            log.error("instance %s: cannot be removed: %s", entry.id, error)

    async def take_apart(self, entry: Entry, *, volumes: bool) -> None:
        """All of it, the caller holding the instance.  On failure it is `dead`, and can be removed again."""
        kit = self._kit
        before = entry.record
        anonymous = [
            mount.source
            for mount in volume_mounts(entry)
            if volumes and mount.anonymous and kit.volumes.have(mount.source)
        ]
        kind = REMOVE_WITH_VOLUMES if volumes else REMOVE
        journal = Journal(kit.store, entry.id, kind, codec.encode(anonymous))
        self._instances.show_state(entry, State.REMOVING)
        try:
            end_pending(entry)
            if entry.plan is not None:
                await kit.backend(entry.plan.isolation).discard(entry.plan)
            await kit.networks.disconnect(entry.id)
            await self._mounting.volumes.drop(entry)
            await self.remove_leftovers(entry.id)
        except BaseException as error:
            self._instances.show_state(entry, before.state)
            with kit.store.transaction():
                self._instances.put(entry, state=State.DEAD, error=str(error) or type(error).__name__)
                journal.end()
            raise
        with kit.store.transaction():
            self._instances.forget(entry)
            if not anonymous:
                journal.end()
        self._execs.forget(entry)
        if anonymous:
            await self.remove_volumes(anonymous)
            journal.end()
        self._instances.event(entry, "destroy")
        kit.growth.poke(kit.log_path(entry.id))
        self._instances.wake(entry, removed=True)

    async def remove_volumes(self, names: list[str]) -> None:
        """Those that nobody uses."""
        for name in names:
            if not self._volume_users(name):
                await self._kit.volumes.remove(name, force=True, users=self._volume_users)

    async def remove_leftovers(self, instance_id: str) -> None:
        """Root and directories of an id.  Idempotent."""
        kit = self._kit
        await kit.roots.remove(instance_id)
        await self._mounting.volumes.forget_pins(instance_id)
        state_dir, run_dir = kit.state_dir(instance_id), kit.run_dir(instance_id)

        def remove_trees() -> None:
            for path in (run_dir, state_dir):
                remove_tree(path)

        if os.path.isdir(state_dir) or os.path.isdir(run_dir):
            await asyncio.to_thread(remove_trees)
