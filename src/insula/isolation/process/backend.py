"""The process backend: instances as containers, by conmon and crun (or runc).  Async; all state is on disk.

What this process holds per instance is a watch on conmon.  A later daemon finds the rest in the run directory
(`monitor.Record`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from insula.config import Settings
from insula.errors import Failure, InsulaError, NoSuchInstance, RuntimeFailed, Unavailable
from insula.isolation.backend import BackendInfo, Exec, Files, Liveness, ProcessTable
from insula.isolation.edits import edit_file, make_edits
from insula.isolation.plan import ExecPlan, LaunchPlan
from insula.isolation.process import complaints, monitor, prepare, usage
from insula.isolation.process.attach import ConsoleStream
from insula.isolation.process.beginning import Beginning
from insula.isolation.process.checks import check_plan
from insula.isolation.process.execs import ExecPlace, start_exec
from insula.isolation.process.facts import conmon_version, find_facts
from insula.isolation.process.files import open_files
from insula.isolation.process.launcher import Launcher
from insula.isolation.process.mounts import shares_shm
from insula.isolation.process.oom import OomWatch
from insula.isolation.process.resources import (
    BlockDevices,
    block_weights,
    control_writes,
    find_weight_file,
)
from insula.isolation.process.runtimes import Runtime, choose_runtime
from insula.isolation.process.spec import (
    DEFAULT_PARENT,
    INIT_TARGET,
    HostFacts,
    cgroup_name,
    make_config,
    make_exec_process,
    to_text,
)
from insula.model.instance import ExitStatus
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import EtcFile
from insula.model.network import Endpoint
from insula.model.stream import Sample, Stream
from insula.system import cgroups
from insula.system.cgroups import Layout
from insula.system.files import disk_errors, remove_tree
from insula.system.mountns import share_mount
from insula.system.pidfd import Watch, is_alive, keep_descriptors, start_time
from insula.system.run import need_program, run

log = logging.getLogger(__name__)

_DEATH_LIMIT_S = 10.0
_FREEZE_LIMIT_S = 10.0
_STEP_S = 0.002


@dataclass(slots=True)
class _Container:
    """One that is launched, as this process knows it."""

    plan: LaunchPlan
    record: monitor.Record
    watch: Watch | None
    ended: asyncio.Task[ExitStatus]
    killed: bool = False

    def lives(self) -> bool:
        """Its first process is there and has not been killed by us."""
        return not self.killed and is_alive(self.record.init_pid, self.record.init_started)


class ProcessBackend:
    isolation = Isolation.PROCESS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._containers: dict[str, _Container] = {}
        self._problem = "the backend has not been started"
        self._versions: tuple[tuple[str, str], ...] = ()
        self._boot_id = ""
        self._layout: Layout
        self._launcher: Launcher
        self._runtime: Runtime
        self._conmon: str
        self._facts: HostFacts
        self._oom = OomWatch()

    def tell_oom(self, told: Callable[[str], None]) -> None:
        self._oom.told = told

    async def start(self) -> None:
        try:
            keep_descriptors()
            self._boot_id = monitor.boot_id()
            self._layout = cgroups.find_layout()
            cgroups.make_room(self._layout)
            self._launcher = Launcher(self._layout, self._settings.exec_root)
            self._launcher.prepare()
            self._conmon = need_program("conmon")
            state_root = f"{self._settings.exec_root}/runtime"
            self._runtime = await self._launcher.run(
                lambda: choose_runtime(self._settings.runtime, state_root)
            )
            self._facts = find_facts(self._layout, self._runtime)
            self._versions = (("conmon", await asyncio.to_thread(conmon_version, self._conmon)),)
            self._problem = ""
        except (InsulaError, OSError) as error:
            self._problem = str(error)
            log.warning("containers cannot run on this host: %s", error)

    async def stop(self) -> None:
        for container in self._containers.values():
            if container.watch is not None:
                container.watch.close()
            container.ended.cancel()
        await asyncio.gather(*(c.ended for c in self._containers.values()), return_exceptions=True)
        self._oom.close()
        if hasattr(self, "_launcher"):
            self._launcher.close()
            if not self._containers:
                self._launcher.tidy()
                cgroups.remove_if_empty(self._layout, DEFAULT_PARENT)
        if hasattr(self, "_runtime"):
            self._runtime.close()
        self._containers.clear()

    def info(self) -> BackendInfo:
        if self._problem:
            return BackendInfo(isolation=self.isolation, runtime="", version="", problem=self._problem)
        layout = f"v{self._layout.version}" + (" (hybrid)" if self._layout.hybrid else "")
        init = (("init", self._facts.init_path),) if self._facts.init_path else ()
        return BackendInfo(
            isolation=self.isolation,
            runtime=self._runtime.name,
            version=self._runtime.version,
            details=(*self._versions, ("runtime path", self._runtime.path), ("cgroup", layout), *init),
        )

    def check(self, plan: LaunchPlan) -> tuple[str, ...]:
        if self._problem:
            return ()
        prepare.find_block_devices(plan)
        return check_plan(plan, self._facts, self._layout)

    # a life

    async def launch(self, plan: LaunchPlan) -> int:
        if self._problem:
            raise Unavailable(f"containers cannot run on this host: {self._problem}")
        check_plan(plan, self._facts, self._layout)
        self._write_bundle(plan)
        self._oom.watch(plan.id, plan.run_dir)
        argv = monitor.conmon_argv(self._conmon, self._runtime, plan)
        starting = asyncio.ensure_future(
            self._launcher.run(lambda: monitor.start_conmon(argv, plan.run_dir), plan)
        )
        try:
            started = await asyncio.shield(starting)
            watch = Watch(started.pid, child=True)
        except BaseException:
            await asyncio.shield(self._abandon(starting, plan))
            raise
        record = monitor.Record(
            boot_id=self._boot_id,
            runtime=self._runtime.name,
            conmon_pid=started.pid,
            conmon_started=start_time(started.pid) or 0,
        )
        self._containers[plan.id] = container = _Container(
            plan, record, watch, asyncio.create_task(self._follow(plan, watch))
        )
        try:
            monitor.write_record(plan.run_dir, record)
            init_pid = await monitor.read_container_pid(started, plan.process.args[0])
            container.record = monitor.Record(
                boot_id=record.boot_id,
                runtime=record.runtime,
                conmon_pid=record.conmon_pid,
                conmon_started=record.conmon_started,
                init_pid=init_pid,
                init_started=start_time(init_pid) or 0,
            )
            monitor.write_record(plan.run_dir, container.record)
            self._weigh(cgroup_name(plan), plan.limits, prepare.find_block_devices(plan))
            self._watch_unkillable(plan)
            if shares_shm(plan):
                await asyncio.to_thread(share_mount, self._donors(plan)["ipc"], init_pid, "/dev/shm")
            process = plan.process
            if process.tty and process.console_rows and process.console_cols:
                monitor.resize(plan.run_dir, process.console_rows, process.console_cols)
        except BaseException:
            await asyncio.shield(self.discard(plan))
            raise
        return init_pid

    def _watch_unkillable(self, plan: LaunchPlan) -> None:
        if plan.limits.oom_kill_disable and (group := self._layout.path("memory", cgroup_name(plan))):
            self._oom.watch_unkillable(plan.id, group)

    async def _abandon(self, starting: asyncio.Future[monitor.Started], plan: LaunchPlan) -> None:
        """End a conmon that nobody knows yet."""
        with contextlib.suppress(InsulaError, OSError):
            started = await starting
            os.close(started.sync_fd)
            watch = Watch(started.pid, child=True)
            watch.signal(signal.SIGKILL)
            await watch.wait()
            watch.close()
        await self.discard(plan)

    def _write_bundle(self, plan: LaunchPlan) -> None:
        assert plan.directory is not None
        root = os.open(plan.directory.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            identity = prepare.identify(root, plan.process)
            prepare.make_cwd(root, plan.process)
            prepare.make_mount_points(root, plan, (INIT_TARGET,) if plan.init else ())
        finally:
            os.close(root)
        plan = dataclasses.replace(plan, mounts=prepare.mounts_by_kind(plan))
        config = make_config(
            plan,
            identity,
            self._facts,
            prepare.find_devices(plan),
            prepare.find_block_devices(plan),
            shared={kind: f"/proc/{pid}/ns/{kind}" for kind, pid in self._donors(plan).items()},
        )
        path = f"{plan.run_dir}/config.json"
        with disk_errors(f"writing {path}"), open(path, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(to_text(config))

    def _donors(self, plan: LaunchPlan) -> dict[str, int]:
        """The first processes of those whose namespaces it is to share, and which is the host's no more.
        Raises NoSuchInstance for one that has just ended."""
        found = {}
        for kind, mode in (("pid", plan.pid_mode), ("ipc", plan.ipc_mode)):
            how, _, donor = mode.partition(":")
            if how == "container":
                container = self._find(donor)
                if not container.lives():
                    raise NoSuchInstance(donor)
                found[kind] = container.record.init_pid
        return found

    def _weigh(self, group: str, limits: Limits, devices: BlockDevices = ()) -> None:
        if not limits.blkio_weight and not limits.throttles:
            return
        file = find_weight_file(self._layout, group)
        if not file:  # `check` has warned of it
            return
        for path, value in block_weights(limits, devices, file):
            cgroups.write(path, value)

    async def release(self, instance_id: str) -> None:
        container = self._find(instance_id)
        beginning = Beginning(self._layout, container.plan, container.record.init_pid)
        if not self._runtime.let_go(instance_id):
            argv = self._runtime.argv("start", instance_id)
            done = await self._launcher.run(lambda: run(argv, check=False))
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace")
                raise complaints.translate(said, container.plan.process.args[0])
        await beginning.wait()

    async def wait(self, instance_id: str) -> ExitStatus:
        return await asyncio.shield(self._find(instance_id).ended)

    async def _follow(self, plan: LaunchPlan, watch: Watch | None) -> ExitStatus:
        """conmon has written everything that it will ever write once it has ended."""
        if watch is not None:
            await watch.wait()
            watch.close()
        oom_killed = usage.was_oom_killed(self._layout, cgroup_name(plan))
        recorded = monitor.read_exit(plan.run_dir, plan.id)
        if recorded is not None:
            return ExitStatus(code=recorded[0], finished_at_ns=recorded[1], oom_killed=oom_killed)
        await asyncio.to_thread(cgroups.kill, self._layout, cgroup_name(plan))
        return ExitStatus(
            code=255,
            finished_at_ns=time.time_ns(),
            oom_killed=oom_killed,
            error="its monitor (conmon) ended without recording an exit code",
        )

    async def recover(self, plan: LaunchPlan) -> Liveness:
        known = self._containers.get(plan.id)
        record = known.record if known else monitor.read_record(plan.run_dir)
        if record is None or record.boot_id != monitor.boot_id():
            return Liveness.GONE
        if self._problem:  # what ran before the host was started anew is gone in any case
            raise Unavailable(f"containers cannot run on this host: {self._problem}")
        if known is None:
            watch = None
            if is_alive(record.conmon_pid, record.conmon_started):
                with contextlib.suppress(ProcessLookupError):
                    watch = Watch(record.conmon_pid)
            recorded = watch is not None or monitor.read_exit(plan.run_dir, plan.id) is not None
            if not recorded and not is_alive(record.init_pid, record.init_started):
                return Liveness.GONE
            known = _Container(plan, record, watch, asyncio.create_task(self._follow(plan, watch)))
            self._containers[plan.id] = known
            self._oom.watch(plan.id, plan.run_dir)
            self._oom.look(plan.id)
            self._watch_unkillable(plan)
        if known.watch is None or known.watch.ended:
            return Liveness.EXITED
        frozen = cgroups.is_frozen(self._layout, cgroup_name(plan))
        return Liveness.PAUSED if frozen else Liveness.RUNNING

    async def discard(self, plan: LaunchPlan) -> None:
        container = self._containers.pop(plan.id, None)
        self._oom.forget(plan.id)
        group = cgroup_name(plan)
        if not self._boot_id or not hasattr(self, "_layout"):
            raise Unavailable(f"containers cannot be cleaned up on this host: {self._problem}")
        if container is None:
            await self._end_strangers(plan)
        elif container.watch is not None and not container.watch.ended:
            await self._end(container, group)
        if container is not None:
            await asyncio.gather(container.ended, return_exceptions=True)  # its waiters get their answer
        if not cgroups.remove(self._layout, group):
            cgroups.kill(self._layout, group)
            await _until(lambda: cgroups.remove(self._layout, group), _DEATH_LIMIT_S)
        remove_tree(f"{self._settings.exec_root}/runtime/{plan.id}")
        monitor.remove_files(plan.run_dir, plan.id)

    async def _end(self, container: _Container, group: str) -> None:
        """Kill the container, then see conmon go; a conmon that does not is killed too."""
        assert container.watch is not None
        container.killed = True
        if container.record.init_pid == 0:  # the runtime is still at it, and dies with its conmon
            container.watch.signal(signal.SIGKILL)
        cgroups.kill(self._layout, group)
        if is_alive(container.record.init_pid, container.record.init_started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(container.record.init_pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(_DEATH_LIMIT_S):
                await container.watch.wait()
        except TimeoutError:
            log.warning("conmon of %s does not end; killing it", container.plan.id)
            container.watch.signal(signal.SIGKILL)
            await container.watch.wait()

    async def _end_strangers(self, plan: LaunchPlan) -> None:
        """What a daemon before us launched and this one does not know: half-made, or never recovered."""
        record = monitor.read_record(plan.run_dir)
        cgroups.kill(self._layout, cgroup_name(plan))
        if record is None or record.boot_id != self._boot_id:
            return
        if is_alive(record.conmon_pid, record.conmon_started):
            with contextlib.suppress(ProcessLookupError):
                watch = Watch(record.conmon_pid)
                await self._end(
                    _Container(plan, record, watch, asyncio.create_task(_nothing())), cgroup_name(plan)
                )
                watch.close()

    # while it runs

    async def signal(self, instance_id: str, signum: int) -> None:
        container = self._find(instance_id)
        record = container.record
        if is_alive(record.init_pid, record.init_started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.init_pid, signum)
        if signum == signal.SIGKILL:
            container.killed = True
            # everything: without a pid namespace of its own the first process takes nobody with it
            cgroups.kill(self._layout, cgroup_name(container.plan))

    async def freeze(self, instance_id: str, frozen: bool) -> None:
        group = cgroup_name(self._find(instance_id).plan)
        cgroups.set_frozen(self._layout, group, frozen)
        try:
            await _until(lambda: cgroups.is_frozen(self._layout, group) is frozen, _FREEZE_LIMIT_S)
        except TimeoutError:
            cgroups.set_frozen(self._layout, group, not frozen)
            raise Failure(f"the kernel did not freeze {instance_id} in {_FREEZE_LIMIT_S:.0f} s") from None

    async def attach(self, instance_id: str) -> Stream:
        plan = self._find(instance_id).plan
        return ConsoleStream.connect(plan.run_dir, takes_input=plan.console.open_stdin)

    async def resize(self, instance_id: str, rows: int, cols: int) -> None:
        monitor.resize(self._find(instance_id).plan.run_dir, rows, cols)

    async def exec(self, instance_id: str, plan: ExecPlan) -> Exec:
        container = self._find(instance_id)
        with self._live_root(container) as root:
            identity = prepare.identify(root, plan.process)
            prepare.check_cwd(root, plan.process)
            prepare.check_program(root, plan.process, identity)
        document = make_exec_process(
            container.plan, plan.process, identity, self._facts, privileged=plan.privileged
        )
        place = ExecPlace(
            launcher=self._launcher,
            runtime=self._runtime,
            instance_id=instance_id,
            directory=container.plan.run_dir,
            lives=container.lives,
        )
        return await start_exec(place, plan, to_text(document))

    @contextlib.contextmanager
    def _live_root(self, container: _Container) -> Iterator[int]:
        record = container.record
        try:
            root = os.open(f"/proc/{record.init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NoSuchInstance(container.plan.id) from error
        try:
            if not is_alive(record.init_pid, record.init_started):
                raise NoSuchInstance(container.plan.id)
            yield root
        finally:
            os.close(root)

    async def sample(self, instance_id: str) -> Sample:
        container = self._find(instance_id)
        return usage.take_sample(self._layout, cgroup_name(container.plan), container.record.init_pid)

    async def processes(self, instance_id: str, ps_args: Sequence[str]) -> ProcessTable:
        plan = self._find(instance_id).plan
        return await usage.list_processes(set(cgroups.processes(self._layout, cgroup_name(plan))), ps_args)

    async def set_network(
        self, instance_id: str, endpoints: Sequence[Endpoint], files: Sequence[EtcFile]
    ) -> None:
        """The namespace that it runs in has the interfaces already, or no longer."""
        found = self._find(instance_id)
        with disk_errors(f"writing the files of instance {instance_id}"):
            for edit in make_edits(found.plan.etc_files, files):
                edit_file(edit)
        found.plan = dataclasses.replace(found.plan, endpoints=tuple(endpoints), etc_files=tuple(files))

    async def update(self, instance_id: str, limits: Limits) -> tuple[str, ...]:
        group = cgroup_name(self._find(instance_id).plan)
        writes = control_writes(
            limits, version=self._layout.version, swap_accounting=self._facts.swap_accounting
        )
        self._weigh(group, dataclasses.replace(limits, throttles=()))
        waiting = [(self._layout.path(controller, group), name, value) for controller, name, value in writes]
        # of two limits that bound each other (memory and memory+swap) one order works, whichever way it goes
        for attempt in (waiting, waiting[::-1]):
            refused: Failure | None = None
            for path, name, value in attempt:
                try:
                    cgroups.write(f"{path}/{name}", value)
                except Failure as error:
                    refused = error
            if refused is None:
                return ()
        assert refused is not None
        raise refused

    @contextlib.asynccontextmanager
    async def files(self, plan: LaunchPlan) -> AsyncIterator[Files]:
        container = self._containers.get(plan.id)
        live = container is not None and container.lives()
        async with open_files(plan, container.record.init_pid if container and live else 0) as files:
            yield files

    def _find(self, instance_id: str) -> _Container:
        try:
            return self._containers[instance_id]
        except KeyError:
            raise NoSuchInstance(instance_id) from None


async def _until(condition: Callable[[], bool], limit_s: float) -> None:
    """For what the kernel does soon and tells nobody.  Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(_STEP_S)


async def _nothing() -> ExitStatus:
    raise RuntimeFailed("nobody waits for it")
