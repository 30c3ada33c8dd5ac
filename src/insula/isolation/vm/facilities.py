"""What VMs need of this host: QEMU, a guest to boot, an accelerator that works, and users for QEMU.  Async.

Found when the daemon starts, or made when the first VM needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import uuid

from insula.config import Settings
from insula.errors import InsulaError, ProgramMissing, Unavailable
from insula.isolation.vm import accel, boot
from insula.isolation.vm.accel import Choice
from insula.isolation.vm.boot import Host
from insula.isolation.vm.channel import Channel
from insula.isolation.vm.confine import pick_uid
from insula.isolation.vm.guest import Guest, find_guest, make_guest
from insula.isolation.vm.machine import Accelerator
from insula.isolation.vm.order import probe_order
from insula.isolation.vm.record import find_records
from insula.isolation.vm.upper import EmptyDisk
from insula.isolation.vm.virtiofs import find_virtiofsd
from insula.model.progress import Progress, no_progress
from insula.system import cgroups
from insula.system.files import remove_tree
from insula.system.run import PACKAGES, arun, find_program

_QEMU = "qemu-system-x86_64"


class Facilities:
    """`version` is QEMU's, `build` with the distribution's.  `uids` are taken ones, by owner."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self.version = ""
        self.build = ""
        self.problem: InsulaError | None = None
        self.choice: Choice | None = None
        self.guest: Guest | None = None
        self.uids: dict[str, int] = {}
        self.empty_disk = EmptyDisk(settings.vm_disk_gib)
        self._progress = progress
        self._host: Host | None = None
        self._guest_lock = asyncio.Lock()
        self._choosing: asyncio.Task[Choice] | None = None

    async def find(self) -> None:
        """Look at the host; `problem` says what it lacks."""
        program = find_program(_QEMU)
        try:
            if program is None:
                raise ProgramMissing(_QEMU, package=PACKAGES.get(_QEMU))
            shown = (await arun([program, "--version"])).stdout.decode(errors="replace")
            found = re.search(r"version (\S+)", shown)
            self.version = found[1] if found else "unknown"
            self.build = shown.partition("\n")[0]
            layout = cgroups.find_layout()
            cgroups.make_room(layout)
            self._host = Host(qemu=program, virtiofsd=await find_virtiofsd(), layout=layout)
        except InsulaError as error:
            self.problem = error

    def begin(self) -> None:
        """After what an earlier daemon left is gone: choose an accelerator ahead of need, if a guest is
        there to try it with; else that waits for the first VM, since a kernel is fetched for it."""
        # of VMs that an earlier daemon left running, so that none is given twice before they are recovered
        running = find_records(os.path.join(self.settings.exec_root, "instances"))
        self.uids = {name: record.uid for name, record in running}
        self.choice = accel.find_choice(self.settings.data_root, self.settings.accel, self.version)
        if self.choice is None and _guest_is_here(self.settings):
            self._choosing = asyncio.create_task(self._probe())

    async def close(self) -> None:
        if self._choosing is not None:
            self._choosing.cancel()
            with contextlib.suppress(asyncio.CancelledError, InsulaError):
                await self._choosing

    def is_settled(self) -> bool:
        """Guest and accelerator are known."""
        return self.guest is not None and self.choice is not None

    def details(self) -> list[tuple[str, str]]:
        """For `info`."""
        virtiofsd = self._host.virtiofsd if self._host else None
        probing = self._choosing is not None and not self._choosing.done()
        unknown = (
            ("being probed", "booting a guest with KVM to see")
            if probing
            else ("not chosen yet", "the first VM boots a guest with KVM to see")
        )
        accelerator, why = (self.choice.accelerator.value, self.choice.why) if self.choice else unknown
        return [
            ("accelerator", accelerator),
            ("accelerator reason", why),
            ("guest kernel", self.guest.release if self.guest else "not prepared yet"),
            ("virtiofsd", virtiofsd.program if virtiofsd else "missing: no bind mounts into VMs"),
        ]

    def need_host(self) -> Host:
        """Raises Unavailable with the reason."""
        if self.problem is not None:
            raise Unavailable(
                f"virtual machines cannot run here: {self.problem.message}", hint=self.problem.hint
            )
        if self._host is None:
            raise Unavailable("the VM backend was not started")
        return self._host

    def layout(self) -> cgroups.Layout:
        return self._host.layout if self._host else cgroups.find_layout()

    async def need_guest(self, progress: Progress | None = None) -> Guest:
        """The guest's kernel and initramfs, fetched and built when they are not there yet."""
        async with self._guest_lock:
            if self.guest is None:
                self.guest = await make_guest(
                    self.settings.data_root, progress or self._progress, kernel=self.settings.vm_kernel
                )
            return self.guest

    async def make(self, progress: Progress = no_progress) -> Guest:
        """Ahead of need: what the first VM would wait for."""
        guest = await self.need_guest(progress)
        if self.choice is None:
            progress("Trying KVM with the guest (at most 10 seconds)")
        progress(f"VMs run with accelerator {(await self.accelerator()).value}")
        return guest

    async def accelerator(self) -> Accelerator:
        if self.choice is not None:
            return self.choice.accelerator
        if self._choosing is None or (self._choosing.done() and self._choosing.exception() is not None):
            self._choosing = asyncio.create_task(self._probe())
        return (await asyncio.shield(self._choosing)).accelerator

    async def _probe(self) -> Choice:
        async def boot_with_kvm(limit_s: float) -> None:
            order = probe_order(self.settings.exec_root)
            launch = boot.Launch(
                order=order,
                guest=await self.need_guest(),
                accelerator=Accelerator.KVM,
                host=self.need_host(),
                uid=self.take_uid(order.id),
                generation=str(uuid.uuid4()),
            )
            try:
                booted = await boot.boot(launch, make_channel=Channel, timeout_s=limit_s)
                await boot.end(booted)
            finally:
                self.give_uid(order.id)
                remove_tree(order.run_dir)

        await self.need_guest()  # a failure here says nothing about KVM
        self.choice = await accel.probe(self.settings.data_root, self.version, boot_with_kvm)
        return self.choice

    def take_uid(self, owner: str) -> int:
        uid = pick_uid(set(self.uids.values()))
        self.uids[owner] = uid
        return uid

    def give_uid(self, owner: str) -> None:
        self.uids.pop(owner, None)


def _guest_is_here(settings: Settings) -> bool:
    try:
        return find_guest(settings.data_root, settings.vm_kernel) is not None
    except InsulaError:
        return False
