"""The confined children behind `tree`: a tree as a tar, a tar into a tree.  Synchronous; never imported.

The root is `root_fd` of the request.  Making an archive only reads; unpacking reads a hostile stream and
writes, so both are shut into the root before they begin.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from typing import Any

from insula.errors import CorruptData, InvalidRequest, NotFound
from insula.system import tar
from insula.system.child import Pieces, Reply
from insula.system.confine import CAP_DAC_OVERRIDE, confine, die_with_parent, own_namespaces
from insula.system.decompress import PIECE, decompressed, preload
from insula.system.extract import Extractor, Limits
from insula.system.scaffold import is_scaffold
from insula.system.sparse import read_whole

_CAP_DAC_READ_SEARCH, _CAP_SYS_ADMIN = 2, 21  # the second only to read trusted.overlay.opaque
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
_OPAQUE = "trusted.overlay.opaque"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFIFO: tar.FIFO,
}
_KERNELS_OWN = (b"/proc", b"/sys", b"/dev")


class _Packer:
    """Writes a tree as a tar.

    `layer`: the tree is an overlay's upper directory, its whiteouts become `.wh.` files.  `crosses`: other
    file systems mounted in the tree are part of it (volumes), but for the kernel's own.
    """

    def __init__(self, reply: Reply, *, layer: bool = False, crosses: bool = False) -> None:
        self._out = Pieces(reply)
        self._layer = layer
        self._crosses = crosses
        self._links: dict[tuple[int, int], bytes] = {}

    def end(self) -> None:
        self._out.put(tar.END)
        self._out.flush()

    def tree(self, path: bytes, name: bytes) -> None:
        """`path` and all below, on this file system; `name` is its name in the archive ("" for nothing)."""
        top = os.lstat(path)
        pending: list[Iterator[tuple[bytes, bytes]]] = [iter([(path, name)])]
        while pending:
            one = next(pending[-1], None)
            if one is None:
                pending.pop()
                continue
            there, called = one
            try:
                found = os.lstat(there)
            except FileNotFoundError:  # removed meanwhile, or a whiteout that overlayfs lists and denies
                continue
            if self._layer and is_scaffold("/" + os.fsdecode(called), there, found):
                continue
            self._entry(there, called, found)
            if stat.S_ISDIR(found.st_mode) and (found.st_dev == top.st_dev or self._enters(there)):
                names = sorted(os.fsencode(n) for n in os.listdir(there))
                outer, inner = there.rstrip(b"/") + b"/", called.rstrip(b"/") + b"/" if called else b""
                pending.append(iter([(outer + n, inner + n) for n in names]))

    def _enters(self, mount_point: bytes) -> bool:
        return self._crosses and mount_point not in _KERNELS_OWN

    def _entry(self, path: bytes, name: bytes, found: os.stat_result) -> None:
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:  # sockets: tar has no word for them
            return
        if self._layer and kind == tar.CHAR and found.st_rdev == 0:
            parent, slash, last = name.rpartition(b"/")
            self._out.put(tar.header(tar.Member(name=parent + slash + b".wh." + last, mode=0o600)))
            return
        member = tar.Member(
            name=name,
            kind=kind,
            # with the kind of file in it, as moby writes archives; in a layer that would be one more digest
            mode=stat.S_IMODE(found.st_mode) if self._layer else found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns // 1_000_000_000 * 1_000_000_000,  # whole seconds, as Docker's
        )
        if kind == tar.DIRECTORY:
            if name:
                member.name = name.rstrip(b"/") + b"/"
                member.xattrs = _xattrs(path)
                self._out.put(tar.header(member))
            if self._layer and _is_opaque(path):
                marker = (member.name if name else b"") + b".wh..wh..opq"
                self._out.put(tar.header(tar.Member(name=marker, mode=0o600)))
            return
        identity = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and (first := self._links.get(identity)) is not None:
            member.kind, member.link = tar.LINK, first
            self._out.put(tar.header(member))
            return
        if kind == tar.FILE:
            if not self._file(path, member):
                return
        else:
            if kind == tar.SYMLINK:
                member.link = os.readlink(path)
            elif kind in (tar.CHAR, tar.BLOCK_DEVICE):
                member.major, member.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
            self._out.put(tar.header(member))
        if found.st_nlink > 1:
            self._links[identity] = name

    def _file(self, path: bytes, member: tar.Member) -> bool:
        """Header and content.  A file that shrinks while it is read is filled up with zeros."""
        try:
            fd = os.open(path, _READ)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # replaced meanwhile
                return False
            raise
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):
                return False
            member.size = now.st_size
            member.xattrs = _xattrs(fd)
            self._out.put(tar.header(member))
            for piece in read_whole(fd, member.size, PIECE):
                self._out.put(piece)
        finally:
            os.close(fd)
        self._out.put(tar.padding(member.size))
        return True


def _xattrs(target: bytes | int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    try:
        for name in os.listxattr(target, **({} if isinstance(target, int) else {"follow_symlinks": False})):
            if name.startswith(_KEPT_XATTRS):
                found[os.fsencode(name)] = os.getxattr(target, name)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA, errno.ENOENT):
            raise
    return found


def _is_opaque(path: bytes) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT):
            return False
        raise


def _resolve(path: bytes) -> bytes:
    """Where an absolute path is, its last part not followed unless it ends in `/` or `/.` (Docker's rule)."""
    if path.endswith((b"/", b"/.")):
        return os.path.realpath(path)
    parent, _, last = path.rpartition(b"/")
    return os.path.join(os.path.realpath(parent or b"/"), last)


def _get(request: dict[str, Any], reply: Reply) -> None:
    untrusted_path = b"/" + os.fsencode(request["path"]).lstrip(b"/")
    path = _resolve(untrusted_path)
    if not os.path.lexists(path):
        raise NotFound(f"{request['path']}: no such file or directory")
    packer = _Packer(reply, crosses=True)
    packer.tree(path, os.fsencode(request["name"]))
    packer.end()


def _put(request: dict[str, Any]) -> dict[str, Any]:
    base = os.path.realpath(b"/" + os.fsencode(request["path"]).lstrip(b"/"))
    if not os.path.lexists(base):
        raise NotFound(f"{request['path']}: no such file or directory")
    if not os.path.isdir(base):
        raise InvalidRequest("extraction point is not a directory")
    owner = request["owner"]
    limits = Limits(entries=int(request["limit_entries"]), bytes=int(request["limit_bytes"]))
    extractor = Extractor(
        limits,
        layer=False,
        base=base,
        keep_kind=bool(request["keep_kind"]),
        owner=(int(owner[0]), int(owner[1])) if owner else None,
    )
    plain, _ = decompressed(io.FileIO(0, closefd=False))
    buffered = io.BufferedReader(plain, PIECE)
    try:
        extractor.extract(tar.Reader(buffered))
        while buffered.read(PIECE):
            pass
    except CorruptData as error:
        raise InvalidRequest(error.message) from None
    return {"entries": extractor.report.entries, "skipped": extractor.report.skipped}


def main(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    die_with_parent()
    what = request["what"]
    if what == "put":
        preload()
    own_namespaces()
    root_fd = int(request["root_fd"])
    if what == "put":
        confine(root_fd, file_bytes=int(request["limit_bytes"]))
        return _put(request)
    reading = (CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH)
    confine(root_fd, capabilities=(*reading, _CAP_SYS_ADMIN) if what == "layer" else reading)
    if what == "get":
        _get(request, reply)
    else:
        packer = _Packer(reply, layer=what == "layer")
        packer.tree(b"/", b"")
        packer.end()
    return {}
