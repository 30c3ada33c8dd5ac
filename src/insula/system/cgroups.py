"""Control groups, version 1 and 2: where they are, read, write, freeze, kill, remove.  Synchronous.

Not for making them: the OCI runtime does (and for VMs, `make`).  A group is named by its path below the root,
`insula/<id>`.  No policy.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from insula.errors import Failure, InvalidRequest

ROOT = "/sys/fs/cgroup"
_GIVEN = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
_LEAST_SHARES, _MOST_SHARES = 2, 262_144


@dataclass(frozen=True, slots=True)
class Layout:
    """`hierarchies`: controller (v1; also `name=systemd`) → mount point.  v2: the one mount point under "".

    `hybrid`: version 1, with an empty version 2 hierarchy beside it at `unified`.
    """

    version: int
    hierarchies: Mapping[str, str]
    unified: str = ""
    controllers: frozenset[str] = field(default=frozenset())

    @property
    def hybrid(self) -> bool:
        return self.version == 1 and bool(self.unified)

    def path(self, controller: str, group: str) -> str | None:
        """Directory of a group, None when the controller is not there."""
        base = self.hierarchies.get("" if self.version == 2 else controller)
        return f"{base}/{group}" if base else None

    def directories(self, group: str) -> list[str]:
        """The group's directories, one per hierarchy."""
        return [f"{base}/{group}" for base in dict.fromkeys(self.hierarchies.values())]


