"""What a VM is using, as the host sees it; and `docker top` from the guest's process list.

Synchronous readers of cgroup and /sys files, and pure tables.
"""

from __future__ import annotations

import functools
import os
import pwd
import time
from collections.abc import Callable, Sequence

from insula.errors import UnsupportedField
from insula.isolation.backend import ProcessTable
from insula.isolation.vm.wire import Fields
from insula.model.network import Endpoint
from insula.model.stream import NetworkSample, Sample
from insula.system import cgroups
from insula.system.cgroups import Layout

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _link_counter(link: str, name: str) -> int:
    return cgroups.read_number(f"/sys/class/net/{link}/statistics/{name}") or 0


def sample_network(endpoint: Endpoint) -> NetworkSample:
    """From the tap's counters; what the host receives on it the guest has sent."""

    def count(name: str) -> int:
        return _link_counter(endpoint.link, name)

    return NetworkSample(
        interface=endpoint.interface,
        rx_bytes=count("tx_bytes"),
        rx_packets=count("tx_packets"),
        rx_errors=count("tx_errors"),
        rx_dropped=count("tx_dropped"),
        tx_bytes=count("rx_bytes"),
        tx_packets=count("rx_packets"),
        tx_errors=count("rx_errors"),
        tx_dropped=count("rx_dropped"),
    )


def _process_times(pids: Sequence[int]) -> tuple[int, int]:
    """User and system time of processes, in ns."""
    user = system = 0
    for pid in pids:
        text = cgroups.read(f"/proc/{pid}/stat") or ""
        fields = text.rpartition(")")[2].split()
        if len(fields) > 12:
            user += int(fields[11]) * _TICK_NS
            system += int(fields[12]) * _TICK_NS
    return user, system


def _process_io(pids: Sequence[int]) -> tuple[int, int]:
    """Bytes that processes caused to be read from and written to disks."""
    read = written = 0
    for pid in pids:
        table = cgroups.read_table(f"/proc/{pid}/io") or {}
        read += table.get("read_bytes:", 0)
        written += table.get("write_bytes:", 0)
    return read, written


def _resident(pids: Sequence[int]) -> int:
    total = 0
    for pid in pids:
        words = (cgroups.read(f"/proc/{pid}/statm") or "").split()
        total += int(words[1]) * _PAGE if len(words) > 1 else 0
    return total


def take_sample(
    layout: Layout,
    group: str,
    pids: Sequence[int],
    *,
    vcpus: int,
    memory_mib: int,
    guest_pids: int,
    pids_limit: int,
    endpoints: Sequence[Endpoint],
) -> Sample:
    cpu = layout.path("cpu", group) or layout.path("", group) or ""
    memory = layout.path("memory", group) or ""
    throttled = cgroups.read_table(f"{cpu}/cpu.stat")
    user, system = _process_times(pids)
    total = throttled.get("usage_usec", 0) * 1000
    if not total and (accounting := layout.path("cpuacct", group)):
        total = cgroups.read_number(f"{accounting}/cpuacct.usage") or 0
    name = "memory.current" if layout.version == 2 else "memory.usage_in_bytes"
    read, written = _process_io(pids)
    return Sample(
        taken_ns=time.time_ns(),
        cpu_total_ns=total or user + system,
        cpu_user_ns=user,
        cpu_system_ns=system,
        cpus_online=vcpus,
        periods=throttled.get("nr_periods", 0),
        throttled_periods=throttled.get("nr_throttled", 0),
        throttled_ns=throttled.get("throttled_usec", 0) * 1000 or throttled.get("throttled_time", 0),
        memory_bytes=cgroups.read_number(f"{memory}/{name}") or _resident(pids),
        memory_limit_bytes=memory_mib * 1024 * 1024,
        memory_stats=cgroups.read_table(f"{memory}/memory.stat") or None,
        pids=guest_pids,
        pids_limit=max(0, pids_limit),
        block_read_bytes=read,
        block_write_bytes=written,
        networks=tuple(sample_network(endpoint) for endpoint in endpoints),
    )


