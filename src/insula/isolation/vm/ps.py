"""`docker top`: the guest's process list in the columns that ps would print.  Pure, but for users' names.

The agent tells everything of each process; which options mean which columns, and their looks, are those of
procps's ps(1).  Selection has no meaning here: it is always the workload's processes that are shown.
"""

from __future__ import annotations

import functools
import grp
import pwd
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from insula.errors import InvalidRequest, UnsupportedField
from insula.isolation.backend import ProcessTable
from insula.isolation.vm.wire import Fields

_USER_WIDTH = 8  # of ps
_DAY_S = 86_400
_MOST_TIME = 1 << 36
_MOST_ROWS = 65_536
_PAGE_KIB = 4  # of x86-64
_CELLS = (
    "pid", "ppid", "pgid", "sid", "tpgid", "tty", "state", "uid", "euid", "gid", "egid", "flags", "start",
    "cpu_ms", "vsz", "rss", "priority", "nice", "threads", "cpu", "locked", "comm", "args",
)  # fmt: skip
_TEXTS = ("tty", "state", "comm", "args")


@dataclass(frozen=True, slots=True)
class _Row:
    """`text` and `number` by the agent's names: sizes in KiB, `start` in seconds since 1970; what it says of
    the guest as a whole is the same in each."""

    text: Mapping[str, str]
    number: Mapping[str, int]
    now: int
    memory_kib: int

    @property
    def age_s(self) -> int:
        return max(1, self.now - self.number["start"])

    @property
    def cpu_s(self) -> int:
        return self.number["cpu_ms"] // 1000


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, _DAY_S)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _elapsed(seconds: int) -> str:
    clock = _clock(seconds)
    return clock.removeprefix("00:") if seconds < _DAY_S else clock


def _time(seconds: int) -> int:
    return max(0, min(seconds, _MOST_TIME))


def _date(row: _Row, form: str) -> str:
    return time.strftime(form, time.localtime(_time(row.number["start"])))


def _stime(row: _Row) -> str:
    then, now = time.localtime(_time(row.number["start"])), time.localtime(_time(row.now))
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%b%d" if then.tm_year == now.tm_year else "%Y", then)


def _stat(row: _Row) -> str:
    n = row.number
    marks = (
        ("<", n["nice"] < 0),
        ("N", n["nice"] > 0),
        ("L", n["locked"] > 0),
        ("s", n["sid"] == n["pid"]),
        ("l", n["threads"] > 1),
        ("+", n["tpgid"] == n["pgid"]),
    )
    return row.text["state"] + "".join(mark for mark, is_so in marks if is_so)


def _percent_cpu(row: _Row) -> float:
    return row.number["cpu_ms"] / 10 / row.age_s


def _percent_memory(row: _Row) -> float:
    return min(99.9, row.number["rss"] * 100 / max(1, row.memory_kib))


def _fitting(name: str, number: int) -> str:
    return name if len(name) <= _USER_WIDTH else str(number)


@functools.lru_cache(maxsize=256)
def _user(uid: int) -> str:
    """As ps names it: by the host's users, as for a container; the number where the name is too long."""
    try:
        return _fitting(pwd.getpwuid(uid).pw_name, uid)
    except (KeyError, OverflowError):
        return str(uid)


@functools.lru_cache(maxsize=256)
def _group(gid: int) -> str:
    try:
        return _fitting(grp.getgrgid(gid).gr_name, gid)
    except (KeyError, OverflowError):
        return str(gid)


def _of(name: str) -> Callable[[_Row], str]:
    if name in _TEXTS:
        return lambda row: row.text[name]
    return lambda row: str(row.number[name])


def _named(look_up: Callable[[int], str], name: str) -> Callable[[_Row], str]:
    return lambda row: look_up(row.number[name])


_Column = tuple[str, Callable[[_Row], str]]  # title, cell


def _same(title: str, cell: Callable[[_Row], str], *names: str) -> dict[str, _Column]:
    return dict.fromkeys(names, (title, cell))


