"""Backend: what the engine asks of an isolation.  Defended: a new verb needs a decision record.

Life of an instance, as the engine drives it:

    check(plan)      pure: refuse what this isolation cannot honour, before anything is made
    launch(plan)     everything up to, and not including, the first instruction of the workload;
                     the stdio exists, so `attach` works from here on
    release(id)      the workload runs
    wait(id)         … until it ends (also when the daemon was away meanwhile)
    discard(plan)    everything that launch made is gone; idempotent, also right after a crash

`launch` undoes itself when it fails.  After `recover` has answered RUNNING every verb works as if this
process had launched the instance itself.  Verbs for an id that is not launched raise NoSuchInstance.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from insula.isolation.plan import ExecPlan, GuestMachine, LaunchPlan
from insula.model.files import Change, PathStat
from insula.model.instance import ExitStatus
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import EtcFile
from insula.model.network import Endpoint
from insula.model.progress import Progress
from insula.model.stream import Sample, Stream
from insula.model.template import TemplateView


class Liveness(enum.Enum):
    """What `recover` finds of an instance that was running when the daemon last looked."""

    RUNNING = enum.auto()
    PAUSED = enum.auto()
    EXITED = enum.auto()  # it ended meanwhile: wait() answers at once with the recorded status
    GONE = enum.auto()  # no process and no record (the host was rebooted)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """For `docker info`: the programs behind a backend.  `problem` says why it cannot run, if so."""

    isolation: Isolation
    runtime: str
    version: str
    details: tuple[tuple[str, str], ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTable:
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Exec(Protocol):
    """A running exec."""

    @property
    def stream(self) -> Stream: ...

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """Exit code, 0–255."""
        ...

    async def resize(self, rows: int, cols: int) -> None: ...

    async def kill(self) -> None:
        """SIGKILL to the program; nothing when it has ended."""
        ...


class Files(Protocol):
    """Files of an instance, running or not.  Paths are absolute inside the instance, symlinks resolved
    inside it.  Archives are tar streams in pieces of at most 1 MiB, made and read with back-pressure.
    """

    async def stat(self, path: str) -> PathStat:
        """Of the path itself (a symlink is not followed).  Raises NoSuchPath."""
        ...

    def get(self, path: str) -> AsyncIterator[bytes]:
        """A tar whose members are named from the last part of `path` on, as Docker's."""
        ...

    async def put(
        self, path: str, archive: AsyncIterator[bytes], *, no_overwrite_dir: bool, copy_owner: bool
    ) -> None:
        """Unpack into the directory `path`.  `no_overwrite_dir`: refuse to replace a directory by a
        file and the reverse."""
        ...

    async def changes(self) -> tuple[Change, ...]:
        """Against the image, sorted by path."""
        ...

    def export(self) -> AsyncIterator[bytes]:
        """The whole root, without mounts, as a tar."""
        ...

    def layer(self) -> AsyncIterator[bytes]:
        """What differs from the image, as an OCI layer (whiteouts as `.wh.` files): for commit."""
        ...


class Backend(Protocol):
    isolation: Isolation

    async def start(self) -> None:
        """Once, when the daemon starts: probe the host's programs.  Never raises for a host that lacks
        them: `info().problem` says so and `launch` raises Unavailable."""
        ...

    async def stop(self) -> None:
        """The daemon ends; instances go on.  Close what this process holds."""
        ...

    def info(self) -> BackendInfo: ...

    def check(self, plan: LaunchPlan) -> tuple[str, ...]:
        """Warnings, of what Docker goes on without.  Raises UnsupportedField for what this isolation cannot
        honour."""
        ...

    async def launch(self, plan: LaunchPlan) -> int:
        """Returns the pid on the host: of the workload's init, or of the hypervisor.
        Raises CommandNotFound or CommandNotExecutable if that is already known here."""
        ...

    async def release(self, instance_id: str) -> None:
        """May also raise CommandNotFound or CommandNotExecutable; the instance has then ended."""
        ...

    async def wait(self, instance_id: str) -> ExitStatus:
        """All output is in the log when this returns.  Any number of callers."""
        ...

    async def signal(self, instance_id: str, signum: int) -> None:
        """To the workload's first process.  SIGKILL always ends the whole instance."""
        ...

    async def freeze(self, instance_id: str, frozen: bool) -> None: ...

    async def attach(self, instance_id: str) -> Stream:
        """A new client of the main process's stdio.  Output from now on; several clients share it."""
        ...

    async def resize(self, instance_id: str, rows: int, cols: int) -> None: ...

    async def exec(self, instance_id: str, plan: ExecPlan) -> Exec:
        """Raises CommandNotFound, CommandNotExecutable."""
        ...

    async def sample(self, instance_id: str) -> Sample: ...

    async def processes(self, instance_id: str, ps_args: Sequence[str]) -> ProcessTable: ...

    async def update(self, instance_id: str, limits: Limits) -> tuple[str, ...]:
        """Change the limits of a running instance.  Warnings: what holds only from its next start on."""
        ...

    async def set_network(
        self, instance_id: str, endpoints: Sequence[Endpoint], files: Sequence[EtcFile]
    ) -> None:
        """Let a running instance have these interfaces and no others, and these lines in its hosts and
        resolv.conf (docs/decisions/0011).  Idempotent; undoes itself when it fails.  Interfaces in a
        namespace of the host's are there, or gone, already.  Raises Conflict for one that cannot change."""
        ...

    def files(self, plan: LaunchPlan) -> AbstractAsyncContextManager[Files]:
        """Works whether the instance runs or not; may take seconds to open where it needs a guest."""
        ...

    async def recover(self, plan: LaunchPlan) -> Liveness: ...

    async def discard(self, plan: LaunchPlan) -> None: ...


