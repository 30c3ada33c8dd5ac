"""Making an instance: refuse what cannot be, then acquire name, volumes and root in order.  Async.

Nothing is left of a create that fails, nor of one that a crash has cut (see `recovery`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from insula.engine.checks import check_labels, check_spec, disk_gib
from insula.engine.instances import Entry, Instances
from insula.engine.links import settle_links
from insula.engine.merge import merge_config
from insula.engine.mounting import Mounting
from insula.engine.names import make_name
from insula.engine.operations import Journal
from insula.engine.planner import (
    Attachment,
    attachment,
    decide_ports,
    decide_security,
    make_plan,
    placeholder_root,
)
from insula.engine.preparation import Preparation
from insula.engine.rotation import Rotation
from insula.engine.sharing import settle_donors
from insula.engine.types import Created
from insula.engine.volume_use import inherited_mounts
from insula.errors import InvalidRequest, NoSuchNetwork, Unavailable
from insula.model import codec
from insula.model.ids import check_name, make_id
from insula.model.image import Image
from insula.model.instance import Instance, InstanceSpec, State
from insula.model.isolation import root_kind
from insula.model.mounts import Mount, MountKind, MountSpec
from insula.model.network import NetworkSpec
from insula.model.progress import no_progress
from insula.model.root import DirectoryRoot, DiskRoot, RootKind
from insula.system.files import disk_errors, remove_tree
from insula.system.ssh_keys import find_host_keys
from insula.volumes.checks import check_mounts, check_not_proc, clean_target, prepare_bind
from insula.volumes.copy_up import copy_up
from insula.volumes.mounting import open_part

if TYPE_CHECKING:
    from insula.engine.kit import Kit


class Creation:
    def __init__(
        self,
        kit: Kit,
        instances: Instances,
        mounting: Mounting,
        preparation: Preparation,
        rotation: Rotation,
    ) -> None:
        self._kit = kit
        self._instances = instances
        self._preparation = preparation
        self._rotation = rotation
        self._mounting = mounting
        self.images: dict[str, str] = {}
        """Image ids by instance id, of creates that are under way: those images are in use."""
        self.volumes: dict[str, set[str]] = {}

    async def create(self, spec: InstanceSpec, name: str | None) -> Created:
        """Raises InvalidRequest, UnsupportedField, NoSuchImage, NameInUse, Unavailable, DiskFull."""
        kit = self._kit
        spec = self._with_known_networks(spec)
        check_spec(spec)
        spec = settle_donors(spec, self._instances.find)
        spec = settle_links(spec, self._instances.find)
        self._rotation.check(spec.log)
        check_mounts(spec.mounts)
        image = kit.images.find(spec.image)
        backend = kit.backend(spec.isolation)
        if problem := backend.info().problem:
            raise Unavailable(f"isolation {spec.isolation} does not work on this host: {problem}")
        instance_id = make_id()
        name = check_name(name) if name else make_name(self._instances.names)
        config = merge_config(spec, image.config, instance_id, host_name=socket.gethostname())
        decide_ports(spec, config)
        inherited = inherited_mounts(spec.volumes_from, self._instances)
        # names for anonymous volumes are chosen here, so that the journal has them before they are made
        mounts = tuple(
            dataclasses.replace(mount, source=make_id(), anonymous=True) if is_nameless(mount) else mount
            for mount in decide_mounts(spec, image.config.volumes, inherited)
        )
        draft = make_plan(
            instance_id,
            spec,
            config,
            settings=kit.settings,
            places=self._preparation.places(instance_id),
            root=placeholder_root(spec),
            security=decide_security(spec, self._preparation.profile()),
            mounts=tuple(finalize_mount(mount, index, mount.source) for index, mount in enumerate(mounts)),
        )
        warnings = backend.check(draft)

        self._instances.reserve(name, instance_id)
        async with AsyncExitStack() as undo:
            undo.callback(self._instances.release, name, instance_id)
            self.images[instance_id] = image.id
            self.volumes[instance_id] = {mount.source for mount in mounts if mount.kind is MountKind.VOLUME}
            fresh = [name for name in self.volumes[instance_id] if not kit.volumes.have(name)]
            journal = Journal(kit.store, instance_id, "create", codec.encode(fresh))
            undo.callback(journal.end)
            try:
                volumes, sources = await self._make_sources(mounts, undo)
                self._make_directories(instance_id, undo)
                root = await self._make_root(image, instance_id, spec, undo)
                plan = dataclasses.replace(
                    draft,
                    host_keys=self._shared_host_keys(image, root),
                    directory=root if isinstance(root, DirectoryRoot) else None,
                    disk=root if isinstance(root, DiskRoot) else None,
                    mounts=tuple(
                        finalize_mount(mount, index, source)
                        for index, (mount, source) in enumerate(zip(mounts, sources, strict=True))
                    ),
                )
                await self._fill_volumes(image, plan.directory, instance_id, mounts)
                record = Instance(
                    id=instance_id,
                    name=name,
                    spec=spec,
                    image_id=image.id,
                    state=State.CREATED,
                    created_ns=time.time_ns(),
                    config=config,
                    volumes=volumes,
                    mounts=mounts,
                )
                entry = Entry(record, root_mounted=plan.directory is not None)
                with kit.store.transaction():
                    self._instances.put(entry)
                    self._instances.put_plan(entry, plan)
                    journal.end()
            finally:
                del self.images[instance_id], self.volumes[instance_id]
            undo.pop_all()
        self._instances.add(entry)
        self._instances.event(entry, "create")
        return Created(id=instance_id, warnings=(*warnings, *make_warnings(spec)))

    def _with_known_networks(self, spec: InstanceSpec) -> InstanceSpec:
        """By name, each once: a request may say NetworkMode by id and its endpoint by name.  One that does
        not exist (yet) is an error at start, as in Docker."""
        if spec.networks is None:
            return spec
        found: dict[str, NetworkSpec] = {}
        for asked in spec.networks:
            wanted = asked
            with contextlib.suppress(NoSuchNetwork):
                known = self._kit.networks.find(asked.name)
                wanted = dataclasses.replace(asked, name=self._kit.networks.reference(known))
            if wanted.name not in found or found[wanted.name] == NetworkSpec(name=wanted.name):
                found[wanted.name] = wanted
        return dataclasses.replace(spec, networks=tuple(found.values()))

    async def _make_sources(
        self, mounts: tuple[MountSpec, ...], undo: AsyncExitStack
    ) -> tuple[dict[str, str], list[str]]:
        """Volume names by target, and the host's side of every mount."""
        volumes: dict[str, str] = {}
        sources: list[str] = []
        kit = self._kit
        for mount in mounts:
            if mount.kind is MountKind.BIND:
                prepare_bind(mount)
                sources.append(mount.source)
            elif mount.kind is MountKind.VOLUME:
                if not kit.volumes.have(mount.source):
                    undo.push_async_callback(kit.volumes.remove, mount.source, force=True, users=_nobody)
                volume = await kit.volumes.create(
                    mount.source,
                    driver=mount.driver,
                    labels=mount.labels,
                    options=mount.driver_options,
                    anonymous=mount.anonymous,
                )
                volumes[mount.target] = volume.name
                sources.append(volume.mountpoint)
            else:
                sources.append("")
        return volumes, sources

    def _make_directories(self, instance_id: str, undo: AsyncExitStack) -> None:
        for path in (self._kit.state_dir(instance_id), self._kit.run_dir(instance_id)):
            undo.callback(remove_tree, path)
            with disk_errors(f"making {path}"):
                os.makedirs(path, mode=0o700, exist_ok=True)

    async def _make_root(
        self, image: Image, instance_id: str, spec: InstanceSpec, undo: AsyncExitStack
    ) -> DirectoryRoot | DiskRoot:
        undo.push_async_callback(self._kit.roots.remove, instance_id)
        if root_kind(spec.isolation) is RootKind.DIRECTORY:
            return await self._kit.roots.make_directory(image, instance_id, volatile=spec.auto_remove)
        return await self._kit.roots.make_disk(
            image,
            instance_id,
            size_gib=disk_gib(spec.storage_opt) or self._kit.settings.vm_disk_gib,
            volatile=spec.auto_remove,
            progress=no_progress,
        )

    def _shared_host_keys(self, image: Image, root: DirectoryRoot | DiskRoot) -> tuple[str, ...]:
        """A machine of its own has ssh host keys of its own, and not its image's."""
        if isinstance(root, DirectoryRoot):
            return ()
        return find_host_keys(self._kit.roots.layer_directories(image))

    async def _fill_volumes(
        self,
        image: Image,
        root: DirectoryRoot | None,
        instance_id: str,
        mounts: tuple[MountSpec, ...],
    ) -> None:
        """What the image has at a fresh volume's place is copied into it."""
        scratch = self._kit.settings.exec_root
        for mount in mounts:
            if mount.kind is not MountKind.VOLUME or mount.no_copy:
                continue
            layers = root.lowers if root is not None else self._kit.roots.layer_directories(image)
            async with self._mounting.volumes.held(mount.source, instance_id) as volume:
                if not mount.subpath:
                    await copy_up(layers, mount.target, volume.mountpoint, scratch=scratch)
                    continue
                with contextlib.ExitStack() as stack:
                    try:
                        part = stack.enter_context(open_part(volume, mount.subpath))
                    except InvalidRequest:
                        continue  # another instance may make it; whether it is there matters at the start
                    if os.path.isdir(part):
                        await copy_up(layers, mount.target, part, scratch=scratch)


