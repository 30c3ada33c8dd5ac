"""The VM backend: `Backend` for machines of their own.  Async.

This file only connects those beside it: `order` and `machine` decide, `boot` and `prepare` act, `vm` is a
running one, `helper` serves the files of a stopped one, `recover` finds those of an earlier daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

from insula.config import Settings
from insula.errors import Conflict, InsulaError, NoSuchInstance, ProgramMissing, Unavailable
from insula.isolation.backend import BackendInfo, Files, Liveness, ProcessTable
from insula.isolation.plan import ExecPlan, LaunchPlan
from insula.isolation.vm import accel, boot, messages, stats
from insula.isolation.vm.accel import Choice
from insula.isolation.vm.boot import Booted, Host
from insula.isolation.vm.channel import AgentError, Channel, translate
from insula.isolation.vm.check import check_plan, check_update, parse_cpus
from insula.isolation.vm.confine import pick_uid
from insula.isolation.vm.files import AgentFiles
from insula.isolation.vm.guest import Guest, find_guest, make_guest
from insula.isolation.vm.helper import Helpers
from insula.isolation.vm.machine import Accelerator
from insula.isolation.vm.order import (
    HELPER_SUFFIX,
    Order,
    helper_order,
    order_for,
    probe_order,
)
from insula.isolation.vm.prepare import command_error, prepare_helper, prepare_workload
from insula.isolation.vm.record import read_record
from insula.isolation.vm.recover import end_helpers, find_vm, forget
from insula.isolation.vm.streams import VmExec, VmStream
from insula.isolation.vm.virtiofs import find_virtiofsd
from insula.isolation.vm.vm import Vm
from insula.isolation.vm.wire import Type, number
from insula.model.instance import ExitStatus
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.progress import Progress, no_progress
from insula.model.stream import Sample
from insula.security import capabilities
from insula.system import cgroups
from insula.system.files import remove_tree
from insula.system.run import PACKAGES, arun, find_program

_QEMU = "qemu-system-x86_64"
_BOOT_S = 300.0  # software emulation on a busy host; a panic or QEMU's end is noticed at once
_TRIM_S = 20.0
_SIGKILL = 9


class VmBackend:
    isolation = Isolation.VM

    def __init__(self, settings: Settings, *, progress: Progress = no_progress) -> None:
        self._settings = settings
        self._progress = progress
        self._host: Host | None = None
        self._version = ""
        self._problem: InsulaError | None = None
        self._choice: Choice | None = None
        self._choosing: asyncio.Task[Choice] | None = None
        self._guest: Guest | None = None
        self._guest_lock = asyncio.Lock()
        self._boots = asyncio.Semaphore(max(2, len(os.sched_getaffinity(0))))
        self._vms: dict[str, Vm] = {}
        self._uids: dict[str, int] = {}
        self._helpers = Helpers(self._boot_helper, self._helper_gone)
        self._trimmer: asyncio.Task[None] | None = None

    # the host

    async def start(self) -> None:
        program = find_program(_QEMU)
        try:
            if program is None:
                raise ProgramMissing(_QEMU, package=PACKAGES.get(_QEMU))
            shown = await arun([program, "--version"])
            found = re.search(r"version (\S+)", shown.stdout.decode(errors="replace"))
            self._version = found[1] if found else "unknown"
            layout = cgroups.find_layout()
            cgroups.make_room(layout)
            self._host = Host(qemu=program, virtiofsd=await find_virtiofsd(), layout=layout)
        except InsulaError as error:
            self._problem = error
            return
        await end_helpers(self._settings.exec_root, self._host.layout)
        self._uids = _uids_in_use(self._settings.exec_root)
        self._choice = accel.find_choice(self._settings.data_root, self._settings.accel, self._version)
        if self._choice is None and _guest_is_here(self._settings):
            # ahead of need; without a guest it waits for the first VM, since a kernel is fetched for it
            self._choosing = asyncio.create_task(self._probe())
        self._trimmer = asyncio.create_task(self._trim_consoles())

    async def stop(self) -> None:
        for task in (self._choosing, self._trimmer):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, InsulaError):
                    await task
        await self._helpers.close_all()
        for vm in list(self._vms.values()):
            await vm.let_go()
        self._vms.clear()

    def info(self) -> BackendInfo:
        virtiofsd = self._host.virtiofsd if self._host else None
        probing = self._choosing is not None and not self._choosing.done()
        unknown = (
            ("being probed", "booting a guest with KVM to see")
            if probing
            else ("not chosen yet", "the first VM boots a guest with KVM to see")
        )
        accelerator, why = (self._choice.accelerator.value, self._choice.why) if self._choice else unknown
        details = [
            ("accelerator", accelerator),
            ("accelerator reason", why),
            ("guest kernel", self._guest.release if self._guest else "not prepared yet"),
            ("virtiofsd", virtiofsd.program if virtiofsd else "missing: no bind mounts into VMs"),
        ]
        return BackendInfo(
            isolation=Isolation.VM,
            runtime="qemu",
            version=self._version,
            details=tuple(details),
            problem=str(self._problem) if self._problem else "",
        )

    async def make_guest(self, progress: Progress = no_progress) -> Guest:
        """Ahead of need: what the first VM would wait for, a guest and the choice of an accelerator."""
        guest = await self._need_guest(progress)
        if self._choice is None:
            progress("Trying KVM with the guest (at most 10 seconds)")
        progress(f"VMs run with accelerator {(await self._accelerator()).value}")
        return guest

    async def _need_guest(self, progress: Progress = no_progress) -> Guest:
        """The guest's kernel and initramfs, fetched and built when they are not there yet."""
        async with self._guest_lock:
            if self._guest is None:
                self._guest = await make_guest(
                    self._settings.data_root, progress, kernel=self._settings.vm_kernel
                )
            return self._guest

    def _need_host(self) -> Host:
        if self._problem is not None:
            raise Unavailable(
                f"virtual machines cannot run here: {self._problem.message}", hint=self._problem.hint
            )
        if self._host is None:
            raise Unavailable("the VM backend was not started")
        return self._host

    async def _accelerator(self) -> Accelerator:
        if self._choice is not None:
            return self._choice.accelerator
        if self._choosing is None or (self._choosing.done() and self._choosing.exception() is not None):
            self._choosing = asyncio.create_task(self._probe())
        return (await asyncio.shield(self._choosing)).accelerator

    async def _probe(self) -> Choice:
        async def boot_with_kvm(limit_s: float) -> None:
            order = probe_order(self._settings.exec_root)
            guest = await self._need_guest(self._progress)
            uid = self._take_uid(order.id)
            try:
                booted = await boot.boot(
                    order, guest, Accelerator.KVM, self._need_host(),
                    uid=uid, generation=str(uuid.uuid4()), make_channel=Channel, timeout_s=limit_s,
                )  # fmt: skip
                await boot.end(booted)
            finally:
                self._uids.pop(order.id, None)
                remove_tree(order.run_dir)

        await self._need_guest(self._progress)  # a failure here says nothing about KVM
        self._choice = await accel.probe(self._settings.data_root, self._version, boot_with_kvm)
        return self._choice

    async def _trim_consoles(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_S)
            for vm in list(self._vms.values()):
                vm.trim()

    # life of an instance

    def check(self, plan: LaunchPlan) -> None:
        check_plan(plan)

    def _take_uid(self, owner: str) -> int:
        uid = pick_uid(set(self._uids.values()))
        self._uids[owner] = uid
        return uid

    async def _boot(
        self, order: Order, owner: str, generation: str, make_channel: Callable[[], Channel]
    ) -> Booted:
        host = self._need_host()
        accelerator = await self._accelerator()
        guest = await self._need_guest(self._progress)
        uid = self._take_uid(owner)
        try:
            async with self._boots:
                return await boot.boot(
                    order,
                    guest,
                    accelerator,
                    host,
                    uid=uid,
                    generation=generation,
                    make_channel=make_channel,
                    timeout_s=_BOOT_S,
                )
        except BaseException:
            self._uids.pop(owner, None)
            raise

    async def launch(self, plan: LaunchPlan) -> int:
        if (old := self._vms.get(plan.id)) is not None and not old.ended:
            raise Conflict(f"the virtual machine {plan.id[:12]} runs already")
        check_plan(plan)
        order = order_for(plan)
        await self._helpers.close(plan)
        generation = str(uuid.uuid4())
        vm = Vm(plan, self._gone)
        booted = await self._boot(order, plan.id, generation, vm.make_channel)
        vm.take(booted.record, booted.watch, booted.helpers, booted.cgroup, booted.channel)
        self._vms[plan.id] = vm
        try:
            assert self._guest is not None
            await prepare_workload(booted.channel, plan, generation, order.share_files(), self._guest.release)
        except BaseException:
            await vm.kill_and_wait()
            await self.discard(plan)
            raise
        return booted.record.pid

    def _gone(self, vm: Vm) -> None:
        self._uids.pop(vm.plan.id, None)

    def _vm(self, instance_id: str) -> Vm:
        vm = self._vms.get(instance_id)
        if vm is None:
            raise NoSuchInstance(instance_id)
        return vm

    async def release(self, instance_id: str) -> None:
        vm = self._vm(instance_id)
        channel = await vm.channel()
        try:
            await channel.request(Type.START)
        except AgentError as error:
            await vm.kill_and_wait()
            raise command_error(error, vm.plan.process.args[0]) from None
        if vm.cgroup is not None:
            vm.cgroup.limit_cpu(vm.limits)  # from here on: a limit is on the workload, not on booting

    async def wait(self, instance_id: str) -> ExitStatus:
        return await asyncio.shield(self._vm(instance_id).status)

    async def signal(self, instance_id: str, signum: int) -> None:
        vm = self._vm(instance_id)
        if signum == _SIGKILL:
            vm.kill_workload()
            return
        channel = await vm.channel()
        try:
            await channel.request(Type.SIGNAL, ("signal", str(signum)))
        except AgentError as error:
            raise translate(error) from None

    async def freeze(self, instance_id: str, frozen: bool) -> None:
        await self._vm(instance_id).freeze(frozen)

    async def discard(self, plan: LaunchPlan) -> None:
        await self._helpers.close(plan)
        vm = self._vms.pop(plan.id, None)
        if vm is not None and not vm.ended:
            await vm.kill_and_wait()
        await forget(plan, self._need_layout())
        self._uids.pop(plan.id, None)

    def _need_layout(self) -> cgroups.Layout:
        return self._host.layout if self._host else cgroups.find_layout()

    async def recover(self, plan: LaunchPlan) -> Liveness:
        vm = Vm(plan, self._gone)
        liveness = await find_vm(plan, vm, self._need_layout())
        if liveness is not Liveness.GONE:
            self._vms[plan.id] = vm
            if vm.record is not None and not vm.ended:
                self._uids[plan.id] = vm.record.uid
        return liveness

    # talking to the workload

    async def attach(self, instance_id: str) -> VmStream:
        vm = self._vm(instance_id)
        channel = await vm.channel()
        return VmStream(channel.open_stream(Type.ATTACH), stdin_once=vm.plan.console.stdin_once)

    async def resize(self, instance_id: str, rows: int, cols: int) -> None:
        channel = await self._vm(instance_id).channel()
        try:
            await channel.request(Type.RESIZE, ("rows", str(rows)), ("cols", str(cols)))
        except AgentError as error:
            raise translate(error) from None

    async def exec(self, instance_id: str, plan: ExecPlan) -> VmExec:
        vm = self._vm(instance_id)
        channel = await vm.channel()
        stream = channel.open_stream(Type.EXEC, messages.further(vm.plan, plan, capabilities.ALL))
        try:
            answer = await asyncio.shield(stream.answer)
        except AgentError as error:
            raise command_error(error, plan.process.args[0]) from None
        except BaseException:
            stream.let_go()
            raise
        return VmExec(channel, stream, number(answer, "pid", 1, 1 << 22), tty=plan.process.tty)

    # looking

    async def sample(self, instance_id: str) -> Sample:
        vm = self._vm(instance_id)
        assert vm.cgroup is not None
        assert vm.plan.machine is not None
        guest_pids = 0
        if not vm.paused:
            answer = await (await vm.channel()).request(Type.STATS)
            guest_pids = number(answer, "pids", 0, 1 << 22)
        layout, group = vm.cgroup.layout, vm.cgroup.group
        return stats.take_sample(
            layout,
            group,
            cgroups.processes(layout, group),
            vcpus=vm.plan.machine.vcpus,
            memory_mib=vm.plan.machine.memory_mib,
            guest_pids=guest_pids,
            pids_limit=vm.limits.pids,
            endpoints=vm.plan.endpoints,
        )

    async def processes(self, instance_id: str, ps_args: Sequence[str]) -> ProcessTable:
        stats.columns_of(ps_args)
        channel = await self._vm(instance_id).channel()
        return stats.finalize_table(await channel.request(Type.PS), ps_args)

    async def update(self, instance_id: str, limits: Limits) -> None:
        vm = self._vm(instance_id)
        check_update(vm.limits, limits)
        assert vm.cgroup is not None
        vm.cgroup.limit_cpu(limits)
        if limits.cpuset_cpus != vm.limits.cpuset_cpus:
            _set_affinity(vm.cgroup.pids(), parse_cpus(limits.cpuset_cpus))
        vm.limits = limits

    # files

    @contextlib.asynccontextmanager
    async def files(self, plan: LaunchPlan) -> AsyncIterator[Files]:
        vm = self._vms.get(plan.id)
        if vm is not None and not vm.ended:
            async with vm.reading() as channel:
                yield AgentFiles(channel, plan.id)
            return
        async with self._helpers.use(plan) as booted:
            yield AgentFiles(booted.channel, plan.id)

    async def _boot_helper(self, plan: LaunchPlan) -> Booted:
        run_dir = os.path.join(plan.run_dir, "files")
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        generation = str(uuid.uuid4())
        booted = await self._boot(helper_order(plan, run_dir), plan.id + HELPER_SUFFIX, generation, Channel)
        try:
            await prepare_helper(booted.channel, plan, generation)
        except BaseException:
            await boot.end(booted)
            self._helper_gone(plan, booted)
            raise
        return booted

    def _helper_gone(self, plan: LaunchPlan, _: Booted) -> None:
        self._uids.pop(plan.id + HELPER_SUFFIX, None)
        remove_tree(os.path.join(plan.run_dir, "files"))


def _guest_is_here(settings: Settings) -> bool:
    try:
        return find_guest(settings.data_root, settings.vm_kernel) is not None
    except InsulaError:
        return False


def _uids_in_use(exec_root: str) -> dict[str, int]:
    """Of VMs that an earlier daemon left running, so that none is given twice before they are recovered."""
    found: dict[str, int] = {}
    base = os.path.join(exec_root, "instances")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(base):
            record = read_record(os.path.join(base, name))
            if record is not None:
                found[name] = record.uid
    return found


def _set_affinity(pids: Sequence[int], cpus: Sequence[int]) -> None:
    wanted = set(cpus) or os.sched_getaffinity(0)
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), wanted)
