"""After the daemon was away: find what runs, record what ended, finish or undo what was half done.  Async.

First everything is looked at, then the network room learns who lives, then the ends are recorded and
the restart policies applied: an end gives its address back, which must not happen before.
"""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from insula.engine.connections import CONNECT, DISCONNECT, Connections
from insula.engine.copies import CAPTURE_PREFIX
from insula.engine.instances import Entry, Instances, Run
from insula.engine.lifecycle import UNKNOWN_EXIT, Lifecycle
from insula.engine.mounting import Mounting
from insula.engine.removal import REMOVE, REMOVE_WITH_VOLUMES, Removal
from insula.engine.restarts import wanted_at_start
from insula.engine.snapshots import BEFORE
from insula.errors import InsulaError, Unavailable
from insula.isolation.backend import Liveness
from insula.model import codec
from insula.model.instance import ExitStatus, State
from insula.model.operation import Operation
from insula.system.files import remove_file, remove_tree

if TYPE_CHECKING:
    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

_AT_ONCE = 16


class Recovery:
    def __init__(
        self,
        kit: Kit,
        instances: Instances,
        lifecycle: Lifecycle,
        removal: Removal,
        mounting: Mounting,
        *,
        connections: Connections,
    ) -> None:
        self._kit = kit
        self._instances = instances
        self._lifecycle = lifecycle
        self._removal = removal
        self._mounting = mounting
        self._connections = connections

    async def recover(self) -> None:
        """Before any request is taken.  What one instance suffers does not keep the others away.  But when
        nobody can say whether it runs, Unavailable is raised before anything was changed: one that is taken
        as ended is cleaned up, and so ended.
        """
        kit = self._kit
        for record in kit.store.get_instances():
            entry = Entry(record, plan=self._instances.read_plan(record.id))
            entry.root_mounted = bool(
                entry.plan and entry.plan.directory and os.path.ismount(entry.plan.directory.merged)
            )
            self._instances.add(entry)

        operations = kit.store.operations()
        half_started = {each.instance_id for each in operations if each.kind == "start"}
        doomed = {each.instance_id: each for each in operations if each.kind in (REMOVE, REMOVE_WITH_VOLUMES)}
        found = await self._look(set(doomed) | half_started)
        live = {
            entry.id for entry, liveness in found.items() if liveness in (Liveness.RUNNING, Liveness.PAUSED)
        }
        for entry in self._instances.all():
            if entry.id in half_started and entry.id not in doomed:
                await self._guarded(entry, self._undo_start(entry))
        await kit.networks.recover(live)
        for entry in found:
            if entry.id in live:
                await self._guarded(entry, self._find_bridge(entry))
        await self._mounting.volumes.recover(entry for entry in found if entry.id in live)
        for operation in operations:
            await self._settle(operation, doomed)
        await asyncio.gather(
            *(self._guarded(entry, self._resume(entry, how)) for entry, how in found.items())
        )
        await self._sweep()
        for entry in self._instances.all():
            await self._guarded(entry, self._rest(entry))

    # looking

    async def _look(self, but: set[str]) -> dict[Entry, Liveness]:
        """What has become of those that had a workload."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(entry: Entry) -> Liveness:
            if entry.plan is None:
                log.error("instance %s: its plan cannot be read; taken as ended", entry.id)
                return Liveness.GONE
            async with gate:
                try:
                    return await self._kit.backend(entry.plan.isolation).recover(entry.plan)
                except InsulaError as error:
                    name = entry.record.name
                    raise Unavailable(
                        f"nobody can say whether instance {name} ({entry.id[:12]}) runs: {error}",
                        hint="mend that and start the daemon again; the instance was left alone",
                    ) from error

        wanted = [entry for entry in self._instances.all() if entry.alive and entry.id not in but]
        return dict(zip(wanted, await asyncio.gather(*map(look, wanted)), strict=True))

    # acting

    async def _find_bridge(self, entry: Entry) -> None:
        """Its network as it was: a bridge that was lost meanwhile is another one now."""
        plan = entry.plan
        if plan is not None and plan.endpoints:
            backend = self._kit.backend(plan.isolation)
            await backend.set_network(entry.id, plan.endpoints, plan.etc_files)

    async def _undo_start(self, entry: Entry) -> None:
        """A start that was cut: nothing of it stays, and the instance is as it was, with the reason."""
        if entry.plan is not None:
            await self._kit.backend(entry.plan.isolation).discard(entry.plan)
            if entry.plan.disk is not None and os.path.exists(entry.plan.disk.upper_disk + BEFORE):
                os.replace(entry.plan.disk.upper_disk + BEFORE, entry.plan.disk.upper_disk)
        await self._mounting.volumes.forget_pins(entry.id)
        state = State.EXITED if entry.record.started_ns else State.CREATED
        self._instances.put(
            entry, state=state, pid=0, exit_code=128, error="the daemon ended while it was starting this"
        )

    async def _settle(self, operation: Operation, doomed: dict[str, Operation]) -> None:
        """Finish or undo one line of the journal, and strike it out."""
        entry = self._instances.get(operation.instance_id)
        try:
            if entry is None:
                await self._removal.remove_leftovers(operation.instance_id)
                await self._removal.remove_volumes(codec.decode(operation.detail or "[]", list[str]))
            elif doomed.get(entry.id) is operation:
                await self._removal.take_apart(entry, volumes=operation.kind == REMOVE_WITH_VOLUMES)
            elif operation.kind in (CONNECT, DISCONNECT):
                await self._connections.settle(entry, operation.detail)
        except (InsulaError, OSError) as error:
            log.error(
                "instance %s: %s was cut and cannot be settled: %s",
                operation.instance_id,
                operation.kind,
                error,
            )
        self._kit.store.end_operation(operation.id)

    async def _resume(self, entry: Entry, liveness: Liveness) -> None:
        """Watch it again, or record its end as if it had been watched."""
        entry.root_users, entry.root_mounted = 1, True  # unmounting is idempotent
        entry.holds_volumes = bool(entry.record.volumes)
        if liveness in (Liveness.RUNNING, Liveness.PAUSED):
            if entry.record.state is State.PAUSED and liveness is Liveness.RUNNING:
                self._instances.put(entry, state=State.RUNNING)
            self._lifecycle.watch(entry)
            if entry.record.state is not State.PAUSED and liveness is Liveness.PAUSED:
                # not by a user, or not yet: a commit, or a pause that was cut
                await self._kit.backend(entry.record.spec.isolation).freeze(entry.id, False)
            return
        if liveness is Liveness.EXITED:
            status = await self._kit.backend(entry.record.spec.isolation).wait(entry.id)
        else:
            # the host was rebooted: Docker's code for an end that nobody saw
            status = ExitStatus(code=UNKNOWN_EXIT, finished_at_ns=time.time_ns())
        run = Run()
        entry.run = run
        await self._lifecycle.ended(entry, run, status)

    async def _rest(self, entry: Entry) -> None:
        """Those without a workload: restart policies, and nothing of theirs mounted."""
        if entry.alive or entry.removed or entry.restart_timer is not None:
            return
        if entry.record.state is State.RESTARTING:
            self._lifecycle.restart_later(entry, entry.backoff_ms or 100)
            return
        if entry.record.state is State.REMOVING:
            self._instances.put(entry, state=State.DEAD)
        if entry.record.state is State.EXITED and wanted_at_start(entry.record):
            self._instances.put(entry, state=State.RESTARTING, stopped_by_user=False)
            self._lifecycle.restart_later(entry, 0)
            return
        if entry.root_mounted and entry.root_users == 0:
            await self._mounting.hold(entry)
            await self._mounting.drop(entry)
        if entry.record.state is State.EXITED and entry.record.spec.auto_remove:
            await self._removal.auto_remove(entry)

    async def _sweep(self) -> None:
        """Directories of ids that no record knows: what a crash has left of a create or of a removal."""
        kit = self._kit
        for root in (kit.settings.data_root, kit.settings.exec_root):
            directory = os.path.join(root, "instances")
            if not os.path.isdir(directory):
                continue
            remove_captures(directory)
            for name in os.listdir(directory):
                if self._instances.get(name) is None and _is_id(name):
                    log.warning("removing what was left of instance %s", name)
                    try:
                        await self._removal.remove_leftovers(name)
                    except (InsulaError, OSError) as error:
                        log.error("instance %s: leftovers stay: %s", name, error)

    async def _guarded(self, entry: Entry, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (InsulaError, OSError) as error:
            log.error("instance %s: recovering: %s", entry.id, error)
            if not entry.removed:
                self._instances.put(entry, error=f"recovering: {error}")


def remove_captures(directory: str) -> None:
    """Disks of forks and restores that a crash has cut, and snapshots that were not finished."""
    below = glob.escape(directory)
    for pattern in (f"*/{CAPTURE_PREFIX}*", f"*/*{BEFORE}"):
        for path in glob.iglob(os.path.join(below, pattern)):
            remove_file(path)
    for pattern in ("*/snapshots/.*", ".import-*"):
        for path in glob.iglob(os.path.join(below, pattern)):
            remove_tree(path)


def _is_id(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)
