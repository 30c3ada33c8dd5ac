"""Engine: the facade that the doors call, and the only place that knows the whole story of an instance.

Async; every method raises `insula.errors` only.  The parts, in the order in which an instance meets them:
`creation`, `preparation`, `lifecycle`, `control`, `output`, `execs`, `contents`, `removal`; then
`recovery` after the daemon was away, and `inventory` for the whole.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING

from insula.engine.connections import Connections
from insula.engine.contents import Contents
from insula.engine.control import Control
from insula.engine.copies import Copies
from insula.engine.creation import Creation
from insula.engine.execs import Execs
from insula.engine.growth import Growth
from insula.engine.instances import RUNNING_STATES, Entry, Instances
from insula.engine.inventory import Inventory, volume_users
from insula.engine.journal import JournalFeed
from insula.engine.kit import Kit
from insula.engine.legality import Action, check, still_running
from insula.engine.lifecycle import Lifecycle
from insula.engine.links import Links
from insula.engine.mounting import Mounting
from insula.engine.neighbours import Neighbours
from insula.engine.operations import begun
from insula.engine.output import Output
from insula.engine.preparation import Preparation
from insula.engine.probing import Probing
from insula.engine.recovery import Recovery
from insula.engine.removal import Removal
from insula.engine.rotation import Rotation
from insula.engine.snapshots import Snapshots
from insula.engine.templates import Templates
from insula.engine.types import (
    BUILD_ANNOTATION,
    Archive,
    CommitSpec,
    Created,
    DiskUsage,
    EngineInfo,
    ExecSpec,
    ExecView,
    Forked,
    InstanceSizes,
    InstanceView,
    LogBatch,
    LogQuery,
    SnapshotView,
    WaitCondition,
)
from insula.engine.views import make_view
from insula.errors import InsulaError, NoSuchImage, NoSuchInstance, Unavailable
from insula.isolation.backend import Backend, GuestMaker, OomTeller, ProcessTable
from insula.model.files import Change, PathStat
from insula.model.image import Image
from insula.model.instance import ExitStatus, Instance, InstanceSpec, RestartPolicy, State
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.network import NetworkSpec
from insula.model.progress import Progress
from insula.model.reports import PruneFilters, PruneReport
from insula.model.stream import Sample, Stream

if TYPE_CHECKING:
    from insula.config import Settings
    from insula.events import EventBus
    from insula.images.images import Images
    from insula.images.records import Removed
    from insula.images.roots import Roots
    from insula.network.networks import Networks
    from insula.store.store import Store
    from insula.volumes.volumes import Volumes


log = logging.getLogger(__name__)


class Engine:
    """The rooms come built; whoever built them starts them before and stops them after."""

    def __init__(  # noqa: PLR0917  (one place builds it: daemon.py)
        self,
        settings: Settings,
        store: Store,
        events: EventBus,
        images: Images,
        roots: Roots,
        networks: Networks,
        volumes: Volumes,
        backends: Mapping[Isolation, Backend],
    ) -> None:
        self.settings = settings
        self.events = events
        self.images = images
        self.networks = networks
        self.volumes = volumes
        self._kit = Kit(
            settings=settings,
            store=store,
            events=events,
            images=images,
            roots=roots,
            networks=networks,
            volumes=volumes,
            backends=backends,
            growth=Growth(),
        )
        self.templates = Templates(self._kit)
        self._instances = Instances(store, events)
        self._mounting = Mounting(self._kit)
        self._links = Links(self._kit, self._instances)
        self._execs = Execs(self._kit, self._instances, self._links)
        self._preparation = Preparation(self._kit, self._mounting, self._links, self._instances.find)
        self._neighbours = Neighbours(self._kit, self._instances, self._links, self._preparation)
        self._rotation = Rotation(self._kit)
        self._output = Output(self._kit, self._instances, self._rotation)
        self._journal = JournalFeed(self._kit)
        self._creation = Creation(
            self._kit, self._instances, self._mounting, self._preparation, self._rotation
        )
        self._probing = Probing(self._instances, self._execs)
        self._lifecycle = Lifecycle(
            self._kit,
            self._instances,
            self._mounting,
            self._preparation,
            probing=self._probing,
            rotation=self._rotation,
            journal=self._journal,
            auto_remove=self._auto_remove,
        )
        self._connections = Connections(self._kit, self._instances, self._preparation)
        self._control = Control(self._kit, self._instances, self._lifecycle, self._probing)
        self._removal = Removal(
            self._kit,
            self._instances,
            self._execs,
            self._mounting,
            volume_users=self._volume_users,
            end=self._control.end,
        )
        self._copies = Copies(
            self._kit, self._instances, self._creation, self._preparation, self._lifecycle, self._removal
        )
        self._snapshots = Snapshots(self._kit, self._instances, self._copies, self._lifecycle)
        self._contents = Contents(self._kit, self._instances, self._mounting, self._probing)
        self._inventory = Inventory(self._kit, self._instances, self._creation, self._contents)

    async def start(self) -> None:
        """Recover what ran when the daemon last looked, then take requests."""
        recovery = Recovery(
            self._kit,
            self._instances,
            self._lifecycle,
            self._removal,
            self._mounting,
            connections=self._connections,
        )
        for backend in self._kit.backends.values():
            if isinstance(backend, OomTeller):
                backend.tell_oom(self._lifecycle.note_oom)
        await recovery.recover()
        await self._remove_unfinished_builds()

    async def _remove_unfinished_builds(self) -> None:
        """RUNs that nobody waits for any more: their build ended with the daemon."""
        for record in self.list(all=True):
            unfinished = record.state in (*RUNNING_STATES, State.CREATED)
            if unfinished and BUILD_ANNOTATION in record.spec.annotations:
                try:
                    await self.remove(record.id, force=True, volumes=True)
                except InsulaError as error:  # it is one instance too many; the daemon starts all the same
                    log.error("instance %s, of an unfinished build, cannot be removed: %s", record.id, error)

    async def stop(self) -> None:
        """The daemon ends; instances go on."""
        await self._probing.close()
        for entry in self._instances.all():
            self._rotation.stop(entry)
            self._journal.stop(entry)
        self._execs.close()
        await self._neighbours.close()
        await self._lifecycle.close()
        self._kit.growth.close()

    # life of an instance

    async def create(self, spec: InstanceSpec, name: str | None) -> Created:
        return await self._creation.create(spec, name)

    async def start_instance(self, ref: str) -> None:
        await self._lifecycle.start(self._instances.find(ref), ref)

    async def stop_instance(
        self, ref: str, *, timeout_s: int | None = None, signal: str | None = None
    ) -> None:
        await self._control.stop(self._instances.find(ref), ref, timeout_s=timeout_s, signal=signal)

    async def kill(self, ref: str, signal: str = "KILL") -> None:
        await self._control.kill(self._instances.find(ref), ref, signal)

    async def restart(self, ref: str, *, timeout_s: int | None = None, signal: str | None = None) -> None:
        await self._control.restart(self._instances.find(ref), ref, timeout_s=timeout_s, signal=signal)

    async def pause(self, ref: str) -> None:
        await self._control.pause(self._instances.find(ref), ref)

    async def unpause(self, ref: str) -> None:
        entry = self._instances.find(ref)
        await self._control.unpause(entry, ref)
        self._neighbours.note_going_on(entry.id)

    async def rename(self, ref: str, new: str) -> None:
        await self._control.rename(self._instances.find(ref), ref, new)

    async def unlink(self, ref: str, alias: str) -> None:
        """Raises NoSuchInstance, also when it has no such link."""
        await self._links.unlink(self._instances.find(ref), alias, self._preparation)

    async def update(
        self, ref: str, *, limits: Limits | None = None, restart: RestartPolicy | None = None
    ) -> tuple[str, ...]:
        """Returns warnings."""
        return await self._control.update(self._instances.find(ref), ref, limits=limits, restart=restart)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """`volumes`: its anonymous ones too."""
        await self._removal.remove(self._instances.find(ref), ref, force=force, volumes=volumes)

    async def fork(self, ref: str, *, count: int = 1, name: str = "") -> Forked:
        """Live copies of a running instance."""
        return await self._copies.fork(self._instances.find(ref), ref, count=count, name=name)

    async def make_snapshot(self, ref: str, name: str = "", *, leave_running: bool = True) -> SnapshotView:
        """`name` "": the time.  An instance that is not to go on is ended at that instant."""
        entry = self._instances.find(ref)
        return await self._snapshots.create(entry, ref, name, leave_running=leave_running)

    def snapshots(self, ref: str | None = None) -> tuple[SnapshotView, ...]:
        """Of one instance, or of all, newest first."""
        entries = self._instances.all() if ref is None else (self._instances.find(ref),)
        found = [view for entry in entries for view in self._snapshots.list(entry)]
        return tuple(sorted(found, key=lambda view: view.created_ns, reverse=True))

    async def remove_snapshot(self, ref: str, name: str) -> None:
        await self._snapshots.remove(self._instances.find(ref), name)

    async def restore(self, ref: str, name: str) -> None:
        """Start an instance from one of its snapshots."""
        await self._snapshots.restore(self._instances.find(ref), ref, name)

    async def restore_as(self, ref: str, name: str, new_name: str) -> str:
        """Another instance that goes on from a snapshot; its id."""
        return await self._snapshots.restore_as(self._instances.find(ref), ref, name, new_name)

    async def export_snapshot(self, ref: str, name: str) -> AsyncIterator[bytes]:
        """A tar; its pieces have `aclose`."""
        return await self._snapshots.export(self._instances.find(ref), name)

    async def import_snapshot(self, archive: AsyncIterator[bytes], new_name: str) -> tuple[str, str]:
        """(id, snapshot) of a new instance that has it."""
        return await self._snapshots.import_(archive, new_name)

    async def connect(self, ref: str, wanted: NetworkSpec) -> None:
        """To one more network, now if it runs.  Raises NoSuchNetwork, Forbidden, InvalidRequest, Conflict."""
        await self._connections.connect(self._instances.find(ref), ref, wanted)

    async def disconnect(self, ref: str, network: str, *, force: bool = False) -> None:
        """`force`: also from a network that does not exist any more."""
        await self._connections.disconnect(self._instances.find(ref), ref, network, force=force)

    def wait(self, ref: str, condition: WaitCondition = WaitCondition.NOT_RUNNING) -> Awaitable[ExitStatus]:
        """Registered when this returns.  Raises NoSuchInstance at once."""
        return self._instances.wait(self._instances.find(ref), condition)

    # what there is

    def find(self, ref: str) -> Instance:
        """By id, id prefix, name or /name.  Raises NoSuchInstance, InvalidRequest when ambiguous."""
        return self._instances.find(ref).record

    def list(self, all: bool = False) -> tuple[Instance, ...]:
        """Newest first; without `all` those that run (paused and restarting ones included)."""
        records = [entry.record for entry in self._instances.all()]
        shown = [record for record in records if all or record.state in RUNNING_STATES]
        return tuple(sorted(shown, key=lambda record: record.created_ns, reverse=True))

    def describe(self, ref: str) -> InstanceView:
        entry = self._instances.find(ref)
        return make_view(
            entry,
            image=self._find_image(entry),
            image_named=self._is_named(entry),
            endpoints=self.networks.endpoints(entry.id),
            ports=self.networks.ports(entry.id),
            state_dir=self._kit.state_dir(entry.id),
            mountpoints={
                name: self.volumes.find(name).mountpoint
                for name in entry.record.volumes.values()
                if self.volumes.have(name)
            },
            links=self._links.shown(entry),
            link_names=self._links.names_of(entry),
        )

    async def sizes(self, ref: str) -> InstanceSizes:
        return await self._contents.sizes(self._instances.find(ref))

    # its streams

    async def attach(
        self, ref: str, *, stdin: bool, stdout: bool, stderr: bool, logs: bool, stream: bool
    ) -> Stream:
        """`logs`: with what was said before; `stream`: with what comes.  Legal before start."""
        return await self._output.attach(
            ref, stdin=stdin, stdout=stdout, stderr=stderr, logs=logs, stream=stream
        )

    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogBatch]:
        """Raises NoSuchInstance, NotImplementedYet (no log is kept) at once."""
        return self._output.logs(ref, query)

    async def resize(self, ref: str, rows: int, cols: int) -> None:
        await self._output.resize(ref, rows, cols)

    # execs

    async def exec_create(self, ref: str, spec: ExecSpec) -> str:
        await begun(self._instances.find(ref))
        return self._execs.create(ref, spec)

    async def exec_start(
        self, exec_id: str, *, detach: bool, tty: bool, console_rows: int = 0, console_cols: int = 0
    ) -> Stream | None:
        """None when detached."""
        return await self._execs.start(
            exec_id, detach=detach, tty=tty, console_rows=console_rows, console_cols=console_cols
        )

    async def exec_resize(self, exec_id: str, rows: int, cols: int) -> None:
        await self._execs.resize(exec_id, rows, cols)

    def exec_inspect(self, exec_id: str) -> ExecView:
        return self._execs.find(exec_id).view()

    # what it is doing

    async def top(self, ref: str, ps_args: Sequence[str]) -> ProcessTable:
        entry = self._instances.find(ref)
        await begun(entry)
        check(Action.TOP, entry.record, ref)
        with still_running(entry):
            table = await self._kit.backend(entry.record.spec.isolation).processes(entry.id, ps_args)
        self._instances.event(entry, "top")
        return table

    async def sample(self, ref: str) -> Sample:
        """All zero for one that does not run, as Docker's."""
        entry = self._instances.find(ref)
        if entry.alive:
            with contextlib.suppress(NoSuchInstance):  # it is just ending
                return await self._kit.backend(entry.record.spec.isolation).sample(entry.id)
        return Sample(taken_ns=time.time_ns(), cpu_total_ns=0)

    # its files

    async def stat_path(self, ref: str, path: str) -> PathStat:
        return await self._contents.stat(ref, path)

    async def get_archive(self, ref: str, path: str) -> Archive:
        """Its `pieces` have `aclose`, for a client that goes early."""
        return await self._contents.get(ref, path)

    async def put_archive(
        self,
        ref: str,
        path: str,
        archive: AsyncIterator[bytes],
        *,
        no_overwrite_dir: bool = False,
        copy_owner: bool = False,
    ) -> None:
        await self._contents.put(ref, path, archive, no_overwrite_dir=no_overwrite_dir, copy_owner=copy_owner)

    async def changes(self, ref: str) -> tuple[Change, ...]:
        return await self._contents.changes(ref)

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        """`pieces = await engine.export(ref)`; they have `aclose`, for a client that goes early."""
        return await self._contents.export(ref)

    async def commit(self, ref: str, spec: CommitSpec) -> Image:
        return await self._contents.commit(ref, spec)

    # images and volumes, with what the engine knows of their use

    async def remove_image(
        self, ref: str, *, force: bool = False, prune_children: bool = True
    ) -> Sequence[Removed]:
        return await self.images.remove(
            ref, force=force, prune_children=prune_children, in_use=self._inventory.image_user
        )

    async def prune_images(self, filters: PruneFilters, *, dangling_only: bool = True) -> PruneReport:
        return await self.images.prune(
            dangling_only=dangling_only, in_use=self._inventory.image_user, filters=filters
        )

    def hold_image(self, holder: str, image_id: str | None) -> None:
        """Keep an image that has no name yet from being pruned; None lets go."""
        if image_id is None:
            self._inventory.held_images.pop(holder, None)
        else:
            self._inventory.held_images[holder] = image_id

    def uses_image(self, image_id: str) -> bool:
        """Whether an instance is of it, or a build holds it."""
        return self._inventory.image_user(image_id) is not None

    async def remove_volume(self, name: str, *, force: bool = False) -> None:
        await self.volumes.remove(name, force=force, users=self._volume_users)

    async def prune_volumes(self, filters: PruneFilters, *, all: bool = False) -> PruneReport:
        """Anonymous ones only, unless `all`."""
        return await self.volumes.prune(filters, all=all, users=self._volume_users)

    # the whole

    async def prune_instances(self, filters: PruneFilters) -> PruneReport:
        return await self._inventory.prune_instances(filters, self._removal)

    async def shared_sizes(self) -> dict[str, int]:
        """Bytes by image id: of an image's layers, those that others have too."""
        return await self._inventory.shared_sizes()

    async def disk_usage(self) -> DiskUsage:
        return await self._inventory.disk_usage(self.describe)

    def info(self) -> EngineInfo:
        return self._inventory.info()

    async def make_guest(self, progress: Progress) -> None:
        """What virtual machines boot, now instead of at the first of them.  Raises Unavailable."""
        makers = [backend for backend in self._kit.backends.values() if isinstance(backend, GuestMaker)]
        if not makers:
            raise Unavailable("no isolation of this daemon boots a guest")
        for maker in makers:
            await maker.make_guest(progress)

    # inside

    def _volume_users(self, name: str) -> tuple[str, ...]:
        return volume_users(self._instances, self._creation, name)

    async def _auto_remove(self, entry: Entry) -> None:
        await self._removal.auto_remove(entry)

    def _find_image(self, entry: Entry) -> Image | None:
        try:
            return self.images.find(entry.record.image_id)
        except NoSuchImage:
            return None

    def _is_named(self, entry: Entry) -> bool:
        """What its image was called when it was created has not become another's name, or nobody's."""
        try:
            return self.images.find(entry.record.spec.image).id == entry.record.image_id
        except InsulaError:  # also the beginning of several ids by now
            return False
