"""One running VM: its processes, channel and monitor, and how it ends.  Async.

A supervisor task waits for QEMU and turns what it left behind into an ExitStatus; nothing else decides how a
VM ended.  QEMU and its helpers outlive this object (`let_go`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable

from insula.errors import Conflict, DiskFull, GuestFailed, InsulaError
from insula.isolation.plan import LaunchPlan
from insula.isolation.vm import boot, messages
from insula.isolation.vm.boot import stop_helpers
from insula.isolation.vm.cgroup import Cgroup
from insula.isolation.vm.channel import Channel, State
from insula.isolation.vm.order import Order
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.record import VmRecord, finalize_status, write_record
from insula.isolation.vm.stats import host_oom_kills
from insula.isolation.vm.steps import Steps
from insula.isolation.vm.virtiofs import binds
from insula.isolation.vm.wire import ProtocolViolation, Type
from insula.model.instance import ExitStatus
from insula.model.network import Endpoint
from insula.system.pidfd import Watch

log = logging.getLogger(__name__)

_POWER_OFF_S = 30.0  # from the end of the workload to the end of QEMU
_KILL_S = 10.0
_SYNC_S = 120.0  # software emulation on a busy host, as for a boot
_HOLD_S = 5.0  # for the agent to freeze the workload; the whole machine is stopped anyway
_MOST_CONSOLE = 4 * 1024 * 1024
_MOST_EXIT = 65_536


class Vm:
    def __init__(self, plan: LaunchPlan, on_gone: Callable[[Vm], None]) -> None:
        self.plan = plan
        self.limits = plan.limits
        self.paused = False
        self.stalled = False
        """It stands still until there is space for its disk on the host (`stalls`)."""
        self.cpu_ticks = -1
        self.launching = False
        """Somebody waits for it to get ready."""
        self._readers = 0
        self.status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.monitor = Monitor(boot.qmp_path(plan.run_dir), plan.id[:12])
        self.record: VmRecord | None = None
        self.cgroup: Cgroup | None = None
        self.steps = Steps()
        self.order: Order | None = None
        """What it was launched with; None of one that an earlier daemon has launched."""
        self.was_ready = False
        """It was made ahead."""
        self._on_gone = on_gone
        self._watch: Watch | None = None
        self._tap = -1
        self._helpers: list[Watch] = []
        self._channel: Channel | None = None
        self._channel_lock = asyncio.Lock()
        self._signalled = False
        self._pending: list[int] = []
        """Signals of one that stands still: it takes them when it goes on."""
        self._killed = False
        self._killing: asyncio.Task[None] | None = None
        self._violation = ""
        self._exited: ExitStatus | None = None
        """What the agent's message said, should its record not be written when the plug is pulled."""
        self._supervisor: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # life

    def make_channel(self) -> Channel:
        return Channel(on_exited=self._on_exited, on_violation=self._on_violation)

    def adopt(self, channel: Channel, monitor: Monitor) -> None:
        """Of a clone that was made ahead.  Raises GuestFailed when it has ended meanwhile."""
        channel.hand_over(on_exited=self._on_exited, on_violation=self._on_violation)
        self.monitor = monitor

    def take(
        self,
        record: VmRecord,
        watch: Watch,
        helpers: list[Watch],
        cgroup: Cgroup,
        channel: Channel | None,
        *,
        tap: int = -1,
    ) -> None:
        """It runs: supervise it from here on.  `tap`: Booted's."""
        self._tap = tap
        self.record, self._watch, self._helpers = record, watch, helpers
        self.cgroup, self._channel = cgroup, channel
        self._supervisor = asyncio.create_task(self._supervise(watch))

    def confirm(self) -> None:
        """Its guest has become this instance's; a daemon that comes later may let it run."""
        assert self.record is not None
        self.record = dataclasses.replace(self.record, unconfirmed=False)
        write_record(self.plan.run_dir, self.record)

    def take_ended(self, status: ExitStatus) -> None:
        self.status.set_result(status)

    async def _supervise(self, watch: Watch) -> None:
        await watch.wait()
        if self._deadline:
            self._deadline.cancel()
        assert self.record is not None
        assert self.cgroup is not None
        host_oom = host_oom_kills(self.cgroup.layout, self.cgroup.group) > 0
        status = finalize_status(
            self.plan.run_dir,
            self.record.launched_ns,
            killed=self._killed,
            host_oom=host_oom,
            exited=self._exited,
        )
        if self._violation:
            status = ExitStatus(code=status.code, finished_at_ns=status.finished_at_ns, error=self._violation)
        self.let_go_tap()
        await self._close_connections()
        await stop_helpers(self._helpers)
        watch.close()
        self.cgroup.remove()
        self._on_gone(self)
        if not self.status.done():
            self.status.set_result(status)

    def _on_exited(self, status: ExitStatus) -> None:
        """The workload has ended; the guest now syncs and powers off.  A guest that does not is ended.

        It does not have to where nothing of it is wanted any more: what it said is on the host already, and
        to power off takes an emulated guest, which has never done that before, as long as to start.  Who has
        sent a signal may want to start it again (`restart`).
        """
        self._exited = status
        disk = self.plan.disk
        if disk is not None and disk.volatile and not binds(self.plan.mounts) and not self._signalled:
            self._end()
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(_POWER_OFF_S, self._end)

    def _on_violation(self, violation: ProtocolViolation) -> None:
        self._violation = f"the virtual machine was ended: {violation}"
        self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.signal(signal.SIGKILL)

    def kill(self) -> None:
        """Pull the plug; the exit code is 137."""
        self._killed = True
        self._end()

    async def signal(self, signum: int) -> None:
        """To the workload; when it is frozen, as soon as it goes on.  Raises AgentError."""
        self._signalled = True
        if self.paused or self.stalled:
            self._pending.append(signum)
            return
        channel = await self.channel()
        await channel.request(Type.SIGNAL, ("signal", str(signum)))

    def kill_workload(self) -> None:
        """SIGKILL to the workload.  The guest still writes its disk back, as a host does for a killed
        container; one that does not end within 10 s has its plug pulled."""
        self._killed = self._signalled = True
        if self._killing is None:
            self._killing = asyncio.create_task(self._kill_workload())

    async def _kill_workload(self) -> None:
        try:
            async with asyncio.timeout(_KILL_S):
                if self.paused:
                    await self.freeze(False)
                channel = await self.channel()
                await channel.request(Type.SIGNAL, ("signal", str(int(signal.SIGKILL))))
                await asyncio.shield(self.status)
        except (InsulaError, TimeoutError) as error:
            log.info("pulling the plug of %s: %s", self.plan.id[:12], error or "it did not end in time")
            self._end()

    async def ends_within(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(self.status)
        except TimeoutError:
            return False
        return True

    async def kill_and_wait(self) -> None:
        self.kill()
        if self._supervisor is not None:
            await asyncio.shield(self._supervisor)

    @property
    def ended(self) -> bool:
        return self.status.done()

    async def _close_connections(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        await self.monitor.close()

    def let_go_tap(self) -> None:
        tap, self._tap = self._tap, -1
        boot.let_go(tap)

    async def let_go(self) -> None:
        """This process ends, the VM goes on."""
        for task in (self._killing, self._supervisor):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._deadline:
            self._deadline.cancel()
        self.let_go_tap()
        await self._close_connections()
        for watch in (self._watch, *self._helpers):
            if watch is not None:
                watch.close()
        self.status.cancel()

    # talking

    def endpoints(self) -> tuple[Endpoint, ...]:
        """With the links that it really uses."""
        found, record = self.plan.endpoints, self.record
        if not found or record is None or not record.link:
            return found
        first = record.nics[0][0] if record.nics else found[0].link
        return tuple(dataclasses.replace(e, link=record.link) if e.link == first else e for e in found)

    async def channel(self) -> Channel:
        """The open channel; connected again when it was cut.  Raises Conflict while the VM is paused,
        DiskFull while it is stalled."""
        if self.paused:
            raise Conflict(f"Container {self.plan.id} is paused, unpause the container before you go on")
        self._need_room()
        return await self._connected()

    def no_room(self) -> DiskFull:
        return DiskFull(
            f"no space left on the host for the disk of {self.plan.id[:12]}: it stands still meanwhile",
            hint="free some space: insula system prune",
        )

    def _need_room(self) -> None:
        if self.stalled:
            raise self.no_room()

    def stall(self) -> None:
        """Noticed: whoever waits for its agent is told."""
        self.stalled = True
        if self._channel is not None:
            self._channel.give_up_waiting(self.no_room())

    async def go_on(self) -> None:
        """There is space again.  Raises RuntimeFailed."""
        await self.monitor.resume()
        self.stalled = False
        await self._send_pending()

    async def _connected(self) -> Channel:
        async with self._channel_lock:
            if self._channel is None or self._channel.state is not State.OPEN:
                if self.ended or (self._watch is not None and self._watch.ended):
                    raise Conflict(f"Container {self.plan.id} is not running")
                fresh = self.make_channel()
                try:
                    await boot.connect(fresh, self.plan.run_dir, _SYNC_S)
                except OSError as error:
                    raise GuestFailed(f"cannot reach the agent of {self.plan.id[:12]}: {error}") from error
                self._channel = fresh
            return self._channel

    async def freeze(self, frozen: bool) -> None:
        """The workload is frozen in the guest; the machine stands still too, but while files are read."""
        if frozen:
            await self.hold_workload(True)
            self.paused = True
            if not self._readers:
                await self.monitor.pause()
        else:
            await self.monitor.resume()
            self.paused = False
            await self._send_pending()
            await self.hold_workload(False)

    async def _send_pending(self) -> None:
        pending, self._pending = self._pending, []
        for signum in pending:
            try:
                await self.signal(signum)
            except InsulaError as error:
                log.warning("%s did not get signal %d: %s", self.plan.id[:12], signum, error)

    async def hold_workload(self, held: bool) -> None:
        """By the guest's own cgroup freezer.  An agent that does not answer is logged: the machine is stopped
        as a whole too."""
        try:
            async with asyncio.timeout(_HOLD_S):
                channel = await self._connected()
                await channel.request(Type.PAUSE, *messages.pause(held, version=channel.version))
        except (InsulaError, TimeoutError) as error:
            log.warning("the agent of %s does not freeze its workload: %s", self.plan.id[:12], error)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Channel]:
        """The channel for files, of a frozen instance too: the machine runs then, the workload does not."""
        self._need_room()
        self._readers += 1
        try:
            if self.paused and self._readers == 1:
                await self.monitor.resume()
            yield await self._connected()
        finally:
            self._readers -= 1
            if self.paused and not self._readers and not self.ended:
                await self.monitor.pause()

    def trim(self) -> None:
        """The guest may write to its console and exit port without end, and have QEMU complain of it without
        end (of a port that is not there); the host's disk is not its."""
        for name in ("console.log", "qemu.log"):
            path = os.path.join(self.plan.run_dir, name)
            with contextlib.suppress(FileNotFoundError):
                if os.path.getsize(path) > _MOST_CONSOLE:
                    os.truncate(path, 0)
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(os.path.join(self.plan.run_dir, "exit")) > _MOST_EXIT:
                self._violation = "the virtual machine was ended: it wrote more than an exit record"
                self._end()
