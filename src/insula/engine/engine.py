"""Engine: the facade that the doors call, and the only place that knows the whole story of an instance.

Async; every method raises `insula.errors` only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

from insula.config import Settings
from insula.engine.types import (
    Archive,
    CommitSpec,
    Created,
    DiskUsage,
    EngineInfo,
    ExecSpec,
    ExecView,
    InstanceSizes,
    InstanceView,
    LogQuery,
    LogRecord,
    WaitCondition,
)
from insula.errors import NotImplementedYet
from insula.events import EventBus
from insula.isolation.backend import Backend, ProcessTable
from insula.model.files import Change, PathStat
from insula.model.image import Image
from insula.model.instance import ExitStatus, Instance, InstanceSpec, RestartPolicy
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.reports import PruneFilters, PruneReport
from insula.model.stream import Sample, Stream


class Engine:
    """Signatures first (the API is built against them at the same time); bodies follow."""

    async def start(self) -> None:
        """Recover what ran when the daemon last looked, then take requests."""
        raise NotImplementedYet("start")

    async def stop(self) -> None:
        """The daemon ends; instances go on."""
        raise NotImplementedYet("stop")

    async def create(self, spec: InstanceSpec, name: str | None) -> Created:
        raise NotImplementedYet("create")

    async def start_instance(self, ref: str) -> None:
        raise NotImplementedYet("start_instance")

    async def stop_instance(self, ref: str, *, timeout_s: int | None = None, signal: str | None = None) -> None:
        raise NotImplementedYet("stop_instance")

    async def kill(self, ref: str, signal: str = "KILL") -> None:
        raise NotImplementedYet("kill")

    async def restart(self, ref: str, *, timeout_s: int | None = None, signal: str | None = None) -> None:
        raise NotImplementedYet("restart")

    async def pause(self, ref: str) -> None:
        raise NotImplementedYet("pause")

    async def unpause(self, ref: str) -> None:
        raise NotImplementedYet("unpause")

    async def rename(self, ref: str, new: str) -> None:
        raise NotImplementedYet("rename")

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        raise NotImplementedYet("remove")

    def wait(self, ref: str, condition: WaitCondition = WaitCondition.NOT_RUNNING) -> Awaitable[ExitStatus]:
        """Registered when this returns.  Raises NoSuchInstance at once."""
        raise NotImplementedYet("wait")

    def find(self, ref: str) -> Instance:
        """By id, id prefix, name or /name.  Raises NoSuchInstance, InvalidRequest when ambiguous."""
        raise NotImplementedYet("find")

    def list(self, all: bool = False) -> tuple[Instance, ...]:
        """Newest first; without `all` those that run (paused and restarting ones included)."""
        raise NotImplementedYet("list")

    def describe(self, ref: str) -> InstanceView:
        raise NotImplementedYet("describe")

    async def sizes(self, ref: str) -> InstanceSizes:
        raise NotImplementedYet("sizes")

    async def attach(
        self, ref: str, *, stdin: bool, stdout: bool, stderr: bool, logs: bool, stream: bool
    ) -> Stream:
        """Legal before start: connects when launched.  Which channels are shown is filtered here."""
        raise NotImplementedYet("attach")

    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]:
        """Raises NoSuchInstance at once."""
        raise NotImplementedYet("logs")

    async def resize(self, ref: str, rows: int, cols: int) -> None:
        raise NotImplementedYet("resize")

    async def exec_create(self, ref: str, spec: ExecSpec) -> str:
        raise NotImplementedYet("exec_create")

    async def exec_start(
        self, exec_id: str, *, detach: bool, tty: bool, console_rows: int = 0, console_cols: int = 0
    ) -> Stream | None:
        """None when detached."""
        raise NotImplementedYet("exec_start")

    async def exec_resize(self, exec_id: str, rows: int, cols: int) -> None:
        raise NotImplementedYet("exec_resize")

    def exec_inspect(self, exec_id: str) -> ExecView:
        raise NotImplementedYet("exec_inspect")

    async def top(self, ref: str, ps_args: Sequence[str]) -> ProcessTable:
        raise NotImplementedYet("top")

    async def sample(self, ref: str) -> Sample:
        raise NotImplementedYet("sample")

    async def update(
        self, ref: str, *, limits: Limits | None = None, restart: RestartPolicy | None = None
    ) -> tuple[str, ...]:
        """Returns warnings."""
        raise NotImplementedYet("update")

    async def stat_path(self, ref: str, path: str) -> PathStat:
        raise NotImplementedYet("stat_path")

    async def get_archive(self, ref: str, path: str) -> Archive:
        raise NotImplementedYet("get_archive")

    async def put_archive(
        self,
        ref: str,
        path: str,
        archive: AsyncIterator[bytes],
        *,
        no_overwrite_dir: bool = False,
        copy_owner: bool = False,
    ) -> None:
        raise NotImplementedYet("put_archive")

    async def changes(self, ref: str) -> tuple[Change, ...]:
        raise NotImplementedYet("changes")

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        """`pieces = await engine.export(ref)`."""
        raise NotImplementedYet("export")

    async def commit(self, ref: str, spec: CommitSpec) -> Image:
        raise NotImplementedYet("commit")

    async def remove_image(self, ref: str, *, force: bool = False, prune_children: bool = True) -> object:
        """As Images.remove, with what the engine knows of use."""
        raise NotImplementedYet("remove_image")

    async def prune_images(self, filters: PruneFilters, *, dangling_only: bool = True) -> PruneReport:
        raise NotImplementedYet("prune_images")

    async def remove_volume(self, name: str, *, force: bool = False) -> None:
        raise NotImplementedYet("remove_volume")

    async def prune_volumes(self, filters: PruneFilters, *, all: bool = False) -> PruneReport:
        """Anonymous ones only, unless `all`."""
        raise NotImplementedYet("prune_volumes")

    async def prune_instances(self, filters: PruneFilters) -> PruneReport:
        raise NotImplementedYet("prune_instances")

    async def disk_usage(self) -> DiskUsage:
        raise NotImplementedYet("disk_usage")

    def info(self) -> EngineInfo:
        raise NotImplementedYet("info")


_USED = (Settings, EventBus, Backend, Mapping, Isolation)
