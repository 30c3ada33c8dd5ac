"""The VM backend: `Backend` for machines of their own.  Async.

This file only connects those beside it: `order` and `machine` decide, `boot` and `prepare` act, `vm` is a
running one, `helper` serves the files of a stopped one, `recover` finds those of an earlier daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from insula.config import Settings
from insula.errors import Conflict, GuestFailed, InvalidRequest, NoSuchInstance, RuntimeFailed, Unavailable
from insula.isolation import backend
from insula.isolation.backend import BackendInfo, Files, Liveness, ProcessTable
from insula.isolation.mounted import MountedFiles, numeric_owner
from insula.isolation.plan import ExecPlan, LaunchPlan
from insula.isolation.sizing import LEAST_MEMORY_MIB
from insula.isolation.vm import boot, interfaces, messages, ps, stats
from insula.isolation.vm import captured as files
from insula.isolation.vm.boot import Booted
from insula.isolation.vm.capture import capture, check_copyable, hold
from insula.isolation.vm.captured import Captured
from insula.isolation.vm.channel import AgentError, Channel, translate
from insula.isolation.vm.check import check_plan, check_update, parse_cpus
from insula.isolation.vm.facilities import Facilities
from insula.isolation.vm.files import AgentFiles
from insula.isolation.vm.guest import Guest
from insula.isolation.vm.helper import Helpers
from insula.isolation.vm.loadable import check_loadable, explain
from insula.isolation.vm.machine import netdev
from insula.isolation.vm.order import (
    HELPER_SUFFIX,
    Order,
    helper_order,
    order_for,
)
from insula.isolation.vm.prepare import (
    command_error,
    prepare_copy,
    prepare_helper,
    prepare_workload,
    renew_host_keys,
)
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.recover import end_helpers, find_vm, forget
from insula.isolation.vm.size import Size
from insula.isolation.vm.stalls import look_after
from insula.isolation.vm.starter import Starter
from insula.isolation.vm.streams import VmExec, VmStream
from insula.isolation.vm.vm import Vm
from insula.isolation.vm.wire import Fields, Type, number
from insula.model.instance import ExitStatus
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import EtcFile
from insula.model.network import Endpoint
from insula.model.progress import Progress, no_progress
from insula.model.stream import Sample
from insula.model.template import TemplateView
from insula.security import capabilities
from insula.system import cgroups
from insula.system.files import remove_tree

log = logging.getLogger(__name__)

_MOST_MEMORY_MIB, _MOST_VCPUS = 1 << 20, 255  # of q35 without further devices
_LOOK_S = 20.0
_SIGKILL = 9
_ENDING_S = 5.0


class VmBackend:
    isolation = Isolation.VM

    def __init__(self, settings: Settings, *, progress: Progress = no_progress) -> None:
        self._settings = settings
        self._facilities = Facilities(settings, progress)
        self._starter = Starter(self._facilities)
        self._vms: dict[str, Vm] = {}
        self._helpers = Helpers(self._boot_helper, self._helper_gone)
        self._carer: asyncio.Task[None] | None = None

    # the host

    async def start(self) -> None:
        await self._facilities.find()
        if self._facilities.problem is not None:
            return
        await end_helpers(self._settings.exec_root, self._facilities.layout())
        await asyncio.to_thread(self._starter.templates.store.sweep)
        self._facilities.begin()
        self._carer = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        if self._carer is not None:
            self._carer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._carer
        await self._facilities.close()
        await self._helpers.close_all()
        await self._starter.close()
        for vm in list(self._vms.values()):
            await vm.let_go()
        self._vms.clear()

    def info(self) -> BackendInfo:
        problem = self._facilities.problem
        details = [
            *self._facilities.details(),
            ("clones ready", str(self._starter.clones.ready())),
            ("image templates", str(self._starter.images.ready())),
        ]
        return BackendInfo(
            isolation=Isolation.VM,
            runtime="qemu",
            version=self._facilities.version,
            details=tuple(details),
            problem=str(problem) if problem else "",
        )

    async def make_guest(self, progress: Progress = no_progress) -> Guest:
        return await self._facilities.make(progress)

    def origin(self, instance_id: str) -> Mapping[str, str]:
        vm = self._vms.get(instance_id)
        if vm is None or vm.record is None:
            return {}
        record = vm.record
        if record.copy_of:
            return {"Start": "copy", "Source": record.copy_of}
        if not record.template:
            return {"Start": "boot", "Reason": record.reason}
        how = "image clone" if record.has_root else "clone"
        return {
            "Start": how if record.owner == instance_id else "ready clone",
            "Template": record.template,
        }

    async def templates(self) -> Sequence[TemplateView]:
        return await self._starter.views()

    async def remove_template(self, key: str) -> TemplateView:
        return await self._starter.remove_template(key)

    async def warm_template(
        self, vcpus: int | None, memory_mib: int | None, progress: Progress
    ) -> TemplateView:
        size = Size(
            vcpus=self._settings.vm_vcpus if vcpus is None else vcpus,
            memory_mib=self._settings.vm_memory_mib if memory_mib is None else memory_mib,
        )
        if not LEAST_MEMORY_MIB <= size.memory_mib <= _MOST_MEMORY_MIB:
            raise InvalidRequest(f"memory: a guest has {LEAST_MEMORY_MIB} to {_MOST_MEMORY_MIB} MiB")
        if not 1 <= size.vcpus <= _MOST_VCPUS:
            raise InvalidRequest(f"vcpus: a guest has 1 to {_MOST_VCPUS}")
        self._facilities.need_host()
        await self._facilities.make(progress)
        progress(f"Making the template of {size.memory_mib} MiB and {size.vcpus} CPUs ready")
        return await self._starter.warm(size)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for vm in list(self._vms.values()):
                vm.trim()
                try:
                    await look_after(vm)
                except (RuntimeFailed, OSError) as error:  # it ends at this moment, or is asked again
                    log.debug("%s: %s", vm.plan.id[:12], error)
            await self._starter.upkeep()

    # life of an instance

    def check(self, plan: LaunchPlan) -> tuple[str, ...]:
        return check_plan(plan)

    async def launch(self, plan: LaunchPlan) -> int:
        if (old := self._vms.get(plan.id)) is not None and not old.ended:
            raise Conflict(f"the virtual machine {plan.id[:12]} runs already")
        check_plan(plan)
        order = order_for(plan)
        await self._helpers.close(plan)
        vm = Vm(plan, self._gone)
        vm.order = order
        vm.steps.mark("order")
        booted, generation = await self._start(order, vm)
        async with self._taken(vm, booted):
            assert self._facilities.guest is not None
            await prepare_workload(
                booted.channel,
                plan,
                generation,
                order.share_files(),
                self._facilities.guest.release,
                rescan=bool(booted.record.template and order.has_more),
                fresh=await self._starter.is_fresh(order, booted),
            )
            await renew_host_keys(booted.channel, plan)
            vm.steps.mark("machine and workload")
        return booted.record.pid

    @contextlib.asynccontextmanager
    async def _taken(self, vm: Vm, booted: Booted) -> AsyncIterator[None]:
        """Known from here on; what fails in the block ends it.  Raises DiskFull."""
        vm.take(booted.record, booted.watch, booted.helpers, booted.cgroup, booted.channel, tap=booted.tap)
        self._vms[vm.plan.id] = vm
        vm.launching = True
        try:
            yield
        except BaseException as error:
            await vm.kill_and_wait()
            await self.discard(vm.plan)
            if vm.stalled and isinstance(error, GuestFailed):
                raise vm.no_room() from error
            raise
        finally:
            vm.launching = False

    async def _start(self, order: Order, vm: Vm) -> tuple[Booted, str]:
        """With its generation."""
        if (clone := self._starter.find_ready(order)) is not None:
            booted = await self._starter.hand_over(clone, order, vm.adopt)
            if booted is not None:
                vm.steps.mark("hand-over")
                vm.was_ready = True
                _set_affinity(booted.cgroup.pids(), parse_cpus(order.limits.cpuset_cpus))
                return booted, clone.generation
            vm.monitor = Monitor(boot.qmp_path(order.run_dir), order.id[:12])
        generation = str(uuid.uuid4())
        booted = await self._starter.start(
            order, order.id, generation, vm.make_channel, vm.monitor, steps=vm.steps
        )
        return booted, generation

    # copies of what runs

    def check_copyable(self, instance_id: str) -> None:
        check_copyable(self._vm(instance_id))

    def capture(
        self, instance_id: str, upper_disk: str, *, leave_running: bool = True
    ) -> AbstractAsyncContextManager[Captured]:
        return capture(self._vm(instance_id), upper_disk, leave_running=leave_running)

    async def save(self, captured: backend.Captured, directory: str) -> None:
        assert isinstance(captured, Captured)
        await asyncio.to_thread(files.save, captured, directory)

    async def load(self, directory: str) -> Captured:
        return await asyncio.to_thread(files.load, directory)

    async def launch_copy(self, plan: LaunchPlan, captured: backend.Captured, how: str) -> int:
        assert isinstance(captured, Captured)
        assert plan.machine == captured.machine
        if captured.accelerator is not (now := await self._facilities.accelerator()):
            raise Unavailable(
                f"the copy was made under {captured.accelerator}, but this host runs VMs under {now}"
            )
        version = self._facilities.version
        await check_loadable(captured, self._facilities.need_host().qemu, version)
        check_plan(plan)
        plan = _in_slots(plan, captured)
        order = order_for(plan)
        generation = str(uuid.uuid4())
        vm = Vm(plan, self._gone)
        try:
            booted = await self._starter.resume(
                order, captured.source(how), generation, vm.make_channel, vm.monitor, steps=vm.steps
            )
        except RuntimeFailed as error:
            raise explain(error, captured, version) from error
        async with self._taken(vm, booted):
            await prepare_copy(booted.channel, plan, generation)
            await renew_host_keys(booted.channel, plan)
            await vm.monitor.plug_in([netdev(n) for n in range(len(plan.endpoints))], True)
            vm.steps.mark("identity")
        return booted.record.pid

    def _gone(self, vm: Vm) -> None:
        self._facilities.give_uid(vm.plan.id)

    def _vm(self, instance_id: str) -> Vm:
        vm = self._vms.get(instance_id)
        if vm is None:
            raise NoSuchInstance(instance_id)
        return vm

    async def release(self, instance_id: str) -> None:
        vm = self._vm(instance_id)
        channel = await vm.channel()
        vm.steps.mark("engine")
        assert vm.record is not None
        try:
            if vm.record.unconfirmed:
                vm.confirm()
                await hold(channel, False)
            else:
                await channel.request(Type.START)
        except AgentError as error:
            await vm.kill_and_wait()
            raise command_error(error, vm.plan.process) from None
        except GuestFailed:
            # a guest that panics, or is reset, at once has not answered: `wait` tells how it ended
            if not await vm.ends_within(_ENDING_S):
                raise
        vm.steps.mark("start")
        log.debug("%s runs: %s", instance_id[:12], vm.steps)
        if vm.cgroup is not None:
            vm.cgroup.limit_cpu(vm.limits)  # from here on: a limit is on the workload, not on booting
        if vm.order is not None:
            self._starter.look_ahead(vm.order, was_ready=vm.was_ready)

    async def wait(self, instance_id: str) -> ExitStatus:
        return await asyncio.shield(self._vm(instance_id).status)

    async def signal(self, instance_id: str, signum: int) -> None:
        vm = self._vm(instance_id)
        if signum == _SIGKILL:
            vm.kill_workload()
            return
        try:
            await vm.signal(signum)
        except AgentError as error:
            if error.kind != "conflict":  # that it has just ended: nobody takes a signal any more
                raise translate(error) from None
        except (GuestFailed, Conflict):
            if not await vm.ends_within(_ENDING_S):
                raise

    async def freeze(self, instance_id: str, frozen: bool) -> None:
        await self._vm(instance_id).freeze(frozen)

    async def discard(self, plan: LaunchPlan) -> None:
        await self._helpers.close(plan)
        vm = self._vms.pop(plan.id, None)
        if vm is not None and not vm.ended:
            await vm.kill_and_wait()
        await forget(plan, self._facilities.layout())
        self._facilities.give_uid(plan.id)

    async def recover(self, plan: LaunchPlan) -> Liveness:
        vm = Vm(plan, self._gone)
        liveness = await find_vm(plan, vm, self._facilities.layout())
        if liveness is not Liveness.GONE:
            self._vms[plan.id] = vm
            if vm.record is not None and not vm.ended:
                self._facilities.uids[plan.id] = vm.record.uid
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
            raise command_error(error, plan.process) from None
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
        if not vm.paused and not vm.stalled:
            answer = await (await vm.channel()).request(Type.STATS)
            guest_pids = number(answer, "pids", 0, 1 << 22)
        layout, group = vm.cgroup.layout, vm.cgroup.group
        return stats.take_sample(
            layout,
            group,
            cgroups.processes(layout, group),
            vcpus=vm.plan.machine.vcpus,
            memory_limit_bytes=vm.limits.memory_bytes or vm.plan.machine.memory_mib << 20,
            guest_pids=guest_pids,
            pids_limit=max(vm.limits.pids, 0),
            endpoints=vm.endpoints(),
            disk=vm.plan.disk.upper_disk if vm.plan.disk is not None else "",
        )

    async def processes(self, instance_id: str, ps_args: Sequence[str]) -> ProcessTable:
        columns = ps.columns_of(ps_args)
        channel = await self._vm(instance_id).channel()
        # in a thread: a guest may say that it has very many
        return await asyncio.to_thread(ps.finalize_table, await channel.request(Type.PS), columns)

    async def update(self, instance_id: str, limits: Limits) -> tuple[str, ...]:
        vm = self._vm(instance_id)
        check_update(vm.limits, limits)
        assert vm.cgroup is not None
        warnings: tuple[str, ...] = ()
        if pairs := messages.change(vm.limits, limits):
            try:
                answer = await (await vm.channel()).request(Type.LIMIT, *pairs)
            except AgentError as error:
                raise translate(error) from None
            warnings = _too_much(answer, vm.limits, limits)
        vm.cgroup.limit_cpu(limits)
        vm.cgroup.reserve_memory(limits)
        if limits.cpuset_cpus != vm.limits.cpuset_cpus:
            _set_affinity(vm.cgroup.pids(), parse_cpus(limits.cpuset_cpus))
        vm.limits = limits
        return warnings

    async def set_network(
        self, instance_id: str, endpoints: Sequence[Endpoint], files: Sequence[EtcFile]
    ) -> None:
        await interfaces.set_network(self._vm(instance_id), endpoints, files)

    # files

    @contextlib.asynccontextmanager
    async def files(self, plan: LaunchPlan) -> AsyncIterator[Files]:
        vm = self._vms.get(plan.id)
        if vm is not None and not vm.ended:
            async with vm.reading() as channel:
                yield AgentFiles(channel, plan.id)
            return
        async with self._helpers.use(plan) as booted:
            user = plan.process.user
            yield MountedFiles(AgentFiles(booted.channel, plan.id), plan, lambda: numeric_owner(user))

    async def _boot_helper(self, plan: LaunchPlan) -> Booted:
        run_dir = os.path.join(plan.run_dir, "files")
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        generation = str(uuid.uuid4())
        order = helper_order(plan, run_dir)
        monitor = Monitor(boot.qmp_path(run_dir), order.id[:12])
        try:
            booted = await self._starter.start(order, order.id, generation, Channel, monitor, for_files=True)
        finally:
            await monitor.close()
        try:
            await prepare_helper(booted.channel, plan, generation)
        except BaseException:
            await boot.end(booted)
            self._helper_gone(plan, booted)
            raise
        return booted

    def _helper_gone(self, plan: LaunchPlan, _: Booted) -> None:
        self._facilities.give_uid(plan.id + HELPER_SUFFIX)
        remove_tree(os.path.join(plan.run_dir, "files"))


def _too_much(answer: Fields, old: Limits, limits: Limits) -> tuple[str, ...]:
    """Sentences about new limits above what the guest has booted with; they hold from the next start on."""
    memory, pids = number(answer, "memory", 0, 1 << 62), number(answer, "pids", 0, 1 << 22)
    warnings = []
    if limits.memory_bytes > memory and limits.memory_bytes != old.memory_bytes:
        warnings.append(f"This virtual machine has {memory >> 20} MiB for its workload until its next start.")
    if limits.pids > pids and limits.pids != old.pids:
        warnings.append(f"This virtual machine can run {pids} processes until its next start.")
    return tuple(warnings)


def _in_slots(plan: LaunchPlan, captured: Captured) -> LaunchPlan:
    """Its interfaces in the order of the machine's slots.  Raises Conflict."""
    by_name = {endpoint.interface: endpoint for endpoint in plan.endpoints}
    if sorted(by_name) != sorted(captured.interfaces):
        raise Conflict(
            f"container {plan.id[:12]} is to have interfaces {', '.join(by_name) or 'none'}, "
            f"but its machine was copied with {', '.join(captured.interfaces) or 'none'}"
        )
    return dataclasses.replace(plan, endpoints=tuple(by_name[name] for name in captured.interfaces))


def _set_affinity(pids: Sequence[int], cpus: Sequence[int]) -> None:
    wanted = set(cpus) or os.sched_getaffinity(0)
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), wanted)
