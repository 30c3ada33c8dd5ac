"""Copy a machine that runs: its memory, the state of its devices and its disk, all of one instant.  Async.

The machine stands still only for what cannot be copied while it runs: its devices, the pages that it has
written since it started from its template, and noting where the instant is in what is written to its disk.
Its workload is frozen by its own kernel first, and stays frozen in the copy: whoever goes on from that
becomes another machine (`prepare_copy`) before the workload does anything.

Not for machines with shares: what their virtiofsd knows of open files is in no copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from insula.errors import Conflict, GuestFailed, InvalidRequest
from insula.isolation.vm import messages
from insula.isolation.vm.captured import Captured
from insula.isolation.vm.channel import AgentError, Channel, translate
from insula.isolation.vm.interfaces import slots_of
from insula.isolation.vm.machine import Accelerator
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.virtiofs import binds
from insula.isolation.vm.vm import Vm
from insula.isolation.vm.wire import Type
from insula.system import process_memory
from insula.system.disk_file import copy_into, make_like
from insula.system.files import remove_file
from insula.system.memory_file import close_all, make_memory_file, seal
from insula.system.process_memory import Mapping, find_mapping

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_DISK_S = 600.0
_UPPER = "upper"  # QEMU's node of the disk that the guest writes
_CONFIGURATION = 7  # QEMU_VM_CONFIGURATION of migration/savevm.h
_HEADER_BYTES = 8


def check_copyable(vm: Vm) -> None:
    """Raises Conflict, InvalidRequest."""
    if vm.paused:
        raise Conflict(f"Container {vm.plan.id} is paused, unpause the container before you copy it")
    slots = slots_of(vm)
    if list(slots) != list(range(len(slots))) or not all(name for _, name in slots.values()):
        raise Conflict(
            f"container {vm.plan.id[:12]} has lost a network since its start: its machine has a gap there",
            hint="restart it",
        )
    if binds(vm.plan.mounts):
        raise InvalidRequest(
            f"container {vm.plan.id[:12]} has bind mounts or volumes: the host keeps its open files in them "
            "and those cannot be copied",
            hint="use tmpfs mounts or the instance's own disk for what has to be copied live",
        )


@contextlib.asynccontextmanager
async def capture(vm: Vm, upper_disk: str, *, leave_running: bool) -> AsyncIterator[Captured]:
    """A copy of a running machine; of its disk in the new file `upper_disk`.  It goes on as if nothing had
    been; or else (not `leave_running`) it stands still until the caller is done with the copy, and is ended
    then. Raises Conflict, InvalidRequest, GuestFailed, RuntimeFailed, DiskFull; the machine goes on in that
    case, also when the caller raises, and there is no file."""
    check_copyable(vm)
    assert vm.plan.disk is not None
    monitor, disk = vm.monitor, vm.plan.disk.upper_disk
    name = f"copy-{secrets.token_hex(6)}"
    channel = await vm.channel()
    taken = await _begin(vm)
    standing = False
    try:
        make_like(disk, upper_disk)
        await _begin_disk_copy(monitor, name, upper_disk)
        await asyncio.to_thread(_copy_ahead, taken.mapping, taken.ram, disk, upper_disk)
        began = time.monotonic_ns()
        standing = True
        await hold(channel, True)
        await monitor.pause()
        await _save_devices(monitor, taken.state)
        await monitor.take_disk_copy(_UPPER, name)
        await asyncio.to_thread(_copy_rest, taken.mapping, taken.ram)
        if leave_running:
            await _go_on(vm, channel)
            standing = False
        pause_ns = time.monotonic_ns() - began
        log.info("%s was copied: its workload stood still for %.0f ms", vm.plan.id[:12], pause_ns / 1e6)
        await monitor.finish_disk_copy(_UPPER, name, _DISK_S)
        await asyncio.to_thread(_finish_state, taken.state, taken.type)
        yield taken.finish(vm, pause_ns)
        if standing:
            await vm.kill_and_wait()
    except BaseException:
        if not vm.ended:
            if standing:
                await _go_on(vm, channel)
            await monitor.give_up_disk_copy(_UPPER, name)
        remove_file(upper_disk)
        raise
    finally:
        taken.close()


@dataclass(slots=True, kw_only=True)
class _Taken:
    """What is being copied, and what to; `close` is for one that is not finished."""

    type: str
    qemu: str
    mapping: Mapping
    ram: int
    state: int

    def finish(self, vm: Vm, pause_ns: int) -> Captured:
        assert vm.record is not None
        assert vm.plan.machine is not None
        for fd in (self.ram, self.state):
            seal(fd)
        slots = slots_of(vm)
        captured = Captured(
            machine=vm.plan.machine,
            accelerator=Accelerator(vm.record.accelerator),
            type=self.type,
            nic_count=max(vm.record.nic_count, len(slots)),
            interfaces=tuple(name for _, name in slots.values()),
            ram=self.ram,
            state=self.state,
            qemu=self.qemu,
            pause_ns=pause_ns,
        )
        self.ram = self.state = -1
        return captured

    def close(self) -> None:
        if self.ram >= 0:
            close_all(self.ram, self.state)


async def _begin(vm: Vm) -> _Taken:
    assert vm.record is not None
    assert vm.plan.machine is not None
    size = vm.plan.machine.memory_mib * _MIB
    machine_type = await vm.monitor.machine_type()
    mapping = find_mapping(vm.record.pid, await vm.monitor.memory_address(), size)
    return _Taken(
        type=machine_type,
        qemu=await vm.monitor.version(),
        mapping=mapping,
        ram=make_memory_file("insula-ram", size),
        state=make_memory_file("insula-state"),
    )


async def _begin_disk_copy(monitor: Monitor, name: str, path: str) -> None:
    target = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        await monitor.begin_disk_copy(_UPPER, name, target)
    finally:
        os.close(target)


async def _save_devices(monitor: Monitor, state: int) -> None:
    writer = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        await monitor.save_devices(writer)
    finally:
        os.close(writer)


async def hold(channel: Channel, held: bool) -> None:
    """Freeze a workload, or let it go on.  Raises what the agent says."""
    try:
        await channel.request(Type.PAUSE, *messages.pause(held, version=channel.version))
    except AgentError as error:
        raise translate(error) from None


async def _go_on(vm: Vm, channel: Channel) -> None:
    """A workload that stays frozen would be a broken one: whatever has happened, it goes on."""
    await vm.monitor.resume()
    try:
        await hold(channel, False)
    except GuestFailed as error:
        log.warning("the agent of %s does not answer: %s", vm.plan.id[:12], error)
        await vm.hold_workload(False)


def _copy_ahead(mapping: Mapping, ram: int, upper_disk: str, target: str) -> None:
    """While it runs.  Of its disk more is copied later, where it writes meanwhile."""
    if mapping.file and not mapping.shared:
        process_memory.copy_file(mapping, ram)
    copy_into(upper_disk, target)


def _copy_rest(mapping: Mapping, ram: int) -> None:
    if mapping.shared:
        process_memory.copy_file(mapping, ram)
    else:
        process_memory.copy_own(mapping, ram)


def _finish_state(state: int, machine_type: str) -> None:
    """QEMU's loader wants to read first which machine this is; what saved it does not say."""
    saved = os.pread(state, os.fstat(state).st_size, 0)
    name = machine_type.encode()
    told = bytes([_CONFIGURATION]) + len(name).to_bytes(4, "big") + name
    whole = saved[:_HEADER_BYTES] + told + saved[_HEADER_BYTES:]
    os.ftruncate(state, 0)
    if os.pwrite(state, whole, 0) != len(whole):
        raise OSError("the state was not written as a whole")
