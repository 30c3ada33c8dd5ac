"""Files of instances: cp, diff, export, commit, sizes.  Async.

A root is mounted for as long as something needs it.  Where the file system may be opened by one only (a
VM's disk), a stopped instance is held for the duration, so that it cannot start in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from insula.engine.health import merge_health
from insula.engine.instances import Entry, Instances, Run
from insula.engine.legality import Action, check
from insula.engine.mounting import Mounting
from insula.engine.operations import exclusive
from insula.engine.probing import Probing
from insula.engine.types import Archive, CommitSpec, InstanceSizes
from insula.errors import Conflict, Failure, Forbidden, GuestFailed, InsulaError, NoSuchPath
from insula.images.changes import apply_changes
from insula.isolation.backend import Files
from insula.model.files import Change, PathStat
from insula.model.image import Image, ImageConfig
from insula.model.instance import State
from insula.model.mounts import MountKind
from insula.model.paths import clean_path
from insula.system import tar
from insula.volumes.volumes import tree_size

if TYPE_CHECKING:
    from insula.engine.kit import Kit


T = TypeVar("T")
_END_S = 5.0  # a VM writes its disk back, and powers off
_KERNELS = ("/proc", "/sys")


class Contents:
    def __init__(self, kit: Kit, instances: Instances, mounting: Mounting, probing: Probing) -> None:
        self._kit = kit
        self._instances = instances
        self._mounting = mounting
        self._probing = probing
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def stat(self, ref: str, path: str) -> PathStat:
        return await self._also_at_its_end(ref, lambda: self._stat(ref, path))

    async def _stat(self, ref: str, path: str) -> PathStat:
        async with AsyncExitStack() as stack:
            files = await self._open(ref, stack)
            with _as_asked(ref, path):
                check_not_kernels(self._instances.find(ref), path)
                return await files.stat(absolute(path))

    async def get(self, ref: str, path: str) -> Archive:
        return await self._also_at_its_end(ref, lambda: self._get(ref, path))

    async def _get(self, ref: str, path: str) -> Archive:
        stack = AsyncExitStack()
        try:
            files = await self._open(ref, stack)
            with _as_asked(ref, path):
                kernels = check_not_kernels(self._instances.find(ref), path)
                stat = await files.stat(absolute(path))
                found = _empty_directory(stat) if kernels else files.get(absolute(path))
                archive = Archive(stat, await _Pieces.open(found, stack))
        except BaseException:
            await stack.aclose()
            raise
        self._instances.event(self._instances.find(ref), "archive-path")
        return archive

    async def put(
        self, ref: str, path: str, archive: AsyncIterator[bytes], *, no_overwrite_dir: bool, copy_owner: bool
    ) -> None:
        # two at once would each make what the other is about to replace; Docker, too, takes them in turn
        lock = self._writing.setdefault(self._instances.find(ref).id, asyncio.Lock())
        async with lock, AsyncExitStack() as stack:
            files = await self._open(ref, stack)
            check_writable(self._instances.find(ref), path)
            with _as_asked(ref, path):
                await files.put(
                    absolute(path), archive, no_overwrite_dir=no_overwrite_dir, copy_owner=copy_owner
                )
        self._instances.event(self._instances.find(ref), "extract-to-dir")

    async def changes(self, ref: str) -> tuple[Change, ...]:
        return await self._also_at_its_end(ref, lambda: self._changes(ref))

    async def _changes(self, ref: str) -> tuple[Change, ...]:
        async with AsyncExitStack() as stack:
            return await (await self._open(ref, stack)).changes()

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        return await self._also_at_its_end(ref, lambda: self._export(ref))

    async def _export(self, ref: str) -> AsyncIterator[bytes]:
        stack = AsyncExitStack()
        try:
            files = await self._open(ref, stack)
            pieces = await _Pieces.open(files.export(), stack)
        except BaseException:
            await stack.aclose()
            raise
        self._instances.event(self._instances.find(ref), "export")
        return pieces

    async def commit(self, ref: str, spec: CommitSpec) -> Image:
        """A new image from the instance's changes.  Paused meanwhile if it runs and `spec.pause`."""
        entry = self._instances.find(ref)
        run = entry.run
        try:
            return await self._commit(ref, entry, spec)
        except InsulaError:
            if run is None or not await _ended(run):
                raise
        return await self._commit(ref, entry, spec)  # it had just ended: there is nothing to pause, or to ask

    async def _commit(self, ref: str, entry: Entry, spec: CommitSpec) -> Image:
        base = self._kit.images.find(entry.record.image_id)
        config = committed_config(entry)
        if spec.config is not None:
            config = spec.config if spec.whole else _filled(spec.config, config)
        config = apply_changes(config, spec.changes)
        async with AsyncExitStack() as stack:
            files = await self._open(ref, stack)
            if spec.pause and entry.record.state is State.RUNNING:
                await stack.enter_async_context(self._frozen(entry))
            layer = files.layer()
            image = await self._kit.images.commit(
                layer if spec.through is None else spec.through(layer),
                base=base,
                config=config,
                author=spec.author,
                message=spec.comment,
                created_by=spec.created_by or " ".join(entry.config.args),
                created=spec.created,
                container="" if spec.created else entry.id,  # a chosen time asks for the same image each time
                container_image=entry.record.spec.image,
                ref=spec.ref,
            )
        self._instances.event(
            entry, "commit", comment=spec.comment, imageID=image.id, imageRef=spec.ref or ""
        )
        return image

    async def sizes(self, entry: Entry) -> InstanceSizes:
        """What it wrote, as the host's disk sees it."""
        plan = entry.plan
        written = 0
        if plan is not None and plan.directory is not None:
            written = await asyncio.to_thread(tree_size, plan.directory.upper)
        elif plan is not None and plan.disk is not None:
            written = _allocated(plan.disk.upper_disk)
        image = next((i for i in self._kit.images.list() if i.id == entry.record.image_id), None)
        return InstanceSizes(
            written_bytes=written, total_bytes=written + (image.size_bytes if image is not None else 0)
        )

    async def _also_at_its_end(self, ref: str, work: Callable[[], Awaitable[T]]) -> T:
        """What runs may end while it is asked, and answers differently then."""
        run = self._instances.find(ref).run
        try:
            return await work()
        except (Conflict, GuestFailed):
            if run is None or not await _ended(run):
                raise
        return await work()

    async def _open(self, ref: str, stack: AsyncExitStack) -> Files:
        entry = self._instances.find(ref)
        check(Action.FILES, entry.record, ref)
        if entry.plan is None:
            raise Failure(f"instance {entry.id} has no readable plan", hint="remove it and create it anew")
        if entry.plan.disk is not None and not entry.alive:
            await stack.enter_async_context(exclusive(entry, "copy"))
        await stack.enter_async_context(self._mounting.held(entry))
        plan = entry.plan
        if not entry.alive and entry.record.volumes:
            plan = replace(plan, mounts=await self._mounting.volumes.lend(entry, plan.mounts, stack))
        return await stack.enter_async_context(self._kit.backend(plan.isolation).files(plan))

    def _frozen(self, entry: Entry) -> _Frozen:
        return _Frozen(self._kit, self._probing, entry)


