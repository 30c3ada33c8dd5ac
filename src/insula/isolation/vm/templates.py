"""Templates as the backend uses them: found, made when there is none, kept loaded while they are wanted.
Async.

One lock per template: of many who want the same one, the first makes it.  A template that could not be
made is not tried again for a while, and its VMs boot instead; the reason is kept for whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from insula.errors import CorruptData, InsulaError, NotFound, RuntimeFailed
from insula.isolation.vm.accel import cpu_word
from insula.isolation.vm.boot import Booted, end, qmp_path
from insula.isolation.vm.facilities import Facilities
from insula.isolation.vm.guest import digest_of
from insula.isolation.vm.machine import Accelerator, Disk, Machine, Nic, cpu_for, finalize_argv
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.rehearsal import MAC
from insula.isolation.vm.size import Size
from insula.isolation.vm.template import Template, TemplateRecord, TemplateStore, finalize_record, key_of
from insula.model.root import IMAGE_DISK_BYTES
from insula.system.memory_file import make_memory_file, seal

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_FREEZE_S = 60.0
_AGAIN_S = 300.0  # after a template could not be made
_KEEP_S = 600.0  # loaded, after its last use
_NOBODY = "00000000-0000-0000-0000-000000000000"


async def make_key(facilities: Facilities, size: Size) -> str:
    """Of the template that a VM of this size starts from, here and now."""
    host = facilities.need_host()
    guest = await facilities.need_guest()
    accelerator = await facilities.accelerator()
    disk_gib = facilities.settings.vm_disk_gib
    vendor = cpu_word("vendor_id")
    machine = Machine(
        name="template",
        accelerator=accelerator,
        kernel=os.path.basename(guest.kernel_for(accelerator)),
        initramfs=os.path.basename(guest.initramfs),
        cpu=cpu_for(accelerator, vendor),
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        generation=_NOBODY,
        control_fd=0,
        qmp_fd=0,
        console_fd=0,
        exit_fd=0,
        log_fd=0,
        ram_fd=0,
        ram_shared=True,
        disks=(Disk(serial="image", fd=0, read_only=True), Disk(serial="upper", fd=0, read_only=False)),
        nics=(Nic(fd=0, mac=MAC),),
    )
    digest = await asyncio.to_thread(digest_of, guest, accelerator)
    empty = await facilities.empty_disk.digest(guest)
    facts = [facilities.build, digest, platform.machine(), str(IMAGE_DISK_BYTES), str(disk_gib), empty]
    if accelerator is Accelerator.KVM:  # the guest has seen this very CPU, through this very kernel
        facts += [platform.release(), cpu_word("model name"), cpu_word("flags"), cpu_word("microcode")]
    return key_of(finalize_argv(machine, host.qemu), facts)


async def freeze(booted: Booted, run_dir: str, ram: int) -> int:
    """The device state of a VM that has `ram` as its memory, as a memory file; both are sealed.  The VM is at
    its end then, also when this fails."""
    state = make_memory_file("insula-state")
    try:
        await booted.channel.close()
        monitor = Monitor(qmp_path(run_dir), "template")
        try:
            await monitor.save_state(state, _FREEZE_S)
        finally:
            await monitor.close()
            await end(booted)  # also: nobody has the memory mapped any more
        seal(ram)
        seal(state)
    except BaseException:
        os.close(state)
        raise
    return state


async def finish(ram: int, state: int, **known: object) -> Template:
    """What was frozen, with its record.  `state` is closed when this fails."""
    try:
        record = await asyncio.to_thread(lambda: finalize_record(ram, state, **known))
    except BaseException:
        os.close(state)
        raise
    return Template(record, ram, state)


class Templates:
    """`make` boots a VM of a size and freezes it; `key` names the template for a size."""

    def __init__(
        self,
        data_root: str,
        key: Callable[[Size], Awaitable[str]],
        make: Callable[[str, Size, int], Awaitable[Template]],
    ) -> None:
        self.store = TemplateStore(data_root)
        self._key = key
        self._make = make
        self._loaded: dict[str, Template] = {}
        self._asked: set[str] = set()
        self._used: dict[str, float] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._failed: dict[str, tuple[float, InsulaError]] = {}
        self._saving: set[asyncio.Task[None]] = set()
        self._making: set[asyncio.Task[None]] = set()

    async def find(self, size: Size) -> Template | None:
        """One that is there; None, once, where there is none yet: whoever asks first boots, which takes
        half the time, and the next waits for the template, or makes it."""
        key = await self._key(size)
        if key in self._asked or self._locks[key].locked():
            return await self.need(size)
        self._asked.add(key)
        async with self._locks[key]:
            self._used[key] = time.monotonic()
            if key not in self._loaded and (loaded := await self._load(key)) is not None:
                self._loaded[key] = loaded
            return self._loaded.get(key)

    async def find_loaded(self, size: Size) -> Template | None:
        """One that is in use."""
        return self._loaded.get(await self._key(size))

    def begin(self, size: Size) -> None:
        """Make it in the background, if it is not there."""
        making = asyncio.create_task(self._make_ahead(size))
        self._making.add(making)
        making.add_done_callback(self._making.discard)

    async def _make_ahead(self, size: Size) -> None:
        with contextlib.suppress(InsulaError):  # logged, and kept for whoever needs it
            await self.need(size)

    async def need(self, size: Size) -> Template:
        """Loaded, or made: seconds, once.  Raises InsulaError with the reason why there is none."""
        key = await self._key(size)
        async with self._locks[key]:
            self._used[key] = time.monotonic()
            if (ready := self._loaded.get(key)) is not None:
                return ready
            if (failed := self._failed.get(key)) is not None:
                if time.monotonic() - failed[0] < _AGAIN_S:
                    raise failed[1]
                del self._failed[key]
            template = await self._load(key)
            if template is None:
                try:
                    template = await self._fresh(key, size)
                except (InsulaError, OSError) as error:
                    reason = error if isinstance(error, InsulaError) else RuntimeFailed(str(error))
                    log.warning("no template for VMs of %d MiB: %s", size.memory_mib, reason)
                    self._failed[key] = (time.monotonic(), reason)
                    raise reason from error
            self._loaded[key] = template
            return template

    async def _load(self, key: str) -> Template | None:
        try:
            return await asyncio.to_thread(self.store.load, key)
        except (CorruptData, OSError) as error:
            log.warning("template %s is made anew: %s", key, error)
            with contextlib.suppress(OSError):
                self.store.forget(key)
            return None

    async def _fresh(self, key: str, size: Size) -> Template:
        began = time.monotonic()
        ram = make_memory_file("insula-ram", size.memory_mib * _MIB)
        try:
            template = await self._make(key, size, ram)
        except BaseException:
            os.close(ram)
            raise
        log.info("template %s of %d MiB made in %.1f s", key, size.memory_mib, time.monotonic() - began)
        saving = asyncio.create_task(self._save(template))
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)
        return template

    async def _save(self, template: Template) -> None:
        try:
            await asyncio.to_thread(self.store.save, template)
        except (InsulaError, OSError) as error:  # it works from memory; the next daemon makes its own
            log.warning("template %s is not kept: %s", template.record.key, error)

    async def distrust(self, template: Template) -> None:
        """A clone of it could not start: it is made anew when it is wanted next."""
        key = template.record.key
        async with self._locks[key]:
            if self._loaded.get(key) is template:
                del self._loaded[key]
                self._asked.discard(key)
                await self._settle()
                self.store.forget(key)

    async def records(self) -> tuple[TemplateRecord, ...]:
        """Of those that are kept and those that could not be, newest first."""
        await self._settle()
        kept = await asyncio.to_thread(self.store.records)
        keys = {record.key for record in kept}
        more = [one.record for key, one in self._loaded.items() if key not in keys]
        return tuple(sorted([*kept, *more], key=lambda record: record.created_ns, reverse=True))

    async def remove(self, key: str) -> None:
        """Raises NotFound."""
        async with self._locks[key]:
            await self._settle()
            self._asked.discard(key)
            loaded = self._loaded.pop(key, None)
            try:
                self.store.remove(key)
            except NotFound:
                if loaded is None:
                    raise

    def forgive(self) -> None:
        """Somebody asks for what failed before: try again."""
        self._failed.clear()

    def is_loaded(self, key: str) -> bool:
        return key in self._loaded

    async def shrink(self) -> None:
        """Let go of the memory of those that nobody has used for ten minutes; their files stay."""
        for key in list(self._loaded):
            async with self._locks[key]:
                if time.monotonic() - self._used[key] > _KEEP_S:
                    del self._loaded[key]

    async def _settle(self) -> None:
        if self._saving:
            await asyncio.gather(*self._saving)

    async def close(self) -> None:
        """What is being made is given up; what is being written is finished first."""
        for making in list(self._making):
            making.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
        await self._settle()
        self._loaded.clear()
