"""Live copies of a running instance: fork.  Async.

What is copied is a workload that runs, its memory and its disk, at one instant.  Each copy is an instance of
its own, with a name, an address and an identity that nobody else has; what it shares with its source is only
what both had before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import secrets
import time
from collections.abc import Container, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING

from insula.engine.creation import Creation
from insula.engine.instances import Entry, Instances
from insula.engine.legality import Action, check
from insula.engine.lifecycle import Continuation, Lifecycle
from insula.engine.operations import Journal, exclusive
from insula.engine.planner import decide_security, make_plan
from insula.engine.preparation import Preparation
from insula.engine.removal import Removal
from insula.engine.types import Copy, Forked
from insula.errors import InsulaError, InvalidRequest, NameInUse
from insula.isolation.backend import Captured, Copier
from insula.isolation.plan import LaunchPlan
from insula.model import codec
from insula.model.ids import check_name, make_id, short_id
from insula.model.instance import Instance, InstanceSpec, State
from insula.model.root import DiskRoot
from insula.system import ssh_keys
from insula.system.disk_file import copy_sparse
from insula.system.files import disk_errors, remove_file, remove_tree

if TYPE_CHECKING:
    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

MOST_COPIES = 100
CAPTURE_PREFIX = "capture-"
"""Of the files in an instance's own directory that hold its disk while copies are made of it."""


class Copies:
    def __init__(  # noqa: PLR0917  (one place builds it: engine.py)
        self,
        kit: Kit,
        instances: Instances,
        creation: Creation,
        preparation: Preparation,
        lifecycle: Lifecycle,
        removal: Removal,
    ) -> None:
        self._kit = kit
        self._instances = instances
        self._creation = creation
        self._preparation = preparation
        self._lifecycle = lifecycle
        self._removal = removal

    async def fork(self, entry: Entry, ref: str, *, count: int, name: str) -> Forked:
        """Raises InvalidRequest, Conflict, NameInUse before anything is copied, and what kept the source from
        being copied; what becomes of each copy is in the answer, but when none came to be its reason is
        raised.
        """
        if not 1 <= count <= MOST_COPIES:
            raise InvalidRequest(f"Count: a fork makes 1 to {MOST_COPIES} copies, not {count}")
        names = {one: make_id() for one in self.choose_names(entry.record.name, count, name)}
        for one, instance_id in names.items():  # at once: another fork may be choosing, too
            self._instances.reserve(one, instance_id)
        path = os.path.join(self._kit.state_dir(entry.id), f"{CAPTURE_PREFIX}{secrets.token_hex(6)}.ext4")
        try:
            async with exclusive(entry, "fork"):
                async with self.capture(entry, ref, path) as captured:
                    source = entry.record
                plan = entry.plan
                assert plan is not None
            self._instances.event(entry, "fork", count=str(count))
            copies = await asyncio.gather(
                *(self._make(source, plan, pair, captured, path) for pair in names.items()),
            )
        finally:
            for one, instance_id in names.items():
                if self._instances.get(instance_id) is None:
                    self._instances.release(one, instance_id)
            await asyncio.to_thread(remove_file, path)
        failed = [each for each in copies if isinstance(each, InsulaError)]
        if len(failed) == count:
            raise failed[0]
        return Forked(
            copies=tuple(
                Copy(name=one, error=str(each)) if isinstance(each, InsulaError) else Copy(name=one, id=each)
                for one, each in zip(names, copies, strict=True)
            ),
            pause_ns=captured.pause_ns,
            warnings=make_warnings(source.spec),
        )

    def capture(
        self, entry: Entry, ref: str, path: str, *, leave_running: bool = True
    ) -> AbstractAsyncContextManager[Captured]:
        """As `Copier.capture`; the caller holds the instance."""
        copier = need_copier(self._kit, entry, ref)
        check(Action.COPY, entry.record, ref)
        copier.check_copyable(entry.id)
        return copier.capture(entry.id, path, leave_running=leave_running)

    async def _make(
        self, source: Instance, plan: LaunchPlan, name: tuple[str, str], captured: Captured, path: str
    ) -> str | InsulaError:
        """One copy, running; its id, or why it is not there.  `name` comes with the id that it is reserved
        for."""
        try:
            entry = await self.create(source, plan, *name, path)
        except InsulaError as error:
            return error
        try:
            await self.go_on(entry, captured, f"fork of {short_id(source.id)}")
        except InsulaError as error:
            return error
        return entry.id

    async def go_on(self, entry: Entry, captured: Captured, how: str) -> None:
        """Start what `create` has made; it is removed when that fails, and the reason raised."""
        try:
            await self._lifecycle.start(
                entry, entry.id, continuation=Continuation(captured=captured, how=how)
            )
        except BaseException as error:
            log.warning("%s, a %s, could not start: %s", entry.record.name, how, error)
            if not entry.record.spec.auto_remove:
                await self._removal.auto_remove(entry)
            raise

    async def create(
        self, source: Instance, source_plan: LaunchPlan, name: str, instance_id: str, upper_disk: str
    ) -> Entry:
        """An instance like `source` that is not started, with a copy of `upper_disk`.  Raises NameInUse,
        DiskFull."""
        assert source_plan.disk is not None
        kit = self._kit
        spec = spec_of_copy(source.spec)
        config = dataclasses.replace(source.config, hostname=spec.hostname or short_id(instance_id))
        places = self._preparation.places(instance_id)
        root = DiskRoot(
            image_disk=source_plan.disk.image_disk,
            upper_disk=kit.roots.upper_disk(instance_id),
            volatile=spec.auto_remove,
        )
        plan = make_plan(
            instance_id,
            spec,
            config,
            settings=kit.settings,
            places=places,
            root=root,
            security=decide_security(spec, self._preparation.profile()),
            mounts=source_plan.mounts,
            host_keys=ssh_keys.TYPES,
        )
        entry = Entry(
            Instance(
                id=instance_id,
                name=name,
                spec=spec,
                image_id=source.image_id,
                state=State.CREATED,
                created_ns=time.time_ns(),
                config=config,
            )
        )
        self._instances.reserve(name, instance_id)
        async with AsyncExitStack() as undo:
            undo.callback(self._instances.release, name, instance_id)
            self._creation.images[instance_id] = source.image_id
            undo.callback(self._creation.images.pop, instance_id, None)
            journal = Journal(kit.store, instance_id, "create", codec.encode([]))
            undo.callback(journal.end)
            for path in (places.state_dir, places.run_dir):
                undo.callback(remove_tree, path)
                with disk_errors(f"making {path}"):
                    os.makedirs(path, mode=0o700, exist_ok=True)
            await asyncio.to_thread(copy_sparse, upper_disk, root.upper_disk)
            with kit.store.transaction():
                self._instances.put(entry)
                self._instances.put_plan(entry, plan)
                journal.end()
            undo.pop_all()
        self._instances.add(entry)
        self._creation.images.pop(instance_id, None)
        self._instances.event(entry, "create")
        return entry

    def choose_names(self, source: str, count: int, name: str) -> Sequence[str]:
        """`name` itself for one copy; `name-1` and so on for several, and for those that nobody named.
        Raises NameInUse, InvalidRequest."""
        taken = self._instances.names
        if name and count == 1:
            check_name(name)
            if name in taken:
                raise NameInUse(name, taken[name])
            return (name,)
        base = check_name(name or source)
        names = [f"{base}-{number}" for number in range(1, count + 1)]
        if name:
            for one in names:
                if one in taken:
                    raise NameInUse(one, taken[one])
            return names
        return free_names(base, count, taken)