async def _ended(run: Run) -> bool:
    """Whether this is the end of a workload, of which the record does not know yet."""
    try:
        async with asyncio.timeout(_END_S):
            await run.over.wait()
    except TimeoutError:
        return False
    return True


class _Frozen:
    """Its workload stands still, and nobody probes it; not the same as a user's pause, so no state and no
    event."""

    def __init__(self, kit: Kit, probing: Probing, entry: Entry) -> None:
        self._backend = kit.backend(entry.record.spec.isolation)
        self._probing = probing
        self._entry = entry

    async def __aenter__(self) -> None:
        with self._probing.held(self._entry):
            await self._backend.freeze(self._entry.id, True)

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._thaw()
        finally:
            self._probing.watch(self._entry)

    async def _thaw(self) -> None:
        run = self._entry.run
        if self._entry.record.state is not State.RUNNING or run is None:
            return
        try:
            await self._backend.freeze(self._entry.id, False)
        except InsulaError:
            if not await _ended(run):
                raise


class _Pieces:
    """An archive that closes what it was opened with when it ends, fails or is let go (`aclose`)."""

    def __init__(self, first: bytes | None, rest: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        self._first = first
        self._rest = rest
        self._stack = stack

    @classmethod
    async def open(cls, pieces: AsyncIterator[bytes], stack: AsyncExitStack) -> _Pieces:
        """With its first piece at hand: an early error is raised here, not in the middle of an answer."""
        return cls(await anext(pieces, None), pieces, stack)

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await anext(self._rest)
        except BaseException:
            await self._stack.aclose()
            raise

    async def aclose(self) -> None:
        close = getattr(self._rest, "aclose", None)
        if close is not None:
            await close()
        await self._stack.aclose()


def check_writable(entry: Entry, path: str) -> None:
    """Whether `docker cp` may write there: by the path as it is written, as in dockerd.  Raises Forbidden."""
    plan = entry.plan
    assert plan is not None
    normal = clean_path(path)
    mounts = [m for m in plan.mounts if entry.alive or m.kind is not MountKind.TMPFS]
    holding = [m for m in mounts if f"{normal}/".startswith(f"{m.target.rstrip('/')}/")]
    if holding:
        if max(holding, key=lambda m: len(m.target)).read_only:
            raise Forbidden("mounted volume is marked read-only")
    elif plan.security.read_only_root:
        raise Forbidden("container rootfs is marked read-only")


@contextlib.contextmanager
def _as_asked(ref: str, path: str) -> Iterator[None]:
    """What is not there is named in the words of who asked, as Docker does."""
    try:
        yield
    except NoSuchPath as error:
        raise NoSuchPath(path, ref) from error


def absolute(path: str) -> str:
    """Docker takes a path without its leading slash as one from the root."""
    return path if path.startswith("/") else f"/{path}"


def check_not_kernels(entry: Entry, path: str) -> bool:
    """Whether the path, as it is written, is where the kernel shows itself while an instance runs: to `docker
    cp` an empty directory, as in dockerd, whose view of a root has no such mounts.  Raises NoSuchPath for
    what is below: it has no sizes to write into an archive, and `docker exec … cat` reads it."""
    assert entry.plan is not None
    normal = clean_path(path)
    top = next((top for top in _KERNELS if normal == top or normal.startswith(f"{top}/")), "")
    if not entry.alive or not top:
        return False
    if any(normal == mount.target or normal.startswith(f"{mount.target}/") for mount in entry.plan.mounts):
        return False
    if normal != top:
        raise NoSuchPath(path, entry.id)
    return True


async def _empty_directory(stat: PathStat) -> AsyncIterator[bytes]:
    name = stat.name.encode() + b"/"
    member = tar.Member(name=name, kind=tar.DIRECTORY, mode=0o40755, mtime_ns=stat.mtime_ns)
    yield tar.header(member) + tar.END


def committed_config(entry: Entry) -> ImageConfig:
    """An instance's configuration as an image's: what the request set, without what is the instance's own."""
    config = entry.config
    return ImageConfig(
        command=config.command,
        entrypoint=config.entrypoint,
        env=config.env,
        user=config.user,
        working_dir=config.working_dir,
        labels=config.labels,
        exposed_ports=config.exposed_ports,
        volumes=config.volumes,
        stop_signal=config.stop_signal,
        shell=config.shell,
        on_build=entry.record.spec.on_build,
        health=config.health,
    )


def _filled(given: ImageConfig, own: ImageConfig) -> ImageConfig:
    """moby's merge: what was left empty is the instance's; ports, volumes, labels, env come together."""
    env = {e.partition("=")[0]: e for e in (*own.env, *given.env)}
    whole = bool(given.entrypoint)
    return replace(
        given,
        command=given.command or (() if whole else own.command),
        entrypoint=given.entrypoint or own.entrypoint,
        env=tuple(env.values()),
        user=given.user or own.user,
        working_dir=given.working_dir or own.working_dir,
        labels={**own.labels, **given.labels},
        exposed_ports=tuple(sorted({*own.exposed_ports, *given.exposed_ports})),
        volumes=tuple(sorted({*own.volumes, *given.volumes})),
        stop_signal=given.stop_signal or own.stop_signal,
        health=merge_health(given.health, own.health),
    )


def _allocated(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