def decide_mounts(
    spec: InstanceSpec, image_volumes: tuple[str, ...], inherited: tuple[MountSpec, ...] = ()
) -> tuple[MountSpec, ...]:
    """The request's mounts, those of other instances that it does not replace, and an anonymous volume for
    each of the image's that none covers; outer ones first.  Pure."""
    taken = {mount.target: mount for mount in inherited}
    own = [dataclasses.replace(mount, target=clean_target(mount.target)) for mount in spec.mounts]
    # `-v /data` alone wants some volume there, and has one by then
    own = [mount for mount in own if not (mount.legacy and is_nameless(mount) and mount.target in taken)]
    mounts = list((taken | {mount.target: mount for mount in own}).values())
    covered = {mount.target for mount in mounts}
    for untrusted_target in image_volumes:
        target = clean_target(untrusted_target)
        if target not in covered:
            check_not_proc(MountKind.VOLUME, target)
            covered.add(target)
            mounts.append(MountSpec(kind=MountKind.VOLUME, target=target, legacy=True))
    return tuple(sorted(mounts, key=lambda mount: mount.target.count("/")))


def is_nameless(mount: MountSpec) -> bool:
    return mount.kind is MountKind.VOLUME and not mount.source


def finalize_mount(mount: MountSpec, index: int, source: str) -> Mount:
    """`source` is the host's path.  Pure."""
    return Mount(
        kind=MountKind.TMPFS if mount.kind is MountKind.TMPFS else MountKind.BIND,
        target=mount.target,
        source=source,
        read_only=mount.read_only,
        options=mount.options,
        propagation=mount.propagation or "rprivate",
        tag=f"m{index}",
        recursive=not mount.non_recursive,
        read_only_above=mount.read_only_above,
        read_only_below=mount.read_only_below,
    )


def make_warnings(spec: InstanceSpec) -> tuple[str, ...]:
    """In Docker's words where it has some.  `check_spec` has let it pass."""
    found = list(check_labels(spec.security_opt))
    if spec.limits.oom_kill_disable and not spec.limits.memory_bytes:
        found.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the "
            "system running out of resources."
        )
    if attachment(spec)[0] is not Attachment.BRIDGE and (spec.ports or spec.publish_all):
        found.append(f"Published ports are discarded when using {spec.network_mode} network mode")
    return tuple(found)


def _nobody(_name: str) -> tuple[str, ...]:
    return ()
