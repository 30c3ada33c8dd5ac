"""Make what a tar archive describes, in the root of the calling process.  Synchronous.

Runs only inside a child that `system.confine` has shut into the target: symlinks, `..` and absolute
names cannot lead out of it, so what is left to decide here is what an archive may *mean*.  Two users:
layers of images (`layer=True`: OCI whiteouts become overlayfs's) and `docker cp` into an instance.

Refused with CorruptData: names that climb above the root, hard links to what is not there, counts and
sizes beyond `Limits`, nodes that overlayfs would take for its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from insula.errors import CorruptData, DiskFull, InvalidRequest
from insula.system import tar
from insula.system.files import remove_tree

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PATH = 4095  # the kernel's
_ZEROS = bytes(tar.PIECE)
_KEPT_XATTRS = (b"user.", b"security.capability", b"system.posix_acl_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    entries: int
    bytes: int


@dataclass(slots=True, kw_only=True)
class Report:
    """`size_bytes` is the files' content.  `opaque` are directories (canonical paths) that hide what is below
    them: marking those needs a capability that the confined child has not, so its parent does it.
    `skipped` counts what could not be kept, by reason.
    """

    entries: int = 0
    size_bytes: int = 0
    opaque: set[bytes] = field(default_factory=set)
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


def clean_name(untrusted_name: bytes) -> bytes:
    """Absolute, without `.`, `..` and doubled slashes; "/" for the root.  Raises CorruptData."""
    parts: list[bytes] = []
    for part in untrusted_name.split(b"/"):
        if part == b"..":
            if not parts:
                raise CorruptData(f"the archive has an entry outside its root: {untrusted_name[:200]!r}")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)


@contextlib.contextmanager
def _entry_errors(name: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shown = os.fsdecode(name[:200])
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left on the disk while unpacking {shown!r}",
                hint="free some space: insula system prune",
            ) from None
        raise CorruptData(f"the archive's entry {shown!r} cannot be made: {error.strerror}") from None


class Extractor:
    """`base` is the directory (absolute, inside the root) that names are relative to.

    `keep_kind`: refuse to replace a directory by something else and the reverse (`docker cp`).
    `owner`: everything belongs to this uid and gid, whatever the archive says.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        layer: bool,
        base: bytes = b"/",
        keep_kind: bool = False,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self.report = Report()
        self._limits = limits
        self._layer = layer
        self._base = base.rstrip(b"/")
        self._keep_kind = keep_kind
        self._owner = owner
        self._known: set[bytes] = {self._base or b"/"}
        self._whiteouts: set[bytes] = set()
        self._times: dict[bytes, int] = {}

    def extract(self, reader: tar.Reader) -> None:
        for member in reader:
            self.report.entries += 1
            if self.report.entries > self._limits.entries:
                raise CorruptData(f"the archive has more than {self._limits.entries} entries")
            with _entry_errors(member.name):
                self._one(member, reader)
        for path, mtime_ns in reversed(self._times.items()):
            with contextlib.suppress(FileNotFoundError), _entry_errors(path):
                os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def _one(self, member: tar.Member, reader: tar.Reader) -> None:
        inner = clean_name(member.name)
        if inner == b"/":
            if member.kind != tar.DIRECTORY:
                raise CorruptData("the archive's root is not a directory")
            if self._layer:
                self._attributes(b"/", member)
            return
        path = self._base + inner
        if len(path) > _MAX_PATH:
            raise CorruptData(f"the archive has a name of {len(path)} bytes: {path[:100]!r}…")
        parent, _, last = path.rpartition(b"/")
        self._parents(parent or b"/")
        if self._layer and last.startswith(_WHITEOUT):
            self._whiteout(parent or b"/", last)
            return
        self._clear(path, member)
        self._make(path, member, reader)
        self._attributes(path, member)

    def _parents(self, parent: bytes) -> None:
        """Missing directories on the way.  A whiteout on the way becomes a directory that hides."""
        if parent in self._known:
            return
        at = b""
        for part in parent.split(b"/")[1:]:
            at += b"/" + part
            if at in self._known:
                continue
            if at in self._whiteouts:
                self._replace_whiteout(at)
            try:
                os.mkdir(at, 0o755)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(at).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            else:
                self._count_entry()
                if self._owner is not None:
                    os.chown(at, *self._owner)
            self._known.add(at)

    def _count_entry(self) -> None:
        self.report.entries += 1
        if self.report.entries > self._limits.entries:
            raise CorruptData(f"the archive has more than {self._limits.entries} entries")

    def _whiteout(self, parent: bytes, last: bytes) -> None:
        """Hides what lower layers have, never what this one has, whichever comes first in the archive."""
        if last == _OPAQUE:
            self.report.opaque.add(os.path.realpath(parent))
            return
        if last.startswith(b".wh..wh."):  # aufs's own book-keeping (.wh..wh.plnk, .wh..wh.orph)
            return
        hidden = last[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise CorruptData(f"the archive has a whiteout of nothing: {last!r}")
        path = parent.rstrip(b"/") + b"/" + hidden
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(0, 0))
            self._whiteouts.add(path)
        except FileExistsError:
            if path not in self._whiteouts and stat.S_ISDIR(os.lstat(path).st_mode):
                self.report.opaque.add(os.path.realpath(path))

    def _replace_whiteout(self, path: bytes) -> None:
        os.unlink(path)
        self._whiteouts.discard(path)
        self.report.opaque.add(os.path.realpath(path))

    def _clear(self, path: bytes, member: tar.Member) -> None:
        """Make room: a directory stays for a directory, anything else goes."""
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            return
        is_directory, wants_directory = stat.S_ISDIR(there.st_mode), member.kind == tar.DIRECTORY
        if path in self._whiteouts:
            self._whiteouts.discard(path)
            os.unlink(path)
            if wants_directory:
                self.report.opaque.add(os.path.realpath(path))
            return
        if self._keep_kind and is_directory != wants_directory:
            was, new = ("directory", "non-directory") if is_directory else ("non-directory", "directory")
            shown = os.fsdecode(path)
            raise InvalidRequest(f'cannot overwrite {was} "{shown}" with {new} "{shown}"')
        if is_directory and wants_directory:
            return
        if is_directory:
            remove_tree(path)
            self._forget(path)
        else:
            os.unlink(path)
            self._known.discard(path)

    def _forget(self, path: bytes) -> None:
        below = path + b"/"
        for names in (self._known, self._whiteouts, self.report.opaque):
            for name in [n for n in names if n == path or n.startswith(below)]:
                names.discard(name)
        for name in [n for n in self._times if n == path or n.startswith(below)]:
            del self._times[name]

    def _count(self, size: int) -> None:
        self.report.size_bytes += size
        if self.report.size_bytes > self._limits.bytes:
            raise DiskFull(
                f"the archive unpacks to more than the {self._limits.bytes >> 20} MiB that are free",
                hint="free some space: insula system prune",
            )

    def _make(self, path: bytes, member: tar.Member, reader: tar.Reader) -> None:
        match member.kind:
            case tar.DIRECTORY:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                self._known.add(path)
            case tar.FILE:
                self._count(member.size)
                self._write(path, member, reader)
            case tar.SYMLINK:
                if not member.link:
                    raise CorruptData(f"the archive has a symlink to nothing: {member.name[:200]!r}")
                os.symlink(member.link, path)
            case tar.LINK:
                self._link(path, member)
            case tar.FIFO:
                os.mkfifo(path, 0o600)
            case _:
                if self._layer and member.kind == tar.CHAR and member.major == 0 and member.minor == 0:
                    raise CorruptData(f"the archive has overlayfs's own whiteout: {member.name[:200]!r}")
                kind = stat.S_IFCHR if member.kind == tar.CHAR else stat.S_IFBLK
                os.mknod(path, 0o600 | kind, os.makedev(member.major, member.minor))

    def _link(self, path: bytes, member: tar.Member) -> None:
        target = self._base + clean_name(member.link)
        if target in self._whiteouts:
            raise CorruptData(f"the archive has a hard link to a whiteout: {member.name[:200]!r}")
        try:
            os.link(target, path, follow_symlinks=False)
        except FileNotFoundError:
            raise CorruptData(
                f"the archive has a hard link, {member.name[:200]!r}, to what is not in it: "
                f"{member.link[:200]!r}"
            ) from None

    def _write(self, path: bytes, member: tar.Member, reader: tar.Reader) -> None:
        fd = os.open(path, _FLAGS, 0o600)
        try:
            position = 0
            for offset, data in reader.data():
                if (
                    len(data) == len(_ZEROS) and data == _ZEROS
                ):  # a hole does as well, and a bomb fills no disk
                    continue
                if offset != position:
                    os.lseek(fd, offset, os.SEEK_SET)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                position = offset + len(data)
            if position != member.size:
                os.ftruncate(fd, member.size)
        finally:
            os.close(fd)

    def _attributes(self, path: bytes, member: tar.Member) -> None:
        """Owner first (it clears setuid and file capabilities), then xattrs, mode and time."""
        if member.kind == tar.LINK:
            return
        uid, gid = self._owner if self._owner is not None else (member.uid, member.gid)
        try:
            os.chown(path, uid, gid, follow_symlinks=False)
        except (OverflowError, ValueError):
            raise CorruptData(f"the archive has an impossible owner: {uid}:{gid}") from None
        for name, value in member.xattrs.items():
            self._xattr(path, name, value)
        if member.kind != tar.SYMLINK:
            os.chmod(path, member.mode)
        try:
            if member.kind == tar.DIRECTORY:
                self._times.pop(path, None)
                self._times[path] = member.mtime_ns
            os.utime(path, ns=(member.mtime_ns, member.mtime_ns), follow_symlinks=False)
        except OverflowError:
            raise CorruptData(f"the archive has an impossible time: {member.mtime_ns} ns") from None

    def _xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        if not name.startswith(_KEPT_XATTRS):
            self.report.skip(f"xattr {os.fsdecode(name[:60])}")
            return
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno in (
                errno.ENOTSUP,
                errno.EPERM,
            ):  # user.* on a symlink or device, or no xattrs here
                self.report.skip(f"xattr {os.fsdecode(name[:60])}: {error.strerror}")
            elif error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                raise CorruptData(
                    f"the archive has an xattr too large for this disk: {name[:60]!r}"
                ) from None
            else:
                raise
