"""What is written down of a running VM, and how its end is read.  Synchronous, small local files.

`vm.json` in the run directory lets a daemon that comes later find the VM again.  The exit record and the
console are the guest's words: bounded and checked.  Not for instances' own records: the store has those.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from insula.errors import CorruptData
from insula.model import codec
from insula.model.instance import ExitStatus
from insula.system.files import write_atomic

_MOST_EXIT = 4096
_MOST_CONSOLE = 65_536
KILLED = 137
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{0,200})")
_NO_MEMORY = re.compile(rb"out of memory|no killable processes", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """`helpers` are virtiofsd's pids and start times.  `boot_id` is the host's: they end with it.
    `template` is the key of the one that it started from, "" for one that was booted; `has_root`: with its
    image's root mounted (`image_templates`).  `owner` names
    its cgroup ("" in records of before: the instance's id); `link` is its tap, if that is not its
    endpoint's; `reason` says why it was booted.  `nic_count`: how many interfaces QEMU was started with.
    `copy_of` says what it goes on from if that had a workload already; while it is `unconfirmed` its guest
    has not confirmed that it is another now."""

    pid: int
    started: int
    boot_id: str
    uid: int
    accelerator: str
    launched_ns: int
    helpers: tuple[tuple[int, int], ...] = ()
    template: str = ""
    has_root: bool = False
    owner: str = ""
    link: str = ""
    reason: str = ""
    nic_count: int = 1
    copy_of: str = ""
    unconfirmed: bool = False
    nics: tuple[tuple[str, str], ...] | None = None
    """(link, name in the guest) by slot, written before one is plugged in; ("", "") for a free slot.  None:
    they are as at its launch."""


def host_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def record_path(run_dir: str) -> str:
    return os.path.join(run_dir, "vm.json")


def write_record(run_dir: str, record: VmRecord) -> None:
    write_atomic(record_path(run_dir), codec.encode(record))


def read_record(run_dir: str) -> VmRecord | None:
    """None when there is none, or it cannot be read (a crash of the host)."""
    try:
        with open(record_path(run_dir), "rb") as file:
            return codec.decode(file.read(), VmRecord)
    except (FileNotFoundError, NotADirectoryError, CorruptData):
        return None


def find_records(base: str) -> Iterator[tuple[str, VmRecord]]:
    """(instance id, record) of every VM below a directory of run directories."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(base):
            record = read_record(os.path.join(base, name))
            if record is not None:
                yield name, record


def parse_exit(untrusted: bytes, *, not_before_ns: int, not_after_ns: int) -> ExitStatus | None:
    """The guest's exit record; None when it is not one.  A time outside the VM's life becomes its end."""
    line, newline, _ = untrusted[:_MOST_EXIT].partition(b"\n")
    if not newline:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    code, oom, when = value.get("code"), value.get("oom"), value.get("time_ns")
    if type(code) is not int or not 0 <= code <= 255 or type(oom) is not bool:
        return None
    if type(when) is not int or not not_before_ns <= when <= not_after_ns:
        when = not_after_ns
    return ExitStatus(code=code, oom_killed=oom, finished_at_ns=when)


def _end_of(path: str, most: int) -> bytes:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - most))
        return file.read(most)
    return b""


def console_end(run_dir: str) -> bytes:
    return _end_of(os.path.join(run_dir, "console.log"), _MOST_CONSOLE)


def qemu_end(run_dir: str) -> str:
    """What QEMU and its helpers complained of, for error messages."""
    return _end_of(os.path.join(run_dir, "qemu.log"), 2000).decode(errors="replace").strip()


def find_panic(console: bytes) -> str:
    """The last panic's reason, "" if there was none; printable."""
    found = _PANIC.findall(console)
    return "".join(c if c.isprintable() else "?" for c in found[-1].decode(errors="replace")) if found else ""


def read_exit(run_dir: str, launched_ns: int) -> ExitStatus | None:
    try:
        with open(os.path.join(run_dir, "exit"), "rb") as file:
            untrusted = file.read(_MOST_EXIT)
    except FileNotFoundError:
        return None
    return parse_exit(untrusted, not_before_ns=launched_ns, not_after_ns=time.time_ns())


def finalize_status(
    run_dir: str, launched_ns: int, *, killed: bool, host_oom: bool, exited: ExitStatus | None = None
) -> ExitStatus:
    """How a VM that is gone has ended: its own word (`exited`: by message), else what we did to it, else what
    broke."""
    if told := read_exit(run_dir, launched_ns) or exited:
        return told
    now = time.time_ns()
    if killed:
        return ExitStatus(code=KILLED, finished_at_ns=now)
    if host_oom:
        return ExitStatus(
            code=KILLED,
            finished_at_ns=now,
            oom_killed=True,
            error="the host killed the hypervisor: the virtual machine's memory limit was exceeded",
        )
    console = console_end(run_dir)
    if panic := find_panic(console):
        return ExitStatus(
            code=KILLED,
            finished_at_ns=now,
            oom_killed=bool(_NO_MEMORY.search(panic.encode())),
            error=f"the guest kernel panicked: {panic}",
        )
    detail = qemu_end(run_dir).splitlines()[-1:] or [""]
    return ExitStatus(
        code=KILLED,
        finished_at_ns=now,
        error="the virtual machine ended without saying how its workload did"
        + (f": {detail[0]}" if detail[0] else ""),
    )