def parse_layout(mountinfo: str, read_controllers: str = "") -> Layout:
    """Pure.  `read_controllers`: content of the v2 root's cgroup.controllers.  Raises Failure."""
    hierarchies: dict[str, str] = {}
    unified = ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        point = left.split(" ")[4]
        if kind == "cgroup2":
            unified = point
        elif kind == "cgroup":
            for word in options.split(","):
                if (
                    word not in ("rw", "ro", "xattr", "clone_children", "noprefix")
                    and "release_agent" not in word
                ):
                    hierarchies.setdefault(word, point)
    controllers = frozenset(read_controllers.split())
    if hierarchies:
        real = frozenset(h for h in hierarchies if not h.startswith("name="))
        return Layout(1, hierarchies, unified, real)
    if not unified:
        raise Failure("no cgroup file system is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
    return Layout(2, {"": unified}, unified, controllers)


def find_layout() -> Layout:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        text = file.read()
    return parse_layout(text, read(f"{ROOT}/cgroup.controllers") or "")


@functools.cache
def version_in_use() -> int:
    """1 or 2; 2 also where none is mounted, since then nothing of version 1 is there."""
    try:
        return find_layout().version
    except Failure:
        return 2


def check_shares(shares: int) -> None:
    """Of version 1: the kernel makes do with the nearest that it has; runc refuses, in these words.  Raises
    InvalidRequest."""
    if shares < 0:
        raise InvalidRequest(f"{shares} is no number of cpu shares: invalid argument")
    if shares and shares < _LEAST_SHARES:
        raise InvalidRequest(f"the minimum allowed cpu-shares is {_LEAST_SHARES}")
    if shares > _MOST_SHARES:
        raise InvalidRequest(f"the maximum allowed cpu-shares is {_MOST_SHARES}")


def read(path: str) -> str | None:
    """Content of a control file, or of one in /proc; None when it, the group or the process is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # a program's name may be anything
            return file.read()
    except OSError as error:
        # ESRCH: the process ended between opening and reading
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOTDIR, errno.ESRCH):
            return None
        raise


def read_number(path: str) -> int | None:
    """As `read`, for files with one number; `max` is None too."""
    text = read(path)
    return int(text) if text and text.strip().lstrip("-").isdecimal() else None


def read_table(path: str) -> dict[str, int]:
    """Files with `name number` lines (`memory.stat`); empty when not there."""
    pairs = (line.split() for line in (read(path) or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def write(path: str, value: str | int) -> None:
    """Raises Failure with the file and the kernel's reason."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise Failure(f"cannot write {value} to {path}: {error.strerror}") from error


def processes(layout: Layout, group: str) -> list[int]:
    """Pids in the group and below it."""
    for base in layout.directories(group):
        if os.path.isdir(base):
            found: list[int] = []
            for directory in _tree(base):
                found += [int(pid) for pid in (read(f"{directory}/cgroup.procs") or "").split()]
            return found
    return []


def set_frozen(layout: Layout, group: str, frozen: bool) -> None:
    """Ask for it; `is_frozen` tells when it has happened.  Raises Failure."""
    if layout.version == 2:
        write(f"{layout.path('', group)}/cgroup.freeze", int(frozen))
    elif path := layout.path("freezer", group):
        write(f"{path}/freezer.state", "FROZEN" if frozen else "THAWED")
    else:
        raise Failure("the freezer cgroup controller is not mounted")


def is_frozen(layout: Layout, group: str) -> bool:
    if layout.version == 2:
        return read_table(f"{layout.path('', group)}/cgroup.events").get("frozen") == 1
    path = layout.path("freezer", group)
    return bool(path) and (read(f"{path}/freezer.state") or "").strip() == "FROZEN"


def kill(layout: Layout, group: str) -> None:
    """SIGKILL to everything in the group, frozen or not; returns without waiting for the deaths."""
    if layout.version == 2:
        path = f"{layout.path('', group)}/cgroup.kill"
        if os.path.exists(path):
            write(path, 1)
            return
    for _ in range(20):  # what forks meanwhile is found in the next round
        pids = processes(layout, group)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if all(_is_dying(pid) for pid in pids):
            break
    if layout.version == 1 and is_frozen(layout, group):
        set_frozen(layout, group, False)


def make_room(layout: Layout) -> None:
    """In a cgroup namespace (we are in a container) what runs in its root goes to a leaf, `init`.

    Version 2 gives controllers to the children only of a group that holds no processes; the host's own root
    is exempt.  Does nothing where the controllers are given out already.  Raises Failure.
    """
    base = layout.path("", "")
    if layout.version != 2 or base is None or not os.path.exists(f"{base}cgroup.type"):
        return
    missing = layout.controllers & _GIVEN - set((read(f"{base}cgroup.subtree_control") or "").split())
    if not missing:
        return
    for _ in range(20):  # what forks meanwhile is found in the next round
        pids = (read(f"{base}cgroup.procs") or "").split()
        if not pids:
            break
        try:
            os.makedirs(f"{base}init", exist_ok=True)
        except OSError as error:
            raise Failure(f"cannot make the cgroup {base}init: {error.strerror}") from error
        for pid in pids:
            if pid == "0":
                raise Failure(
                    f"a process of another pid namespace is in {base}, so nothing can be limited below it",
                    hint="start the container that this is with a cgroup namespace of its own",
                )
            try:
                write(f"{base}init/cgroup.procs", pid)
            except Failure:
                if os.path.exists(f"/proc/{pid}"):
                    raise
    for controller in sorted(missing):
        write(f"{base}cgroup.subtree_control", f"+{controller}")


def _is_dying(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in b"ZX"
    except OSError:
        return True


def remove(layout: Layout, group: str) -> bool:
    """Remove the group and those below; False when a process in it still keeps it."""
    gone = True
    bases = list(layout.directories(group))
    if layout.hybrid:
        bases.append(f"{layout.unified}/{group.lstrip('/')}")  # runc makes one there, too
    for base in bases:
        for directory in reversed(list(_tree(base))):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                gone = False
    return gone


def remove_if_empty(layout: Layout, group: str) -> None:
    """Remove the group itself where nothing is in it or below."""
    for directory in layout.directories(group):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _tree(base: str) -> Iterator[str]:
    """The group and those below, parents first."""
    yield base
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(base) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in below:
            yield from _tree(path)
