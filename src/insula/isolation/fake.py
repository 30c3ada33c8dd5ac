"""The fake backend: the whole seam in memory, so that engine and API tests need no privilege.  Async.

Workloads are the scripted programs of `fake_programs`; logs are real CRI files at `console.log_path`;
streams have back-pressure.  As in a PID namespace, a first process without a handler ignores every signal
but SIGKILL, unless the plan asks for an init.  Give one object to two engines, one after the other, to
test a restart of the daemon; `reboot` forgets everything, as the host's reboot does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence

from insula.errors import Conflict, NoSuchInstance, UnsupportedField
from insula.isolation.backend import BackendInfo, Exec, Files, Liveness, ProcessTable
from insula.isolation.fake_files import FakeTree
from insula.isolation.fake_jobs import KILLED, FakeExec, FakeStream, Job
from insula.isolation.fake_programs import check_program
from insula.isolation.plan import ExecPlan, LaunchPlan
from insula.model.instance import ExitStatus
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import EtcFile
from insula.model.network import Endpoint
from insula.model.stream import NetworkSample, Sample


class _Instance:
    def __init__(self, plan: LaunchPlan, job: Job, tree: FakeTree) -> None:
        self.plan = plan
        self.job = job
        self.tree = tree
        self.execs: list[Job] = []
        self.frozen = False
        self.status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.limits = plan.limits


class FakeBackend:
    """See the module.  `isolation` says which one it stands in for."""

    def __init__(self, isolation: Isolation = Isolation.PROCESS) -> None:
        self.isolation = isolation
        self._instances: dict[str, _Instance] = {}
        self._trees: dict[str, FakeTree] = {}
        self._next_pid = 1000
        self.oom: Callable[[str], None] = lambda _: None
        """For tests: what a kernel does that has no memory for an instance."""

    def tell_oom(self, told: Callable[[str], None]) -> None:
        self.oom = told

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def reboot(self) -> None:
        """Everything that runs is gone, without a record."""
        for instance in self._instances.values():
            for job in (instance.job, *instance.execs):
                job.kill()
        self._instances.clear()

    def info(self) -> BackendInfo:
        return BackendInfo(isolation=self.isolation, runtime="fake", version="1")

    def check(self, plan: LaunchPlan) -> tuple[str, ...]:
        if self.isolation is Isolation.VM and plan.host_network:
            raise UnsupportedField(
                "HostConfig.NetworkMode", "a VM has a network stack of its own, not the host's"
            )
        return ()

    async def launch(self, plan: LaunchPlan) -> int:
        if plan.id in self._instances:
            raise Conflict(f"instance {plan.id} is already launched")
        tree = self._trees.setdefault(plan.id, FakeTree(plan.id))
        check_program(plan.process.args, tree)
        console = plan.console
        job = Job(
            plan.process,
            plan.hostname,
            tree,
            pid=self._pid(),
            open_stdin=console.open_stdin,
            stdin_once=console.stdin_once,
            log_path=console.log_path,
        )
        self._instances[plan.id] = _Instance(plan, job, tree)
        return job.pid

    async def release(self, instance_id: str) -> None:
        instance = self._find(instance_id)
        instance.job.begin()
        instance.job.ended.add_done_callback(lambda ended: self._ended(instance, ended.result()))

    def _ended(self, instance: _Instance, code: int) -> None:
        if not instance.status.done():
            instance.status.set_result(ExitStatus(code=code, finished_at_ns=time.time_ns()))
        for job in instance.execs:
            job.kill()

    async def wait(self, instance_id: str) -> ExitStatus:
        instance = self._find(instance_id)
        return await asyncio.shield(instance.status)

    async def signal(self, instance_id: str, signum: int) -> None:
        instance = self._find(instance_id)
        job = instance.job
        if signum == signal.SIGKILL:
            if job.task is None and not job.ended.done():
                self._ended(instance, KILLED)
                await job.finish(KILLED)
            job.kill()
        elif not job.context.interrupt(signum) and instance.plan.init and signum != signal.SIGCHLD:
            job.kill(128 + signum)

    async def freeze(self, instance_id: str, frozen: bool) -> None:
        instance = self._find(instance_id)
        instance.frozen = frozen
        for job in (instance.job, *instance.execs):
            if frozen:
                job.running.clear()
            else:
                job.running.set()

    async def attach(self, instance_id: str) -> FakeStream:
        instance = self._find(instance_id)
        stream = instance.job.attach()
        if instance.status.done():
            await stream.end()
        return stream

    async def resize(self, instance_id: str, rows: int, cols: int) -> None:
        job = self._find(instance_id).job
        job.rows, job.cols = rows, cols

    async def exec(self, instance_id: str, plan: ExecPlan) -> Exec:
        instance = self._find(instance_id)
        if instance.status.done():
            raise NoSuchInstance(instance_id)
        check_program(plan.process.args, instance.tree)
        job = Job(
            plan.process,
            instance.plan.hostname,
            instance.tree,
            pid=self._pid(),
            open_stdin=plan.open_stdin,
            stdin_once=True,
            log_path="",
        )
        stream = job.attach()
        instance.execs.append(job)
        job.ended.add_done_callback(lambda _: instance.execs.remove(job))
        job.begin()
        return FakeExec(job, stream)

    async def sample(self, instance_id: str) -> Sample:
        instance = self._find(instance_id)
        return Sample(
            taken_ns=time.time_ns(),
            cpu_total_ns=1_000_000,
            cpu_user_ns=600_000,
            cpu_system_ns=400_000,
            cpus_online=1,
            memory_bytes=1024 * 1024,
            memory_limit_bytes=instance.limits.memory_bytes,
            pids=1 + len(instance.execs),
            pids_limit=max(instance.limits.pids, 0),
            networks=tuple(
                NetworkSample(
                    interface=e.interface,
                    rx_bytes=1,
                    rx_packets=1,
                    rx_errors=0,
                    rx_dropped=0,
                    tx_bytes=1,
                    tx_packets=1,
                    tx_errors=0,
                    tx_dropped=0,
                )
                for e in instance.plan.endpoints
            ),
        )

    async def processes(self, instance_id: str, ps_args: Sequence[str]) -> ProcessTable:
        instance = self._find(instance_id)
        return ProcessTable(
            titles=("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"),
            rows=tuple(
                (
                    job.process.user or "root",
                    str(job.pid),
                    "1",
                    "0",
                    "00:00",
                    "?",
                    "00:00:00",
                    " ".join(job.process.args),
                )
                for job in (instance.job, *instance.execs)
            ),
        )

    async def update(self, instance_id: str, limits: Limits) -> tuple[str, ...]:
        self._find(instance_id).limits = limits
        return ()

    async def set_network(
        self, instance_id: str, endpoints: Sequence[Endpoint], files: Sequence[EtcFile]
    ) -> None:
        instance = self._find(instance_id)
        instance.plan = dataclasses.replace(instance.plan, endpoints=tuple(endpoints), etc_files=tuple(files))

    @contextlib.asynccontextmanager
    async def files(self, plan: LaunchPlan) -> AsyncIterator[Files]:
        yield self._trees.setdefault(plan.id, FakeTree(plan.id))

    async def recover(self, plan: LaunchPlan) -> Liveness:
        instance = self._instances.get(plan.id)
        if instance is None:
            return Liveness.GONE
        if instance.status.done():
            return Liveness.EXITED
        return Liveness.PAUSED if instance.frozen else Liveness.RUNNING

    async def discard(self, plan: LaunchPlan) -> None:
        """Files stay (the engine keeps the root of a stopped instance); `forget` drops them too."""
        instance = self._instances.pop(plan.id, None)
        if instance is not None:
            for job in (instance.job, *instance.execs):
                job.kill()
                if job.task is not None:
                    await asyncio.wait([job.task])

    def forget(self, instance_id: str) -> None:
        """Drop the files of an instance: what removing its root does in the other backends."""
        self._trees.pop(instance_id, None)

    def _find(self, instance_id: str) -> _Instance:
        try:
            return self._instances[instance_id]
        except KeyError:
            raise NoSuchInstance(instance_id) from None

    def _pid(self) -> int:
        self._next_pid += 1
        return self._next_pid
