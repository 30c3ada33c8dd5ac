"""All instances in memory, and the one way to change what is stored of them.

`Entry` is the engine's living side of an instance: its record, its plan, who waits for it, who is about to
attach.  Not async itself, but belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from insula.engine.lookup import find_id
from insula.engine.types import WaitCondition
from insula.errors import CorruptData, NameInUse, NoSuchInstance
from insula.isolation.plan import LaunchPlan
from insula.model import codec
from insula.model.instance import ExitStatus, Instance, MergedConfig, State

if TYPE_CHECKING:
    from insula.engine.attach import PendingStream
    from insula.engine.execs import ExecEntry
    from insula.events import EventBus
    from insula.store.store import Store

RUNNING_STATES = frozenset({State.RUNNING, State.PAUSED, State.RESTARTING})


@dataclass(slots=True)
class Run:
    """One life of a workload: from launch until everything about its end is done.  `since_ns`: when this
    daemon saw it run first."""

    since_ns: int = field(default_factory=time.time_ns)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """`holder` names the operation that has the lock.  `root_users` counts who needs the root mounted."""

    record: Instance
    plan: LaunchPlan | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holder: str = ""
    run: Run | None = None
    waiters: list[tuple[WaitCondition, asyncio.Future[ExitStatus]]] = field(default_factory=list)
    pending: list[PendingStream] = field(default_factory=list)
    execs: dict[str, ExecEntry] = field(default_factory=dict)
    removed: bool = False
    keep_on_exit: bool = False
    restarting: bool = False
    """Somebody has asked for a restart, which is under way."""
    no_restart: bool = False
    oom_early: bool = False
    """It had too little memory before its start was recorded."""
    backoff_ms: int = 0
    restart_timer: asyncio.Task[None] | None = None
    root_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    root_users: int = 0
    root_mounted: bool = False
    holds_volumes: bool = False
    prober: asyncio.Task[None] | None = None
    trimmer: asyncio.Task[None] | None = None
    feeder: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def config(self) -> MergedConfig:
        return self.record.config

    @property
    def alive(self) -> bool:
        """It has a workload now (paused counts, waiting for a restart does not)."""
        return self.record.state in (State.RUNNING, State.PAUSED)

    def exit_status(self) -> ExitStatus:
        record = self.record
        return ExitStatus(
            code=record.exit_code,
            finished_at_ns=record.finished_ns,
            oom_killed=record.oom_killed,
            error=record.error,
        )


class Instances:
    def __init__(self, store: Store, events: EventBus) -> None:
        self._store = store
        self._events = events
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}
        self._linking: dict[str, Entry] = {}

    # what there is

    def find(self, ref: str) -> Entry:
        """Raises NoSuchInstance, InvalidRequest when `ref` is ambiguous."""
        found = self._entries.get(find_id(ref, self._entries, self._names))
        if found is None:  # its name is reserved, it is not there yet
            raise NoSuchInstance(ref)
        return found

    def get(self, instance_id: str) -> Entry | None:
        return self._entries.get(instance_id)

    def all(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def linking(self) -> tuple[Entry, ...]:
        """Those that have links to others."""
        return tuple(entry for entry in self._linking.values() if entry.record.spec.links)

    @property
    def names(self) -> dict[str, str]:
        return self._names

    # names

    def reserve(self, name: str, instance_id: str) -> None:
        """Raises NameInUse."""
        holder = self._names.get(name)
        if holder is not None and holder != instance_id:
            raise NameInUse(name, holder)
        self._names[name] = instance_id

    def release(self, name: str, instance_id: str) -> None:
        if self._names.get(name) == instance_id:
            del self._names[name]

    # changes

    def add(self, entry: Entry) -> None:
        """Into memory only; `put` stores."""
        self._names[entry.record.name] = entry.id
        self._entries[entry.id] = entry
        if entry.record.spec.links:
            self._linking[entry.id] = entry

    def put(self, entry: Entry, **changes: Any) -> None:
        """Change the record: stored first, then seen."""
        record = dataclasses.replace(entry.record, **changes)
        self._store.put_instance(record)
        entry.record = record

    def show_state(self, entry: Entry, state: State) -> None:
        """In memory only: what is true for the moment and not after a crash."""
        entry.record = dataclasses.replace(entry.record, state=state)

    def put_plan(self, entry: Entry, plan: LaunchPlan) -> None:
        self._store.put_plan(entry.id, codec.encode(plan))
        entry.plan = plan

    def read_plan(self, instance_id: str) -> LaunchPlan | None:
        """The stored plan; None when there is none or it cannot be read (an older version's)."""
        text = self._store.get_plan(instance_id)
        if text is None:
            return None
        try:
            return codec.decode(text, LaunchPlan)
        except CorruptData:
            return None

    def forget(self, entry: Entry) -> None:
        """From the store and from memory."""
        self._store.delete_instance(entry.id)
        self._entries.pop(entry.id, None)
        self._linking.pop(entry.id, None)
        self.release(entry.record.name, entry.id)
        entry.removed = True

    # who waits

    def wait(self, entry: Entry, condition: WaitCondition) -> Awaitable[ExitStatus]:
        """Registered when this returns."""
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        if condition is WaitCondition.NOT_RUNNING and entry.record.state not in RUNNING_STATES:
            future.set_result(entry.exit_status())
        else:
            entry.waiters = [(c, f) for c, f in entry.waiters if not f.done()]
            entry.waiters.append((condition, future))
        return future

    def wake(self, entry: Entry, *, removed: bool = False) -> None:
        """It has ended, or (`removed`) it is no more, which answers everybody."""
        status = entry.exit_status()
        later: list[tuple[WaitCondition, asyncio.Future[ExitStatus]]] = []
        for condition, future in entry.waiters:
            if future.done():
                continue
            if removed or condition is not WaitCondition.REMOVED:
                future.set_result(status)
            else:
                later.append((condition, future))
        entry.waiters = later

    # what is told

    def event(self, entry: Entry, action: str, **extra: str) -> None:
        """Docker's container event: the labels, image and name, then what is special."""
        record = entry.record
        attributes = {**entry.config.labels, "image": record.spec.image, "name": record.name}
        self._events.publish("container", action, record.id, **{**attributes, **extra})
