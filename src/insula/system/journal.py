"""Messages for the journal of systemd, in its native protocol: one datagram each.  Synchronous.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping

PRIORITY_ERR, PRIORITY_INFO = 3, 6


def encode_message(fields: Mapping[str, bytes]) -> bytes:
    """`fields`: names are upper case letters, digits and underscores; values may be any bytes."""
    parts = []
    for name, value in fields.items():
        if b"\n" in value:
            parts += [name.encode(), b"\n", struct.pack("<Q", len(value)), value, b"\n"]
        else:
            parts += [name.encode(), b"=", value, b"\n"]
    return b"".join(parts)


@contextlib.contextmanager
def open_journal(path: str, timeout_s: float) -> Iterator[socket.socket]:
    """To send datagrams to; each waits up to `timeout_s` while the journal is busy.  Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.settimeout(timeout_s)
        end.connect(path)
        yield end


def journal_answers(path: str) -> bool:
    """Whether somebody listens at this socket."""
    try:
        with open_journal(path, 1):
            return True
    except OSError:
        return False
