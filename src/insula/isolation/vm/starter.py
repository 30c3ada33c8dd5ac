"""How a VM comes to be: as a clone made ahead, as a clone made now, or by booting, in this order.  Async.

Each way falls back on the next, and says why in the log.  Not for what runs in it, nor for how it ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
import uuid
from collections.abc import Callable

from insula.errors import InsulaError, NotFound, RuntimeFailed, Unavailable
from insula.isolation.vm import boot, clones
from insula.isolation.vm.boot import Booted, Launch
from insula.isolation.vm.channel import Channel
from insula.isolation.vm.clones import Clone, Clones
from insula.isolation.vm.facilities import Facilities
from insula.isolation.vm.image_templates import ImageTemplate, ImageTemplates, Kind, identify
from insula.isolation.vm.machine import MOST_NICS, MOST_SHARES
from insula.isolation.vm.order import (
    Order,
    clone_place,
    rehearsal_order,
    template_place,
    with_interfaces,
)
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.rehearsal import premount, premount_root, rehearse
from insula.isolation.vm.size import Size, have_memory
from insula.isolation.vm.steps import Steps
from insula.isolation.vm.template import Source, Template, TemplateRecord
from insula.isolation.vm.templates import Templates, finish, freeze, make_key
from insula.model.limits import Limits
from insula.model.root import IMAGE_DISK_BYTES
from insula.model.template import TemplateView
from insula.system.disk_file import copy_sparse, make_again, replace_disk
from insula.system.files import remove_tree
from insula.system.memory_file import close_all, load_sealed, make_memory_file

log = logging.getLogger(__name__)

_MOST_REASON = 1000
_BOOT_S = 300.0  # software emulation on a busy host; a panic or QEMU's end is noticed at once
_AT_ONCE = 2  # boots and clones that are being made, per CPU of ours: more would only wait for each other


class Starter:
    def __init__(self, facilities: Facilities) -> None:
        self._facilities = facilities
        self._settings = facilities.settings
        self._slots = asyncio.Semaphore(_AT_ONCE * len(os.sched_getaffinity(0)))
        self.templates = Templates(self._settings.data_root, self._template_key, self._make_template)
        self.clones = Clones(self._make_clone, self._drop_clone, least=self._settings.vm_pool)
        self.images = ImageTemplates(self._make_image_template, most=self._settings.vm_image_templates)
        self._dropping: set[asyncio.Task[None]] = set()
        self._empty = facilities.empty_disk

    async def close(self) -> None:
        await self.clones.close()
        await self.images.close()
        if self._dropping:
            await asyncio.gather(*self._dropping)
        await self.templates.close()

    async def upkeep(self) -> None:
        """Now and then."""
        self.clones.relieve()
        self.images.shrink()
        await self.templates.shrink()

    # an instance's VM

    def find_ready(self, order: Order) -> Clone | None:
        """A clone made ahead that can become this."""
        if order.shares or order.fixed_taps or len(order.taps) > 1 or not self._fits(order):
            return None
        return self.clones.find(Size(vcpus=order.vcpus, memory_mib=order.memory_mib))

    async def hand_over(
        self, clone: Clone, order: Order, adopt: Callable[[Channel, Monitor], None]
    ) -> Booted | None:
        """`adopt` takes its connections.  None, and the clone is gone, when it cannot become the VM of this
        order."""
        try:
            clone.booted.cgroup.limit_cpu(Limits())  # somebody waits for it now
            adopt(clone.booted.channel, clone.monitor)
            clone.booted.record = await clones.hand_over(clone, order)
        except (InsulaError, OSError) as error:
            log.warning("a clone that was made ahead could not become %s: %s", order.id[:12], error)
            self._drop_clone(clone)
            return None
        except BaseException:
            self._drop_clone(clone)
            raise
        self._facilities.uids[order.id] = self._facilities.uids.pop(clone.order.id)
        return clone.booted

    async def start(
        self,
        order: Order,
        owner: str,
        generation: str,
        make_channel: Callable[[], Channel],
        monitor: Monitor,
        *,
        steps: Steps | None = None,
        for_files: bool = False,
    ) -> Booted:
        """`for_files`: no workload comes.  Raises RuntimeFailed, GuestFailed, Unavailable, DiskFull."""
        template, why = await self._find_template(order)
        image = None
        if template is not None and not for_files:
            image = await self._find_image_template(template, order)
        if steps is not None:
            steps.mark("template")
        for one in (image, template):
            if one is None:
                continue
            try:
                return await self._boot(
                    with_interfaces(order, 1),
                    owner,
                    generation,
                    make_channel,
                    monitor=monitor,
                    source=one.source(),
                    steps=steps,
                )
            except RuntimeFailed as error:
                why = f"a clone of {one.source().name} could not start: {error}"
                log.warning("%s: %s", order.id[:12], why)
                await self._distrust(one)
        log.info("%s boots: %s", order.id[:12], why)
        return await self._boot(order, owner, generation, make_channel, steps=steps, reason=why)

    async def _distrust(self, template: Template | ImageTemplate) -> None:
        if isinstance(template, ImageTemplate):
            self.images.drop(template)
        else:
            await self.templates.distrust(template)

    async def is_fresh(self, order: Order, booted: Booted) -> bool:
        """The upper disk is what its template's kernel has mounted: nothing was ever written to it, but for
        what a template of its image has written."""
        if not booted.record.template or booted.record.has_root:
            return booted.record.has_root
        return await self._empty.is_like(await self._facilities.need_guest(), order.upper_disk)

    async def resume(
        self,
        order: Order,
        source: Source,
        generation: str,
        make_channel: Callable[[], Channel],
        monitor: Monitor,
        *,
        steps: Steps | None = None,
    ) -> Booted:
        """A machine that goes on with the workload of another.  Raises RuntimeFailed, GuestFailed,
        Unavailable."""
        return await self._boot(
            with_interfaces(order, source.nic_count),
            order.id,
            generation,
            make_channel,
            monitor=monitor,
            source=source,
            steps=steps,
        )

    async def _boot(
        self,
        order: Order,
        owner: str,
        generation: str,
        make_channel: Callable[[], Channel],
        *,
        monitor: Monitor | None = None,
        source: Source | None = None,
        ram: int = -1,
        steps: Steps | None = None,
        reason: str = "",
    ) -> Booted:
        host = self._facilities.need_host()
        accelerator = await self._facilities.accelerator()
        guest = await self._facilities.need_guest()
        launch = Launch(
            order=order,
            guest=guest,
            accelerator=accelerator,
            host=host,
            uid=self._facilities.take_uid(owner),
            generation=generation,
            source=source,
            ram=ram,
            reason=reason[:_MOST_REASON],
        )
        try:
            async with self._slots:
                return await boot.boot(
                    launch, make_channel=make_channel, timeout_s=_BOOT_S, monitor=monitor, steps=steps
                )
        except BaseException:
            self._facilities.give_uid(owner)
            raise

    # templates

    async def views(self) -> tuple[TemplateView, ...]:
        return tuple([await self._view(record) for record in await self.templates.records()])

    async def _view(self, record: TemplateRecord) -> TemplateView:
        return TemplateView(
            key=record.key,
            kernel=record.release,
            accelerator=record.accelerator,
            hypervisor=record.qemu_version,
            vcpus=record.vcpus,
            memory_mib=record.memory_mib,
            created_ns=record.created_ns,
            boot_ms=record.boot_ms,
            size_bytes=record.ram_bytes + record.state_bytes,
            loaded=self.templates.is_loaded(record.key),
            current=await self._is_current(record),
        )

    async def _is_current(self, record: TemplateRecord) -> bool:
        """As far as is known without fetching or trying anything, for which looking is no reason."""
        if not self._facilities.is_settled():
            return True
        size = Size(vcpus=record.vcpus, memory_mib=record.memory_mib)
        return record.key == await self._template_key(size)

    async def remove_template(self, key: str) -> TemplateView:
        """Raises NotFound.  Clones of it that wait go too."""
        view = next((view for view in await self.views() if view.key == key), None)
        if view is None:
            raise NotFound(f"No such template: {key}")
        await self.templates.remove(key)
        self.images.forget(Size(vcpus=view.vcpus, memory_mib=view.memory_mib))
        if view.current:
            await self.clones.forget(Size(vcpus=view.vcpus, memory_mib=view.memory_mib))
        return view

    async def warm(self, size: Size) -> TemplateView:
        """Made or loaded, and a clone of it made ahead soon.  Raises Unavailable when memory is short."""
        if not have_memory(size.memory_mib):
            raise Unavailable(f"the host has not {size.memory_mib} MiB of memory to spare for a template")
        self.templates.forgive()
        template = await self.templates.need(size)
        self.clones.begin(size)
        return await self._view(template.record)

    def _fits(self, order: Order) -> bool:
        """Its disks look as a template's do."""
        try:
            return (
                os.stat(order.image_disk).st_size == IMAGE_DISK_BYTES
                and os.stat(order.upper_disk).st_size == self._settings.vm_disk_gib << 30
            )
        except FileNotFoundError:
            return False

    async def _find_template(self, order: Order) -> tuple[Template | None, str]:
        """None, and why it has to boot."""
        if len(order.shares) > MOST_SHARES or len(order.taps) > MOST_NICS:
            return None, "it has too many mounts or networks for a template"
        if not self._fits(order):
            return None, "its disks are not of the size that they would have now"
        try:
            template = await self.templates.find(Size(vcpus=order.vcpus, memory_mib=order.memory_mib))
        except InsulaError as error:
            return None, f"there is no template: {error}"
        # a boot takes half the time of a template, which is made once this one runs
        return template, "" if template else "the template for its size was not made yet"

    async def _template_key(self, size: Size) -> str:
        return await make_key(self._facilities, size)

    async def _make_template(self, key: str, size: Size, ram: int) -> Template:
        name, run_dir = template_place(self._settings.exec_root, key)
        guest = await self._facilities.need_guest()
        began = time.monotonic()
        try:
            order = await self._rehearsal(name, run_dir, size)
            booted = await self._boot(order, name, str(uuid.uuid4()), Channel, ram=ram)
            try:
                await rehearse(booted.channel, guest.release, settle=True)
                await asyncio.to_thread(make_again, await self._empty.need(guest), order.upper_disk)
                await premount(booted.channel)
            except BaseException:
                await boot.end(booted)
                raise
            return await finish(
                ram,
                await freeze(booted, run_dir, ram),
                key=key,
                release=guest.release,
                accelerator=booted.record.accelerator,
                qemu_version=self._facilities.build,
                vcpus=size.vcpus,
                memory_mib=size.memory_mib,
                boot_ms=round((time.monotonic() - began) * 1000),
            )
        finally:
            self._facilities.give_uid(name)
            remove_tree(run_dir)

    async def _find_image_template(self, base: Template, order: Order) -> ImageTemplate | None:
        """Of the order's image; its upper disk, to which nobody has written, is the template's then."""
        found = self.images.find(base, _kind_of(order))
        if found is None:
            return None
        if not await self._empty.is_like(await self._facilities.need_guest(), order.upper_disk):
            return None
        await asyncio.to_thread(replace_disk, found.upper_disk, order.upper_disk)
        return found

    async def _make_image_template(self, kind: Kind) -> ImageTemplate | None:
        base = await self.templates.find_loaded(kind.size)
        if base is None:
            return None
        image = identify(kind.image_disk)
        name, run_dir = clone_place(self._settings.exec_root)
        descriptors: list[int] = []
        try:
            order = await self._rehearsal(name, run_dir, kind.size)
            order = dataclasses.replace(order, image_disk=kind.image_disk, background=True)
            ram = make_memory_file("insula-ram", kind.size.memory_mib << 20)
            descriptors.append(ram)
            monitor = Monitor(boot.qmp_path(run_dir), name)
            booted = await self._boot(
                order, name, str(uuid.uuid4()), Channel, monitor=monitor, source=base.source(), ram=ram
            )
            try:
                await premount_root(booted.channel, kind.files)
            except BaseException:
                await boot.end(booted)
                raise
            finally:
                await monitor.close()
            descriptors.append(state := await freeze(booted, run_dir, ram))
            upper = await asyncio.to_thread(load_sealed, order.upper_disk)
            descriptors.append(upper)
            if identify(kind.image_disk) != image:
                raise RuntimeFailed("the image's disk was made anew meanwhile")
        except BaseException:
            close_all(*descriptors)
            raise
        finally:
            self._facilities.give_uid(name)
            remove_tree(run_dir)
        return ImageTemplate(base, kind, image, ram=ram, state=state, upper=upper)

    async def _rehearsal(self, name: str, run_dir: str, size: Size) -> Order:
        """With its disks in place."""
        guest = await self._facilities.need_guest()
        empty = await self._empty.need(guest)
        remove_tree(run_dir)
        os.makedirs(run_dir, mode=0o700)
        order = rehearsal_order(
            name, run_dir, image_disk=guest.rehearsal, vcpus=size.vcpus, memory_mib=size.memory_mib
        )
        await asyncio.to_thread(copy_sparse, empty, order.upper_disk)
        return order

    # clones made ahead

    def look_ahead(self, order: Order, *, was_ready: bool) -> None:
        """After a VM has started: the next of its size may find a template, and a clone that is ready."""
        if self._fits(order):
            if not was_ready:
                self.images.started(_kind_of(order))
            size = Size(vcpus=order.vcpus, memory_mib=order.memory_mib)
            self.templates.begin(size)
            if not order.shares:
                self.clones.begin(size)

    async def _make_clone(self, size: Size) -> Clone:
        name, run_dir = clone_place(self._settings.exec_root)
        generation = str(uuid.uuid4())
        monitor = Monitor(boot.qmp_path(run_dir), name)
        try:
            template = await self.templates.need(size)
            order = dataclasses.replace(await self._rehearsal(name, run_dir, size), background=True)
            booted = await self._boot(
                order, name, generation, Channel, monitor=monitor, source=template.source()
            )
            clone = Clone(order=order, booted=booted, monitor=monitor, generation=generation)
            try:
                await rehearse(booted.channel, template.record.release)
            except BaseException:
                await clones.end(clone)
                raise
        except BaseException:
            self._facilities.give_uid(name)
            await monitor.close()
            remove_tree(run_dir)
            raise
        return clone

    def _drop_clone(self, clone: Clone) -> None:
        async def drop() -> None:
            await clones.end(clone)
            self._facilities.give_uid(clone.order.id)

        task = asyncio.create_task(drop())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)


def _kind_of(order: Order) -> Kind:
    size = Size(vcpus=order.vcpus, memory_mib=order.memory_mib)
    return Kind(size=size, image_disk=order.image_disk, files=order.files)