def host_oom_kills(layout: Layout, group: str) -> int:
    """How many processes of the group the host's kernel has killed for lack of memory."""
    directory = layout.path("memory", group) or ""
    file = "memory.events" if layout.version == 2 else "memory.oom_control"
    return cgroups.read_table(f"{directory}/{file}").get("oom_kill", 0)


# docker top

_USER_WIDTH = 8  # of ps
_Row = tuple[str, ...]  # pid, ppid, user, tty, start (seconds since 1970), cpu ms, rss KiB, command


def _clock(milliseconds: str) -> str:
    seconds = int(milliseconds) // 1000 if milliseconds.isdecimal() else 0
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _started(text: str) -> str:
    if not text.isdecimal() or len(text) > 12:
        return "?"
    return time.strftime("%H:%M", time.localtime(int(text)))


@functools.lru_cache(maxsize=256)
def _user(uid: str) -> str:
    """As ps names it: by the host's users, as for a container; the number where the name is too long."""
    try:
        name = pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError, OverflowError):
        return uid
    return name if len(name) <= _USER_WIDTH else uid


_COLUMNS: dict[str, tuple[str, Callable[[_Row], str]]] = {
    "pid": ("PID", lambda r: r[0]),
    "ppid": ("PPID", lambda r: r[1]),
    "user": ("USER", lambda r: _user(r[2])),
    "uid": ("UID", lambda r: _user(r[2])),
    "tty": ("TTY", lambda r: r[3]),
    "stime": ("STIME", lambda r: _started(r[4])),
    "start": ("START", lambda r: _started(r[4])),
    "time": ("TIME", lambda r: _clock(r[5])),
    "rss": ("RSS", lambda r: r[6]),
    "cmd": ("CMD", lambda r: r[7]),
    "args": ("COMMAND", lambda r: r[7]),
    "command": ("COMMAND", lambda r: r[7]),
    "comm": ("COMMAND", lambda r: r[7].split(" ", 1)[0].rpartition("/")[2]),
    "c": ("C", lambda r: "0"),
}
_PRESETS = {
    "-ef": ("uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"),
    "aux": ("user", "pid", "rss", "tty", "start", "time", "args"),
}


def columns_of(ps_args: Sequence[str]) -> tuple[str, ...]:
    """The columns that ps would print.  Raises UnsupportedField for options that the agent cannot serve."""
    words = " ".join(ps_args).split()
    if not words or words in (["-ef"], ["-fe"], ["-e", "-f"]):
        return _PRESETS["-ef"]
    if words in (["aux"], ["-aux"], ["axu"]):
        return _PRESETS["aux"]
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("-e", "-A", "ax", "-ax"):
            continue
        if word in ("-o", "o", "-eo", "axo", "-Ao"):
            listed = next(rest, "")
        elif word.startswith(("-o", "-eo")):
            listed = word.partition("o")[2]
        else:
            raise UnsupportedField(
                "ps_args",
                f"{word!r}: a virtual machine's processes are listed by its agent",
                hint="it serves -ef, aux and -o with " + ", ".join(sorted(_COLUMNS)),
            )
        names += [name for name in listed.split(",") if name]
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown or not names:
        raise UnsupportedField(
            "ps_args",
            f"unknown column {', '.join(unknown)!r} for a virtual machine",
            hint="it serves " + ", ".join(sorted(_COLUMNS)),
        )
    return tuple(names)


def finalize_table(untrusted: Fields, ps_args: Sequence[str]) -> ProcessTable:
    columns = columns_of(ps_args)
    rows: list[_Row] = []
    for line in untrusted.get("row", [])[:65_536]:
        cells = tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in line.split("\t", 7))
        if len(cells) == 8:
            rows.append(cells)
    return ProcessTable(
        titles=tuple(_COLUMNS[name][0] for name in columns),
        rows=tuple(tuple(_COLUMNS[name][1](row) for name in columns) for row in rows),
    )
