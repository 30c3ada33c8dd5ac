"""A client on a terminal of its own, typed at and read like a user would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

from rig import Daemon

_PATIENCE_S = 60.0


class Terminal:
    """`client` is `insula` or `docker`.  What `until` has seen is not seen again."""

    def __init__(self, daemon: Daemon, client: str, *words: str, rows: int = 31, cols: int = 97) -> None:
        argv, environment = daemon.command(client, *words)
        self._open(argv, environment, rows, cols)

    def _open(self, argv: Sequence[str], environment: Mapping[str, str], rows: int, cols: int) -> None:
        self.fd, inner = pty.openpty()
        self.resize(rows, cols)
        self.child = subprocess.Popen(
            argv, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  (no threads here)
        )  # fmt: skip
        os.close(inner)
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        """The kernel tells the client's process group, as a window does."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def until(self, text: bytes) -> None:
        limit = time.monotonic() + _PATIENCE_S
        while text not in self.seen:
            assert select.select([self.fd], [], [], max(0, limit - time.monotonic()))[0], self.seen
            try:
                self.seen += os.read(self.fd, 4096)
            except OSError:  # the client has ended
                raise AssertionError(self.seen) from None
        self.seen = self.seen.partition(text)[2]

    def end(self) -> int:
        """The client's exit code; `seen` then has all that it still said."""
        with contextlib.suppress(OSError):  # the other side of the terminal has gone
            while select.select([self.fd], [], [], _PATIENCE_S)[0] and (piece := os.read(self.fd, 4096)):
                self.seen += piece
        os.close(self.fd)
        return self.child.wait(_PATIENCE_S)
