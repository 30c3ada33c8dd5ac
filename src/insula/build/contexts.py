"""Contexts that stay from one build to the next, so that a client sends what has changed.  Synchronous.

Each is a directory that one build at a time has for its own: to take it is to move it into the build's place,
to give it back is to move it here again, so no build sees another's, and one that was under way when the
daemon died is gone with its build.  What a tree has is what is on the disk: nothing is believed of a list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from insula.config import Settings
from insula.system import tar
from insula.system.files import remove_tree

log = logging.getLogger(__name__)

KEPT_NS = 48 * 3600 * 1_000_000_000
"""As long as Docker's own collection leaves local sources that nobody uses."""

_MOST_DIGESTS = 1000
_PART = 10  # of the disk, for all of them together
_CAPABILITY = "security.capability"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`name` is what clients call the directory; `used_ns` when a build had it last."""

    ident: str
    name: str
    size_bytes: int
    created_ns: int
    used_ns: int
    uses: int
    digests: Mapping[str, str]


@dataclass(slots=True)
class Lease:
    """A context that a build has taken: its tree is `directory`.  `size_bytes` is to be told before it is
    given back.  `digests` are what COPY made of the tree as it is (`build.files`), to be cleared when it
    changes."""

    ident: str
    name: str
    place: str
    created_ns: int
    uses: int = 0
    size_bytes: int = 0
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        return f"{self.place}/tree"


class Contexts:
    """Of one data root.  Every method may be called in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._root = os.path.join(settings.data_root, "contexts")
        self._builds = os.path.join(settings.data_root, "build")

    def take(self, shared_key: str, name: str) -> Lease:
        """The client's directory `name` as the last build has left it; an empty one when there is none, or
        when a build has it.  `shared_key` is what the client says its directories are known by; "" keeps
        nothing.  Raises OSError."""
        ident = hashlib.sha256(f"{name}\0{shared_key}".encode()).hexdigest()[:25] if shared_key else ""
        place = f"{self._builds}/context-{secrets.token_hex(8)}"
        os.makedirs(self._builds, mode=0o700, exist_ok=True)
        lease = Lease(ident, name, place, time.time_ns())
        if ident:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._root}/{ident}", place)
                if (known := _record(place, ident)) is not None and os.path.isdir(lease.directory):
                    lease.created_ns, lease.uses = known.created_ns, known.uses
                    lease.digests = dict(known.digests)
                    return lease
                remove_tree(place)  # damaged
        os.makedirs(place, mode=0o700)
        os.mkdir(lease.directory, 0o755)
        os.chmod(lease.directory, 0o755)
        return lease

    def give_back(self, lease: Lease) -> None:
        """The last of several that had it at once is the one that stays.  A build does not fail by it."""
        try:
            self._keep(lease)
        except OSError as error:
            log.warning("the context %s is not kept for the next build: %s", lease.name, error)
            remove_tree(lease.place)

    def _keep(self, lease: Lease) -> None:
        if not lease.ident or not 0 < lease.size_bytes <= self._most():
            remove_tree(lease.place)
            return
        record = {
            "name": lease.name,
            "size_bytes": lease.size_bytes,
            "created_ns": lease.created_ns,
            "used_ns": time.time_ns(),
            "uses": lease.uses + 1,
            "digests": lease.digests if len(lease.digests) <= _MOST_DIGESTS else {},
        }
        with open(f"{lease.place}/record", "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self.remove(lease.ident)
        os.rename(lease.place, f"{self._root}/{lease.ident}")  # fails if another came at the same moment
        self.trim()

    def _most(self) -> int:
        """Bytes that all of them may have together."""
        disk = os.statvfs(self._root if os.path.isdir(self._root) else self._builds)
        return disk.f_blocks * disk.f_frsize // _PART

    def trim(self) -> None:
        """Away with what was not used for long, and with the oldest of what is too much."""
        if not os.path.isdir(self._root):
            return
        left, most = 0, self._most()
        for kept in sorted(self.list(), key=lambda kept: kept.used_ns, reverse=True):
            left += kept.size_bytes
            if left > most or kept.used_ns < time.time_ns() - KEPT_NS:
                self.remove(kept.ident)
                left -= kept.size_bytes

    def list(self) -> tuple[Kept, ...]:
        """Those that no build has taken."""
        try:
            names = sorted(os.listdir(self._root))
        except FileNotFoundError:
            return ()
        found = []
        for name in names:
            if (kept := _record(f"{self._root}/{name}", name)) is not None:
                found.append(kept)
            else:
                self.remove(name)
        return tuple(found)

    def remove(self, ident: str) -> bool:
        """Whether it was there."""
        os.makedirs(self._builds, mode=0o700, exist_ok=True)
        away = f"{self._builds}/context-{secrets.token_hex(8)}"
        try:
            os.rename(f"{self._root}/{ident}", away)
        except FileNotFoundError:
            return False
        remove_tree(away)
        return True


def _record(place: str, ident: str) -> Kept | None:
    """None when there is none that can be read."""
    try:
        with open(f"{place}/record", encoding="utf-8") as file:
            found = json.load(file)
        return Kept(
            ident=ident,
            name=str(found["name"]),
            size_bytes=int(found["size_bytes"]),
            created_ns=int(found["created_ns"]),
            used_ns=int(found["used_ns"]),
            uses=int(found["uses"]),
            digests=dict(found["digests"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Sifted:
    """`same` are the numbers of those that stay; `whole`: nothing else was there, and nothing is to come."""

    same: frozenset[int]
    whole: bool = False


def sift(directory: str, members: Sequence[tar.Member | None]) -> Sifted:
    """Leave in a tree what is there as `members` say, and remove the rest.

    As fsutil decides it: by kind, mode, size, time and a link's target; besides, by file capabilities.  A
    tree that cannot be read is emptied.
    """
    by_name = {member.name.rstrip(b"/"): n for n, member in enumerate(members) if member is not None}
    clean = all(name and not {b"", b".", b".."} & set(name.split(b"/")) for name in by_name)
    if clean and len(by_name) == sum(member is not None for member in members):
        with contextlib.suppress(OSError):
            return _Sieve(members, by_name).sift(os.fsencode(directory))
    with os.scandir(os.fsencode(directory)) as entries:
        for entry in list(entries):
            _drop(entry)
    return Sifted(frozenset())


def _drop(entry: os.DirEntry[bytes]) -> None:
    if entry.is_dir(follow_symlinks=False):
        remove_tree(entry.path)
    else:
        os.unlink(entry.path)


class _Sieve:
    def __init__(self, members: Sequence[tar.Member | None], by_name: dict[bytes, int]) -> None:
        self._members = members
        self._by_name = by_name
        self._same: set[int] = set()
        self._directories: set[int] = set()
        self._inodes: set[int] = set()
        self._removed = False

    def sift(self, top: bytes) -> Sifted:
        pending = [(top, b"")]
        while pending:
            path, shown = pending.pop()
            with os.scandir(path) as entries:
                found = list(entries)
            for entry in found:
                name = shown + entry.name
                if self._stays(entry, name):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, name + b"/"))
                    continue
                self._removed = True
                _drop(entry)
        wanted = len(self._by_name) - len(self._directories)
        if not self._removed and len(self._same) == wanted:
            return Sifted(frozenset(self._same | self._directories), whole=True)
        return Sifted(frozenset(self._same))  # what comes or goes changes its directory's time

    def _stays(self, entry: os.DirEntry[bytes], name: bytes) -> bool:
        number = self._by_name.get(name)
        member = self._members[number] if number is not None else None
        if number is None or member is None:
            return False
        status = entry.stat(follow_symlinks=False)
        ours = (status.st_uid, status.st_gid) == (0, 0)
        same = ours and member.mtime_ns == status.st_mtime_ns
        if stat.S_ISDIR(status.st_mode) and member.kind == tar.DIRECTORY:
            if same and stat.S_IMODE(status.st_mode) == member.mode:
                self._directories.add(number)
            return True
        if stat.S_ISLNK(status.st_mode) and member.kind == tar.SYMLINK:
            same = same and os.readlink(entry.path) == member.link
        elif stat.S_ISREG(status.st_mode) and member.kind == tar.FILE:
            same = (
                same
                and (stat.S_IMODE(status.st_mode), status.st_size) == (member.mode, member.size)
                and status.st_ino not in self._inodes
                and _capability(entry.path) == member.xattrs.get(_CAPABILITY.encode(), b"")
            )
            self._inodes.add(status.st_ino)
        else:
            return False
        if same:
            self._same.add(number)
        return same


def _capability(path: bytes) -> bytes:
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError:
        return b""
