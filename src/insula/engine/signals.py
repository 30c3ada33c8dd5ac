"""Signals by name or number, as Docker's clients write them.  Pure."""

from __future__ import annotations

import signal

from insula.errors import InvalidRequest


def parse_signal(untrusted_text: str) -> int:
    """`KILL`, `SIGKILL`, `9`, `RTMIN+3`.  Raises InvalidRequest in moby's words."""
    text = untrusted_text.strip().upper()
    if text.isdecimal() and text.isascii():
        number = int(text)
        if 0 < number <= signal.SIGRTMAX:
            return number
        raise InvalidRequest(f"invalid signal: {untrusted_text}")
    bare = text.removeprefix("SIG")
    for base, sign, first in (("RTMIN", "+", signal.SIGRTMIN), ("RTMAX", "-", signal.SIGRTMAX)):
        if bare.startswith(base) and bare != base:
            offset = bare.removeprefix(base)
            if offset[0] == sign and offset[1:].isdecimal():
                number = first + int(offset)
                if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                    return number
            raise InvalidRequest(f"invalid signal: {untrusted_text}")
    try:
        return int(signal.Signals[f"SIG{bare}"])
    except KeyError:
        raise InvalidRequest(f"invalid signal: {untrusted_text}") from None