@runtime_checkable
class GuestMaker(Protocol):
    """A backend whose instances boot a guest: it can be made before the first of them needs it."""

    async def make_guest(self, progress: Progress) -> object:
        """Fetch and build what is missing.  Raises Unavailable, Failure."""
        ...


class Captured(Protocol):
    """A running instance at one instant: memory, devices, disk.  Its memory goes with the last reference."""

    @property
    def machine(self) -> GuestMachine:
        """What a plan that goes on from it has to have."""
        ...

    @property
    def pause_ns(self) -> int:
        """For how long the workload stood still."""
        ...


@runtime_checkable
class Copier(Protocol):
    """A backend whose running instances can be copied live (docs/decisions/0009)."""

    def check_copyable(self, instance_id: str) -> None:
        """Raises InvalidRequest with the reason why this one cannot be, Conflict."""
        ...

    def capture(
        self, instance_id: str, upper_disk: str, *, leave_running: bool = True
    ) -> AbstractAsyncContextManager[Captured]:
        """Its disk is copied to the new file `upper_disk`.  The instance goes on as if nothing had been; or
        else it stands still while the caller has the copy, and is killed then.  Raises as `check_copyable`,
        and DiskFull, RuntimeFailed, GuestFailed; the instance goes on in that case, also when the caller
        raises, and there is no file."""
        ...

    async def save(self, captured: Captured, directory: str) -> None:
        """All but the disk, as files in a directory that is there.  Raises DiskFull."""
        ...

    async def load(self, directory: str) -> Captured:
        """What `save` has kept.  Raises CorruptData when it is damaged or from another time."""
        ...

    async def launch_copy(self, plan: LaunchPlan, captured: Captured, how: str) -> int:
        """As `launch`, but the workload is the captured one, and goes on with `release`.  The plan's disk is
        the caller's copy of the captured one; everything of its guest's that tells machines apart is new.
        `how` is told by `origin`."""
        ...


@runtime_checkable
class OomTeller(Protocol):
    """A backend that says at once when an instance had too little memory (docs/decisions/0019)."""

    def tell_oom(self, told: Callable[[str], None]) -> None:
        """From now on call `told`, on the event loop, with the id of an instance in which the kernel has
        killed something for want of memory, or would have if it might; each time."""
        ...


@runtime_checkable
class TemplateKeeper(Protocol):
    """A backend whose instances start from frozen guests (docs/decisions/0008)."""

    def origin(self, instance_id: str) -> Mapping[str, str]:
        """How an instance that runs came to be, for its record and inspect: `Start` (`boot`, `clone`, `ready
        clone`), `Template`, and the `Reason` for a boot."""
        ...

    async def templates(self) -> Sequence[TemplateView]:
        """Newest first."""
        ...

    async def remove_template(self, key: str) -> TemplateView:
        """Instances that run are not harmed; the next of its size has it made anew.  Raises NotFound."""
        ...

    async def warm_template(
        self, vcpus: int | None, memory_mib: int | None, progress: Progress
    ) -> TemplateView:
        """Made, or loaded, for machines of this size; None: what the settings say.  Raises InvalidRequest,
        Unavailable, RuntimeFailed."""
        ...
