"""Detach keys: a sequence in a tty's input that lets go of the instance instead of reaching it.  Pure."""

from __future__ import annotations

from insula.errors import InvalidRequest

DEFAULT_KEYS = b"\x10\x11"  # ctrl-p, ctrl-q


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q`, `a,ctrl-@`; "" is the default.  Raises InvalidRequest."""
    if not text:
        return DEFAULT_KEYS
    keys = bytearray()
    for word in text.split(","):
        if len(word) == 1 and word.isascii():
            keys += word.encode()
        elif word.startswith("ctrl-") and len(word) == 6 and (word[5].islower() or word[5] in "@[\\]^_"):
            keys.append(ord(word[5].upper()) & 0x1F)
        else:
            raise InvalidRequest(
                f"Invalid detach keys ({text}) provided: unknown key {word!r}",
                hint="single characters or ctrl- with a-z @ [ \\ ] ^ _, separated by commas",
            )
    return bytes(keys)


class EscapeScanner:
    """Feed it what a client typed; it gives back what the workload should get."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes to pass on, whether the sequence was completed).  What follows the sequence is dropped;
        a sequence that breaks off is passed on whole."""
        if self._matched == 0 and self._keys[0] not in data:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._matched = 0
                    return bytes(passed), True
                continue
            passed += self._keys[: self._matched]
            self._matched = 1 if byte == self._keys[0] else 0
            if not self._matched:
                passed.append(byte)
        return bytes(passed), False