def free_names(base: str, count: int, taken: Container[str]) -> Sequence[str]:
    """`base-1`, `base-2` and so on, but for those that are taken.  Pure."""
    names: list[str] = []
    number = 1
    while len(names) < count:
        if f"{base}-{number}" not in taken:
            names.append(f"{base}-{number}")
        number += 1
    return names


def need_copier(kit: Kit, entry: Entry, ref: str) -> Copier:
    """Raises InvalidRequest where the isolation copies no running instances."""
    backend = kit.backend(entry.record.spec.isolation)
    if isinstance(backend, Copier):
        return backend
    raise InvalidRequest(
        f"container {ref} has isolation {entry.record.spec.isolation}: its processes are the host kernel's, "
        "and only a virtual machine's memory can be copied while it runs",
        hint="`commit` makes an image of its files; an instance started with --isolation vm can be forked",
    )


def spec_of_copy(spec: InstanceSpec) -> InstanceSpec:
    """What cannot be two instances' at once is left to chance: addresses, and ports of the host.  Pure."""
    networks = spec.networks
    if networks is not None:
        networks = tuple(
            dataclasses.replace(one, mac_address="", ipv4_address="", ipv6_address="", link_local=())
            for one in networks
        )
    return dataclasses.replace(
        spec,
        mac_address="",
        networks=networks,
        ports=tuple(dataclasses.replace(port, host_port=0, host_port_end=0) for port in spec.ports),
    )


def make_warnings(spec: InstanceSpec) -> tuple[str, ...]:
    """Pure."""
    fixed = sorted({port.host_port for port in spec.ports if port.host_port})
    if not fixed:
        return ()
    shown = ", ".join(map(str, fixed))
    return (f"port {shown} of the host stays with the source: copies have other ones (docker port)",)
