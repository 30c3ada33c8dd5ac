"""Boot one VM: descriptors, helpers, QEMU, and the agent's greeting.  Async; undoes itself when it fails.

What is booted was decided (`order`), what the command line is, too (`machine`), and how it is
confined (`confine`): this module only acts.  With a source (a template, or a copy of a machine that runs) the
guest goes on where that was frozen, instead of booting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from insula.errors import GuestFailed, RuntimeFailed
from insula.isolation.vm import sockets, virtiofs
from insula.isolation.vm.accel import cpu_word
from insula.isolation.vm.cgroup import Cgroup
from insula.isolation.vm.channel import Channel
from insula.isolation.vm.check import parse_cpus
from insula.isolation.vm.confine import confine_qemu
from insula.isolation.vm.guest import Guest
from insula.isolation.vm.machine import (
    DEFAULT_TYPE,
    OVERHEAD_MIB,
    TCG_BUFFER_MIB,
    Accelerator,
    Disk,
    Machine,
    Nic,
    Share,
    cpu_for,
    finalize_argv,
    late_devices,
    netdev,
)
from insula.isolation.vm.order import SPARE_PREFIX, Order
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.record import (
    VmRecord,
    console_end,
    find_panic,
    host_boot_id,
    qemu_end,
    record_path,
    write_record,
)
from insula.isolation.vm.steps import Steps
from insula.isolation.vm.template import Source
from insula.isolation.vm.virtiofs import Virtiofsd
from insula.model.limits import Limits
from insula.system import pidfd
from insula.system.cgroups import Layout
from insula.system.files import disk_errors
from insula.system.jail import Confinement, ShareSpec, wrap
from insula.system.memory_file import make_memory_file, open_again
from insula.system.tap import open_link

_MIB = 1024 * 1024
_LOAD_S = 60.0
_BACKGROUND = Limits(cpu_shares=64)
_DYING_S = 1.0
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_FRESH = _APPEND | os.O_TRUNC
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What booting uses of this host, found once at start."""

    qemu: str
    virtiofsd: Virtiofsd | None
    layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is to run, on what, as whom, and where it begins.

    `source`: go on from it; with a workload in it, nothing that this machine sends reaches a network before
    `Monitor.plug_in`.  `ram`: an empty memory file for the guest's memory, to be made a template's, also
    one that begins as a copy of `source`.  `reason` is kept: why there is no template.
    """

    order: Order
    guest: Guest
    accelerator: Accelerator
    host: Host
    uid: int
    generation: str
    source: Source | None = None
    ram: int = -1
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class Booted:
    record: VmRecord
    watch: pidfd.Watch
    helpers: list[pidfd.Watch]
    channel: Channel
    cgroup: Cgroup
    tap: int = -1
    """Ours of a tap that is gone with its last descriptor: the kernel takes 16 ms for that, and QEMU's end is
    waited for."""


def control_path(run_dir: str) -> str:
    return os.path.join(run_dir, "control.sock")


def qmp_path(run_dir: str) -> str:
    return os.path.join(run_dir, "qmp.sock")


class _Descriptors:
    """Opened for the child, closed here once it has them."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def file(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
        self._stack.callback(os.close, fd)
        return fd

    def fd(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def socket(self, sock: socket.socket) -> int:
        self._stack.callback(sock.close)
        return sock.fileno()


def _spawn(confinement: Confinement, argv: list[str], fds: tuple[int, ...], output: int) -> pidfd.Watch:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = pidfd.spawn(
            wrap(confinement, argv, fds),
            _ENVIRONMENT,
            stdio=(null, output, output),
            pass_fds={fd: fd for fd in fds},
            new_session=True,
        )
    finally:
        os.close(null)
    return pidfd.Watch(pid, child=True)


def _start_share(
    order: Order,
    host: Host,
    *,
    spec: ShareSpec,
    procs: tuple[str, ...],
    files: _Descriptors,
    output: int,
) -> tuple[pidfd.Watch, int]:
    """virtiofsd for one mount; returns it and QEMU's end of its socket."""
    listener, client = sockets.listen_and_connect(os.path.join(order.run_dir, "share.sock"))
    os.makedirs(spec.at, mode=0o700, exist_ok=True)
    with listener:
        argv = virtiofs.finalize_argv(virtiofs.need(host.virtiofsd), spec.at, listener.fileno())
        confinement = Confinement(cgroups=procs, shares=(spec,))
        watch = _spawn(confinement, argv, (listener.fileno(),), output)
    return watch, files.socket(client)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """The guest's, for `Machine`.  `copy_from`: the file is empty, and the child fills it from this one
    first, so that the pages are its own cgroup's."""

    ram_fd: int = -1
    shared: bool = False
    state_fd: int = -1
    copy_from: int = -1


def _open_memory(launch: Launch, files: _Descriptors) -> _Memory:
    """virtiofsd maps the guest's memory: a clone with shares has a copy of its own, as has one that is to be
    a template."""
    source = launch.source
    if source is None:
        return _Memory(ram_fd=launch.ram, shared=launch.ram >= 0)
    state_fd = files.fd(open_again(source.state))
    if launch.ram >= 0:
        return _Memory(ram_fd=launch.ram, shared=True, state_fd=state_fd, copy_from=source.ram)
    if not launch.order.shares:
        return _Memory(ram_fd=source.ram, state_fd=state_fd)
    own = files.fd(make_memory_file("insula-ram", launch.order.memory_mib * _MIB))
    return _Memory(ram_fd=own, shared=True, state_fd=state_fd, copy_from=source.ram)


def _open_machine(
    launch: Launch, files: _Descriptors, *, shares: tuple[Share, ...], memory: _Memory
) -> Machine:
    """Everything that QEMU is to reach, opened for it."""
    order, guest, accelerator, source = launch.order, launch.guest, launch.accelerator, launch.source
    disks = []
    if order.image_disk:
        image = files.file(order.image_disk, os.O_RDONLY)
        disks.append(Disk(serial="image", fd=image, read_only=True))
    if order.upper_disk:
        upper = files.file(order.upper_disk, os.O_RDWR)
        disks.append(Disk(serial="upper", fd=upper, read_only=False))
    return Machine(
        name=order.id[:12],
        accelerator=accelerator,
        kernel=_inside(
            guest.stub_for(accelerator) if memory.state_fd >= 0 else guest.kernel_for(accelerator)
        ),
        initramfs="" if memory.state_fd >= 0 else _inside(guest.initramfs),
        cpu=cpu_for(accelerator, cpu_word("vendor_id")),
        vcpus=order.vcpus,
        memory_mib=order.memory_mib,
        generation=launch.generation,
        control_fd=files.socket(sockets.listen(control_path(order.run_dir))),
        qmp_fd=files.socket(sockets.listen(qmp_path(order.run_dir))),
        console_fd=files.file(os.path.join(order.run_dir, "console.log"), _FRESH),
        exit_fd=files.file(os.path.join(order.run_dir, "exit"), _FRESH),
        log_fd=files.file(order.log_path or os.devnull, _APPEND, 0o640),
        disks=tuple(disks),
        nics=tuple(Nic(fd=files.fd(open_link(link)), mac=mac) for link, mac in order.taps),
        shares=shares,
        ram_fd=memory.ram_fd,
        ram_shared=memory.shared,
        state_fd=memory.state_fd,
        type=source.type if source is not None else DEFAULT_TYPE,
    )


async def stop_helpers(helpers: list[pidfd.Watch]) -> None:
    for helper in helpers:
        helper.signal(9)
    for helper in helpers:
        await helper.wait()
        helper.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """QEMU's process and what goes with it.  `tap`: a spare one, kept open; -1 for none."""

    watch: pidfd.Watch
    helpers: list[pidfd.Watch]
    cgroup: Cgroup
    machine: Machine
    tap: int


def _start(launch: Launch, undo: contextlib.AsyncExitStack) -> _Started:
    """cgroup, virtiofsd for each share, then QEMU.  `undo` gets the undoing of all but QEMU."""
    order, host, accelerator = launch.order, launch.host, launch.accelerator
    with contextlib.ExitStack() as ours:
        files = _Descriptors(ours)
        os.makedirs(order.run_dir, mode=0o700, exist_ok=True)
        jail_root = os.path.join(order.run_dir, "root")
        os.makedirs(jail_root, mode=0o755, exist_ok=True)
        output = files.file(os.path.join(order.run_dir, "qemu.log"), _FRESH)
        cgroup = Cgroup(host.layout, order.id)
        overhead = OVERHEAD_MIB + (TCG_BUFFER_MIB if accelerator is Accelerator.TCG else 0)
        procs = cgroup.make((order.memory_mib + overhead) * _MIB, order.limits)
        undo.callback(cgroup.remove)
        if order.background:
            cgroup.limit_cpu(_BACKGROUND)
        helpers: list[pidfd.Watch] = []
        undo.push_async_callback(stop_helpers, helpers)
        shares: list[Share] = []
        for tag, spec in order.shares:
            helper, fd = _start_share(order, host, spec=spec, procs=procs, files=files, output=output)
            helpers.append(helper)
            shares.append(Share(tag=tag, fd=fd))
        memory = _open_memory(launch, files)
        machine = _open_machine(launch, files, shares=tuple(shares), memory=memory)
        confinement = confine_qemu(
            uid=launch.uid,
            cgroups=procs,
            cpus=parse_cpus(order.limits.cpuset_cpus),
            root_at=jail_root,
            guest_directory=launch.guest.directory,
            kvm=accelerator is Accelerator.KVM,
            own_descriptors=machine.ram_fd >= 0,
            copies=((memory.copy_from, memory.ram_fd),) if memory.copy_from >= 0 else (),
        )
        tap = -1
        if order.taps and order.taps[0][0].startswith(SPARE_PREFIX):
            tap = os.dup(machine.nics[0].fd)
            undo.callback(os.close, tap)
        inherited = machine.fds() + tuple(template for template, _ in confinement.copies)
        watch = _spawn(confinement, finalize_argv(machine, host.qemu), inherited, output)
    return _Started(watch=watch, helpers=helpers, cgroup=cgroup, machine=machine, tap=tap)


async def boot(
    launch: Launch,
    *,
    make_channel: Callable[[], Channel],
    timeout_s: float,
    monitor: Monitor | None = None,
    steps: Steps | None = None,
) -> Booted:
    """Up to the agent's HELLO.  `monitor`: of a launch that has a source, for what that needs.

    Raises RuntimeFailed or GuestFailed with what QEMU or the console said.
    """
    steps = steps or Steps()
    order, source = launch.order, launch.source
    async with contextlib.AsyncExitStack() as undo:
        with disk_errors("starting a virtual machine"):
            started = _start(launch, undo)
        watch, machine = started.watch, started.machine
        steps.mark("spawn")
        if monitor is not None:
            undo.push_async_callback(monitor.close)  # to a QEMU that is gone by then
        undo.push_async_callback(_end, watch)
        record = VmRecord(
            pid=watch.pid,
            started=pidfd.start_time(watch.pid) or 0,
            boot_id=host_boot_id(),
            uid=launch.uid,
            accelerator=launch.accelerator.value,
            launched_ns=time.time_ns(),
            helpers=tuple((h.pid, pidfd.start_time(h.pid) or 0) for h in started.helpers),
            template=source.name if source is not None and source.template else "",
            has_root=source is not None and source.has_root,
            owner=order.id,
            reason=launch.reason,
            nic_count=len(machine.nics),
            copy_of="" if source is None or source.template else source.name,
            unconfirmed=source is not None and not source.template,
        )
        write_record(order.run_dir, record)
        undo.callback(_forget, order.run_dir)
        channel = make_channel()
        undo.push_async_callback(channel.close)
        if source is not None:
            assert monitor is not None
            await _resume(monitor, machine, watch, order.run_dir, unplugged=not source.template)
            steps.mark("hypervisor")
        await _greet(channel, watch, order.run_dir, timeout_s)
        steps.mark("agent")
        undo.pop_all()
    return Booted(
        record=record,
        watch=watch,
        helpers=started.helpers,
        channel=channel,
        cgroup=started.cgroup,
        tap=started.tap,
    )


def let_go(tap: int) -> None:
    """Close it, in a thread."""
    if tap >= 0:
        asyncio.get_running_loop().run_in_executor(None, os.close, tap)


async def end(booted: Booted) -> None:
    """Pull the plug, and remove what boot has made outside the run directory."""
    await _end(booted.watch)
    let_go(booted.tap)
    await booted.channel.close()
    await stop_helpers(booted.helpers)
    booted.cgroup.remove()


def _inside(path: str) -> str:
    """Where the jail shows a file of the guest's directory."""
    return f"/guest/{os.path.basename(path)}"


def _forget(run_dir: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(record_path(run_dir))


async def _end(watch: pidfd.Watch) -> None:
    watch.signal(9)
    await watch.wait()
    watch.close()


async def connect(channel: Channel, run_dir: str, timeout_s: float) -> None:
    """Open the channel on the VM's control port."""
    reader, writer = await asyncio.open_unix_connection(sock=sockets.connect(control_path(run_dir)))
    await channel.open(reader, writer, timeout_s)


async def _resume(
    monitor: Monitor, machine: Machine, watch: pidfd.Watch, run_dir: str, *, unplugged: bool
) -> None:
    try:
        if unplugged:
            await monitor.plug_in([netdev(number) for number in range(len(machine.nics))], False)
        await monitor.load_state(machine.state_fd, devices_only=unplugged)
        if devices := late_devices(machine):
            await monitor.loaded(_LOAD_S)
            for device in devices:
                await monitor.add_device(device)
    except RuntimeFailed as error:
        watch.signal(9)
        await watch.wait()
        raise RuntimeFailed(f"QEMU could not start a clone: {error}{_explain(run_dir)}") from error


async def _greet(channel: Channel, watch: pidfd.Watch, run_dir: str, timeout_s: float) -> None:
    greeting = asyncio.create_task(connect(channel, run_dir, timeout_s))
    dying = asyncio.create_task(watch.wait())
    try:
        await asyncio.wait({greeting, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not greeting.done() or greeting.exception() is not None:
            if greeting.done():  # a QEMU that gives up closes the port before it ends
                await asyncio.wait({dying}, timeout=_DYING_S)
            if not watch.ended and greeting.done():
                raise GuestFailed(f"{greeting.exception()}{_explain(run_dir)}")
            await dying
            raise RuntimeFailed(f"QEMU could not start the virtual machine{_explain(run_dir)}")
    finally:
        for task in (greeting, dying):
            task.cancel()
        await asyncio.gather(greeting, dying, return_exceptions=True)


def _explain(run_dir: str) -> str:
    console = console_end(run_dir)
    panic = find_panic(console)
    said = qemu_end(run_dir)
    last = console.decode(errors="replace").strip().splitlines()[-3:]
    parts = [f"the guest kernel panicked: {panic}" if panic else "", said]
    if not any(parts) and last:
        parts.append("its console ends with: " + " / ".join(line[:200] for line in last))
    text = "; ".join(filter(None, parts))
    return f": {text}" if text else ""
