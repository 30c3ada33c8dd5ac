"""Sockets to listen on: unix, TCP, and those that systemd hands over.  Sync.

Not for what is said on them (`server`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat

from insula.config import check_host
from insula.errors import Conflict, Failure, Forbidden, InvalidRequest

_FIRST_FD = 3  # systemd's SD_LISTEN_FDS_START
_BACKLOG = 1024
_GROUPS = ("insula", "docker")


def open_listeners(hosts: tuple[str, ...]) -> list[socket.socket]:
    """One for each of `hosts`: `unix:///path`, `tcp://address:port` (`fd://` is what systemd passes).

    Raises InvalidRequest, Forbidden, Conflict when somebody listens there already.
    """
    opened: list[socket.socket] = []
    try:
        for host in hosts:
            check_host(host)
            scheme, _, rest = host.partition("://")
            if scheme == "unix":
                opened.append(open_unix(rest))
            elif scheme == "tcp":
                opened.append(open_tcp(rest))
            else:
                raise InvalidRequest(f"host {host}: systemd passed no socket", hint="start insula.socket")
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def inherited_sockets() -> list[socket.socket]:
    """LISTEN_FDS, if it is meant for this process.  The variables are taken away: children are not meant."""
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not mine or not count.isdecimal():
        return []
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + min(int(count), 16)):
        os.set_inheritable(fd, False)
        one = socket.socket(fileno=fd)
        one.setblocking(False)
        found.append(one)
    return found


def open_unix(path: str) -> socket.socket:
    """Mode 0660; group `insula` or `docker` if there is one.  A socket that nobody answers on is replaced.
    Raises Conflict, Forbidden, Failure."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except PermissionError as error:
        raise Forbidden(f"cannot listen on {path}: {error.strerror}", hint="run the daemon as root") from None
    try:
        before = os.umask(0o177)  # nobody else may connect before the group is set
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        if (gid := _group_id()) is not None and os.geteuid() == 0:
            os.chown(path, 0, gid)
        os.chmod(path, 0o660)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _cannot(f"unix://{path}", error) from None
    return listener


def open_tcp(address: str) -> socket.socket:
    """Without TLS: whoever reaches the port is root on this host.  Raises Conflict, Forbidden, Failure."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _cannot(f"tcp://{address}", error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _cannot(f"tcp://{address}", error) from None
    return listener


def unlink_path(listener: socket.socket) -> None:
    """Remove a unix listener's path."""
    if listener.family == socket.AF_UNIX and listener.fileno() >= 0:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(listener.getsockname())


def _remove_stale(path: str) -> None:
    """A lock beside the socket keeps two daemons that start at once from removing each other's."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Conflict(f"cannot listen on {path}: it exists and is not a socket")
    except FileNotFoundError:
        return
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            try:
                probe.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return
            except OSError as error:
                raise _cannot(f"unix://{path}", error) from None
        raise Conflict(f"cannot listen on {path}: a daemon is listening there already")
    finally:
        os.close(fd)


def _group_id() -> int | None:
    for name in _GROUPS:
        with contextlib.suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return None


def _cannot(where: str, error: OSError) -> Conflict | Forbidden | Failure:
    text = f"cannot listen on {where}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(text)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(text, hint="run the daemon as root")
    return Failure(text)
