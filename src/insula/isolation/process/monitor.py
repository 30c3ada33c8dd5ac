"""conmon: how one is started, what it says, and what it leaves behind.  Async where it waits.

conmon holds the stdio of a container, writes its log and its exit code, and goes on when the daemon does not.
Its files are in the instance's run directory: `attach` (socket), `ctl` (FIFO), `pid`, the exit code under the
instance's id, and our record of who is who.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass

from insula.errors import CorruptData, RuntimeFailed
from insula.isolation.plan import LaunchPlan
from insula.isolation.process import complaints
from insula.isolation.process.attach import settle
from insula.isolation.process.runtimes import Runtime
from insula.model import codec
from insula.system.pidfd import spawn
from insula.system.run import fixed_environment

_RECORD = "process.json"
_FILES = ("config.json", "pid", "attach", "ctl", "winsz", "oom", _RECORD)
_SYNC_FD = 3
_CREATE_LIMIT_S = 60.0
_MAX_SYNC_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who is who, for a daemon that comes later.  Start times are clock ticks since the boot `boot_id`."""

    boot_id: str
    runtime: str
    conmon_pid: int
    conmon_started: int
    init_pid: int = 0
    init_started: int = 0


def conmon_argv(conmon: str, runtime: Runtime, plan: LaunchPlan) -> list[str]:
    """conmon's command line for one container."""
    console, directory = plan.console, plan.run_dir
    argv = [
        conmon,
        "--api-version", "1",
        "--sync",
        "--full-attach",
        "--no-sync-log",
        "--log-level", "error",
        "--cid", plan.id,
        "--cuuid", plan.id,
        "--name", plan.id[:12],
        "--bundle", directory,
        "--exit-dir", directory,
        "--container-pidfile", f"{directory}/pid",
        "--log-path", f"k8s-file:{console.log_path}" if console.log_path else "none",
        "--runtime", runtime.program,
    ]  # fmt: skip
    for option in runtime.options():
        argv += ["--runtime-arg", option]
    if plan.process.tty:
        argv.append("--terminal")
    if console.open_stdin:
        argv.append("--stdin")
        if not console.stdin_once:
            argv.append("--leave-stdin-open")
    return argv


@dataclass(frozen=True, slots=True)
class Started:
    """conmon's pid (a child of ours), and the end of the pipe on which it will tell the container's."""

    pid: int
    sync_fd: int


def start_conmon(argv: list[str], directory: str) -> Started:
    """To be called in the launcher's thread: conmon leaves files in its working directory."""
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.set_blocking(reader, False)
        os.chdir(directory)
        environment = fixed_environment({"_OCI_SYNCPIPE": str(_SYNC_FD)})
        pid = spawn(argv, environment, stdio=(null, null, null), pass_fds={writer: _SYNC_FD})
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.chdir("/")
        os.close(writer)
        os.close(null)
    return Started(pid, reader)


async def read_container_pid(started: Started, program: str) -> int:
    """What conmon says once the runtime has created the container.  Closes the pipe.
    Raises CommandNotFound, CommandNotExecutable, RuntimeFailed."""
    try:
        async with asyncio.timeout(_CREATE_LIMIT_S):
            line = await _read_line(started.sync_fd)
    except TimeoutError:
        raise RuntimeFailed(
            f"the OCI runtime did not create the container in {_CREATE_LIMIT_S:.0f} s"
        ) from None
    finally:
        os.close(started.sync_fd)
    try:
        document = json.loads(line) if line else {"data": -1}
        number, said = int(document["data"]), str(document.get("message", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeFailed(f"conmon answered {line[:200]!r}") from error
    if number <= 0:
        raise complaints.translate(said, program)
    return number


async def _read_line(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    got = bytearray()
    while not got.endswith(b"\n") and len(got) < _MAX_SYNC_BYTES:
        try:
            piece = os.read(fd, 8192)
        except BlockingIOError:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(fd, settle, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
            continue
        if not piece:
            break
        got += piece
    return bytes(got)


def write_record(directory: str, record: Record) -> None:
    """Not synced: it is worth nothing after a reboot."""
    path = f"{directory}/{_RECORD}"
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(codec.encode(record))
    os.rename(f"{path}.new", path)


def read_record(directory: str) -> Record | None:
    try:
        with open(f"{directory}/{_RECORD}", encoding="ascii") as file:
            return codec.decode(file.read(), Record)
    except (FileNotFoundError, CorruptData):
        return None


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def read_exit(directory: str, instance_id: str) -> tuple[int, int] | None:
    """(exit code, time in ns) as conmon recorded them; None if it did not."""
    path = f"{directory}/{instance_id}"
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
            return int(text) & 255, os.fstat(file.fileno()).st_mtime_ns
    except (FileNotFoundError, ValueError):
        return None


def resize(directory: str, rows: int, cols: int) -> None:
    """conmon takes at most 1000 either way.  Raises RuntimeFailed when it does not listen."""
    try:
        fd = os.open(f"{directory}/ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, f"1 {min(rows, 1000)} {min(cols, 1000)}\n".encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailed(f"cannot resize the terminal: {error.strerror}") from error


def remove_files(directory: str, instance_id: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        ours = {*_FILES, f"{_RECORD}.new", instance_id}
        for name in os.listdir(directory):
            if name in ours or name.startswith("exec-"):
                os.unlink(f"{directory}/{name}")
