"""Go's os.FileMode, which Docker's API and BuildKit's sessions carry where C has st_mode.  Pure."""

from __future__ import annotations

import stat

GO_DIRECTORY, GO_SYMLINK = 1 << 31, 1 << 27
_DEVICE, _FIFO, _SOCKET, _CHAR, _IRREGULAR = 1 << 26, 1 << 25, 1 << 24, 1 << 21, 1 << 19
_TYPE = GO_DIRECTORY | GO_SYMLINK | _DEVICE | _FIFO | _SOCKET | _CHAR | _IRREGULAR
_KINDS = {
    stat.S_IFREG: 0,
    stat.S_IFDIR: GO_DIRECTORY,
    stat.S_IFLNK: GO_SYMLINK,
    stat.S_IFBLK: _DEVICE,
    stat.S_IFCHR: _DEVICE | _CHAR,
    stat.S_IFIFO: _FIFO,
    stat.S_IFSOCK: _SOCKET,
}
_UNIX_KINDS = {bits: kind for kind, bits in _KINDS.items()}
_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def go_mode(mode: int) -> int:
    """Of an st_mode."""
    return (mode & 0o777) | _KINDS.get(stat.S_IFMT(mode), 0) | sum(go for bit, go in _BITS if mode & bit)


def unix_mode(go: int) -> int:
    """The other way.  What Go calls irregular, and any mixture, has no kind."""
    return (go & 0o777) | _UNIX_KINDS.get(go & _TYPE, 0) | sum(bit for bit, mark in _BITS if go & mark)
