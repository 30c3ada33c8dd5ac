"""Unix sockets at paths of any length.  Synchronous; connecting to our own listeners never blocks.

sun_path holds 108 bytes, an instance's directory alone may have more: the directory is opened and named
through /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """A listening socket, mode 0600; one that an earlier process left there is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            sock.bind(name)
        os.chmod(path, 0o600)
        sock.listen(4)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str) -> socket.socket:
    """A connected, non-blocking socket.  Raises OSError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            sock.connect(name)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_and_connect(path: str) -> tuple[socket.socket, socket.socket]:
    """A listening socket and one connected to it; the path itself is gone again."""
    listener = listen(path)
    try:
        client = connect(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.unlink(path)
    client.setblocking(True)
    return listener, client
