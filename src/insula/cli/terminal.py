"""The user's terminal: raw mode, its size, and pumping bytes between it and a hijacked connection."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator

from insula.client import Hijacked
from insula.errors import DaemonRefused, DaemonUnreachable, InvalidRequest

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"


class Detached(Exception):
    """The user typed the detach keys."""


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes they send.  Raises InvalidRequest in Docker's terms."""
    keys = b""
    for word in text.split(","):
        if len(word) == 1:
            keys += word.encode()
        elif word.startswith("ctrl-") and len(word) == 6 and (word[5].isalpha() or word[5] in "@[\\]^_"):
            keys += bytes([ord(word[5].upper()) & 0x1F])
        else:
            raise InvalidRequest(
                f"--detach-keys: unknown key {word!r}", hint="letters, or ctrl- and a letter"
            )
    return keys


class KeyWatcher:
    """Finds the detach sequence in typed bytes; what only looked like its beginning is passed on."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What to send.  Raises Detached when the sequence is complete."""
        out = b""
        for byte in data:
            self._held += bytes([byte])
            if self._held == self._keys:
                raise Detached
            while self._held and not self._keys.startswith(self._held):
                out += self._held[:1]
                self._held = self._held[1:]
        return out


def terminal_size() -> tuple[int, int]:
    """Rows and columns; (0, 0) when standard output is no terminal."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 0, 0
    return size.lines, size.columns


@contextlib.contextmanager
def start_raw_mode(fd: int) -> Iterator[None]:
    """The terminal passes every key on, and is as before afterwards."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # the default throws away what was typed ahead
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def start_resizing(resize: Callable[[int, int], object]) -> Iterator[None]:
    """Tell the other side the terminal's size now and at every change."""

    def tell(*_: object) -> None:
        rows, cols = terminal_size()
        if rows and cols:
            # the workload may have ended, or not begun: its size then does not matter
            with contextlib.suppress(DaemonRefused, DaemonUnreachable):
                resize(rows, cols)

    tell()
    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def pump(connection: Hijacked, *, stdin: bool, tty_mode: bool, detach_keys: str) -> bool:
    """Carry our stdin there and its output here until the output ends.  False when the user detached."""
    detached = threading.Event()
    if stdin:
        keys = KeyWatcher(parse_detach_keys(detach_keys)) if tty_mode else None
        threading.Thread(target=_send_stdin, args=(connection, keys, detached), daemon=True).start()
    outputs = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
    for channel, data in connection.frames():
        out = outputs.get(channel, sys.stdout.buffer)
        out.write(data)
        out.flush()
    return not detached.is_set()


def _send_stdin(connection: Hijacked, keys: KeyWatcher | None, detached: threading.Event) -> None:
    fd = sys.stdin.fileno()
    try:
        while True:
            select.select([fd], [], [])
            data = os.read(fd, 32 * 1024)
            if not data:
                connection.close_stdin()
                return
            connection.send(keys.feed(data) if keys else data)
    except Detached:
        detached.set()
        connection.shut()
    except OSError:
        return  # the workload has ended, or closed its stdin
