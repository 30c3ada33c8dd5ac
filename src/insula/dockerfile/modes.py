"""`--chmod`: a mode in octal, or symbolic as chmod(1) has it (`u=rwX,go=rX`; Dockerfile 1.14).  Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from insula.errors import InvalidRequest

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 4, "w": 2, "x": 1}
_ALL = 0o7777


@dataclass(frozen=True, slots=True)
class Mode:
    """`actions` are whose bits (of `ugo`), what is done (`-`, `+`, `=`) and which; () with an octal one."""

    octal: int | None
    actions: tuple[tuple[str, str, str], ...] = ()

    def of(self, mode: int, *, directory: bool) -> int:
        """What `mode` (its permission bits) becomes."""
        if self.octal is not None:
            return self.octal
        for who, action, what in self.actions:
            mode = _changed(mode, who, action, what, directory=directory)
        return mode


def parse_mode(text: str) -> Mode:
    """Raises InvalidRequest."""
    if text and set(text) <= set("01234567") and int(text, 8) <= _ALL:
        return Mode(int(text, 8))
    actions: list[tuple[str, str, str]] = []
    for clause in text.split(","):
        found = _CLAUSE.fullmatch(clause)
        if found is None:
            raise InvalidRequest(
                f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, or "
                "symbolic (u=rwX,go=rX)"
            )
        who = "ugo" if not found[1] or "a" in found[1] else found[1]
        actions += [(who, action, what) for action, what in _ACTION.findall(found[2])]
    return Mode(None, tuple(actions))


def _changed(mode: int, who: str, action: str, what: str, *, directory: bool) -> int:
    bits = kept = 0
    for one in who:
        shift = _SHIFTS[one]
        kept |= 7 << shift
        if what in _SHIFTS and what:
            bits |= (mode >> _SHIFTS[what] & 7) << shift
        for letter in what:
            bits |= _BITS.get(letter, 0) << shift
        if "X" in what and (directory or mode & 0o111):
            bits |= 1 << shift
        if "s" in what and one in "ug":
            bits |= 0o4000 if one == "u" else 0o2000
        if one == "o" or not directory:  # of a directory `=` leaves set-id bits, as in GNU's chmod
            kept |= {"u": 0o4000, "g": 0o2000, "o": 0o1000}[one]
    if "t" in what:
        bits |= 0o1000
    if action == "+":
        return mode | bits
    if action == "-":
        return mode & ~bits
    return mode & ~kept | bits