_COLUMNS: dict[str, _Column] = {
    "pid": ("PID", _of("pid")),
    "ppid": ("PPID", _of("ppid")),
    "pgid": ("PGID", _of("pgid")),
    **_same("PGRP", _of("pgid"), "pgrp"),
    **_same("SID", _of("sid"), "sid"),
    **_same("SESS", _of("sid"), "sess", "session"),
    **_same("TPGID", _of("tpgid"), "tpgid"),
    **_same("TT", _of("tty"), "tt", "tty"),
    **_same("TTY", _of("tty"), "tname"),
    **_same("S", _of("state"), "s", "state"),
    **_same("STAT", _stat, "stat"),
    **_same("USER", _named(_user, "euid"), "user", "uname"),
    **_same("EUSER", _named(_user, "euid"), "euser"),
    **_same("RUSER", _named(_user, "uid"), "ruser"),
    **_same("UID", _of("euid"), "uid"),
    **_same("EUID", _of("euid"), "euid"),
    **_same("RUID", _of("uid"), "ruid"),
    **_same("GROUP", _named(_group, "egid"), "group"),
    **_same("EGROUP", _named(_group, "egid"), "egroup"),
    **_same("RGROUP", _named(_group, "gid"), "rgroup"),
    **_same("GID", _of("egid"), "gid"),
    **_same("EGID", _of("egid"), "egid"),
    **_same("RGID", _of("gid"), "rgid"),
    **_same("F", lambda row: f"{row.number['flags'] >> 6 & 7:x}", "f", "flag", "flags"),
    **_same("STIME", _stime, "stime"),
    **_same("START", _stime, "start_time"),
    **_same("START", lambda row: _date(row, "%H:%M" if row.age_s < _DAY_S else "%b%d"), "bsdstart"),
    **_same("STARTED", lambda row: _date(row, "%H:%M:%S" if row.age_s < _DAY_S else "%b %d"), "start"),
    **_same("STARTED", lambda row: _date(row, "%a %b %e %H:%M:%S %Y"), "lstart"),
    **_same("ELAPSED", lambda row: _elapsed(max(0, row.now - row.number["start"])), "etime"),
    **_same("ELAPSED", lambda row: str(max(0, row.now - row.number["start"])), "etimes"),
    **_same("TIME", lambda row: _clock(row.cpu_s), "time", "cputime"),
    **_same("TIME", lambda row: f"{row.cpu_s // 60}:{row.cpu_s % 60:02}", "bsdtime"),
    **_same("TIME", lambda row: str(row.cpu_s), "times", "cputimes"),
    **_same("%CPU", lambda row: f"{_percent_cpu(row):.1f}", "%cpu", "pcpu"),
    **_same("C", lambda row: str(min(99, int(_percent_cpu(row)))), "c"),
    **_same("%MEM", lambda row: f"{_percent_memory(row):.1f}", "%mem", "pmem"),
    **_same("VSZ", _of("vsz"), "vsz", "vsize"),
    **_same("RSS", _of("rss"), "rss", "rssize"),
    **_same("RSZ", _of("rss"), "rsz"),
    **_same("SZ", lambda row: str(row.number["vsz"] // _PAGE_KIB), "sz"),
    **_same("PRI", lambda row: str(39 - row.number["priority"]), "pri"),
    **_same("PRI", lambda row: str(60 + row.number["priority"]), "opri"),
    **_same("NI", _of("nice"), "ni", "nice"),
    **_same("NLWP", _of("threads"), "nlwp"),
    **_same("THCNT", _of("threads"), "thcount"),
    **_same("PSR", _of("cpu"), "psr"),
    **_same("ADDR", lambda row: "-", "addr"),
    **_same("WCHAN", lambda row: "-", "wchan"),
    **_same("COMMAND", _of("comm"), "comm", "ucomm"),
    **_same("CMD", _of("comm"), "ucmd"),
    **_same("CMD", _of("args"), "cmd"),
    **_same("COMMAND", _of("args"), "args", "command"),
}
_FULL_USER: _Column = ("UID", _COLUMNS["user"][1])  # the title that `-f` has for it
_END = ("tname", "time", "ucmd")
_FORMATS: dict[str, tuple[str, ...]] = {
    "": ("pid", *_END),
    "f": ("pid", "ppid", "c", "stime", "tname", "time", "cmd"),
    "F": ("pid", "ppid", "c", "sz", "rss", "psr", "stime", "tname", "time", "cmd"),
    "j": ("pid", "pgid", "sid", *_END),
    "l": ("f", "s", "uid", "pid", "ppid", "c", "opri", "ni", "addr", "sz", "wchan", *_END),
    "bsd": ("pid", "tname", "stat", "bsdtime", "args"),
    "bsd j": ("ppid", "pid", "pgid", "sid", "tname", "tpgid", "stat", "uid", "bsdtime", "args"),
    "bsd l": (
        "f", "uid", "pid", "ppid", "opri", "ni", "vsz", "rss", "wchan", "stat", "tname", "bsdtime", "args",
    ),
    "bsd u": (
        "user", "pid", "%cpu", "%mem", "vsz", "rss", "tname", "stat", "start_time", "bsdtime", "args",
    ),
}  # fmt: skip
_WITH_FULL_USER = ("f", "F")
_CHOOSING, _CHOOSING_BSD = "eAadw", "axwg"
"""Letters of options that choose processes, or how wide lines may be: without effect here."""


def columns_of(ps_args: Sequence[str]) -> tuple[_Column, ...]:
    """What ps would print.  Raises UnsupportedField for options that are not served here, and InvalidRequest,
    in Docker's words, when there is no process id among the columns."""
    own: list[_Column] | None = None
    form = ""
    words = iter(" ".join(ps_args).split() or ["-ef"])
    for word in words:
        bsd, letters = not word.startswith("-"), word.removeprefix("-")
        if not letters:
            raise _not_served(word)
        form = form or ("bsd" if bsd else "")
        for at, letter in enumerate(letters):
            if letter == "o":
                own = (own or []) + _own_columns(letters[at + 1 :] or next(words, ""))
                break
            named = f"bsd {letter}" if bsd else letter
            if named in _FORMATS:
                form = named
            elif letter not in (_CHOOSING_BSD if bsd else _CHOOSING):
                raise _not_served(word)
    found = own
    if found is None:
        found = [_COLUMNS[name] for name in _FORMATS[form]]
        found[:0] = [_FULL_USER] if form in _WITH_FULL_USER else []
    if all(title != "PID" for title, _ in found):
        raise InvalidRequest("Couldn't find PID field in ps output")
    return tuple(found)


def _own_columns(listed: str) -> list[_Column]:
    """Of `-o`: names with commas between them, each perhaps with a title (`pid=PID`)."""
    found = []
    for text in filter(None, listed.split(",")):
        name, equals, title = text.partition("=")
        if name not in _COLUMNS:
            raise UnsupportedField(
                "ps_args",
                f"unknown column {name!r} for a virtual machine",
                hint="it serves " + ", ".join(sorted(_COLUMNS)),
            )
        found.append((title, _COLUMNS[name][1]) if equals else _COLUMNS[name])
    return found


def _not_served(word: str) -> UnsupportedField:
    return UnsupportedField(
        "ps_args",
        f"{word!r}: a virtual machine's processes are listed by its agent, not by the host's ps",
        hint="it serves -e, -f, -F, -l, -j, aux, j, l, and -o with columns",
    )


def finalize_table(untrusted: Fields, columns: Sequence[_Column]) -> ProcessTable:
    """`columns`: of `columns_of`."""
    return ProcessTable(
        titles=tuple(title for title, _ in columns),
        rows=tuple(tuple(cell(row) for _, cell in columns) for row in _rows(untrusted)),
    )


def _rows(untrusted: Fields) -> Iterator[_Row]:
    now = _number((untrusted.get("now") or [""])[0])
    memory_kib = _number((untrusted.get("mem_total_kib") or [""])[0])
    for line in untrusted.get("row", [])[:_MOST_ROWS]:
        cells = line.split("\t", len(_CELLS) - 1)
        if len(cells) == len(_CELLS):
            named = dict(zip(_CELLS, cells, strict=True))
            yield _Row(
                text={name: _printable(named[name]) for name in _TEXTS},
                number={name: _number(named[name]) for name in _CELLS if name not in _TEXTS},
                now=now,
                memory_kib=memory_kib,
            )


def _printable(untrusted: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in untrusted)


def _number(untrusted: str) -> int:
    """0 for what is none.  Ids and sizes fit 63 bits."""
    digits = untrusted.removeprefix("-")
    if not digits.isdecimal() or len(digits) > 18 or not digits.isascii():
        return 0
    return int(untrusted)
