"""Child processes and other people's, by pidfd: start, watch, signal, without threads.

`spawn` is synchronous and fast (posix_spawn; about 1 ms); it may be called in a thread.  `Watch` belongs to
an event loop.  Not for programs whose output is wanted: that is `run`.

A process is taken for dead as soon as it is a zombie: whoever should reap it may take its time (a container's
PID 1 is not always quick).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence

from insula.errors import ProgramMissing
from insula.system.run import PACKAGES

# Python ignores these, and what is ignored stays ignored through exec: a workload must not inherit that
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdio: tuple[int, int, int],
    pass_fds: Mapping[int, int] | None = None,
    new_session: bool = False,
    urgent: bool = False,
) -> int:
    """Start `argv[0]` (an absolute path) and return its pid, which the caller must wait for.

    `stdio` are the descriptors it gets as 0, 1 and 2.  `pass_fds`: ours → the number it gets (3 and up).
    `urgent`: no ordinary process takes a CPU from it, where the host allows that, until `make_ordinary`; its
    children are ordinary.  Raises ProgramMissing.
    """
    passed = dict(pass_fds or {})
    # lift out of the way first: one of ours may be a number that is wanted for another
    lifted = {old: fcntl.fcntl(old, fcntl.F_DUPFD_CLOEXEC, 64) for old in {*stdio, *passed}}
    try:
        actions = [(os.POSIX_SPAWN_DUP2, lifted[old], new) for new, old in enumerate(stdio)]
        actions += [(os.POSIX_SPAWN_DUP2, lifted[old], new) for old, new in passed.items()]
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            dict(env),
            file_actions=actions,
            setsid=new_session,
            setsigmask=(),
            setsigdef=_RESET_SIGNALS,
        )
        if urgent:
            _make_urgent(pid)
        return pid
    except FileNotFoundError:
        raise ProgramMissing(argv[0], package=PACKAGES.get(argv[0].rpartition("/")[2])) from None
    finally:
        for fd in lifted.values():
            os.close(fd)


def _make_urgent(pid: int) -> None:
    """posix_spawn itself cannot: glibc knows no policy that is reset on fork."""
    # it has ended, or there is no CAP_SYS_NICE, or no real-time budget for our cgroup
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.sched_setscheduler(pid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def make_ordinary(pid: int) -> None:
    """Undo what `urgent` did.  Does nothing when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def keep_descriptors() -> None:
    """Let no descriptor above 2 that this process was itself started with go on to programs it starts."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)


def start_time(pid: int) -> int | None:
    """When it started, in clock ticks since boot: with the pid, a name that is not used twice.
    None when there is no such process, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether it still is the process that started then."""
    return pid > 0 and start_time(pid) == started


class Watch:
    """Tells when a process ends.  Any number of waiters; `close` when done with it."""

    def __init__(self, pid: int, *, child: bool = False) -> None:
        """`child`: it is ours, so reap it.  Raises ProcessLookupError when it is gone and not ours."""
        self.pid = pid
        self._child = child
        self._fd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        self._loop.remove_reader(self._fd)
        code: int | None = None
        if self._child:
            with contextlib.suppress(ChildProcessError):
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if not self._ended.done():
            self._ended.set_result(code)

    @property
    def ended(self) -> bool:
        return self._ended.done()

    async def wait(self) -> int | None:
        """The exit code (negative: a signal) of a child of ours; None for somebody else's."""
        return await asyncio.shield(self._ended)

    def signal(self, signum: int) -> None:
        """Does nothing when it has ended."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signum)

    def close(self) -> None:
        """Stop watching.  Waiters are cancelled.  A child that still runs becomes somebody else's to reap."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.cancel()
