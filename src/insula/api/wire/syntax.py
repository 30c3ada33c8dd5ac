"""What is wrong with a JSON text, in the words of Go's encoding/json, which clients and their tests know.

Asked only after msgspec has refused a text; it says what, and where in bytes, but in words of its own.  Pure.
"""

from __future__ import annotations

import re

MOST_BYTES = 64 * 1024
"""How far a text is looked at: this is Python, on the event loop."""

_BLANK = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(rb"[0-9]*")
_HEX = b"0123456789abcdefABCDEF"
_VALUE = "looking for beginning of value"
_KEY = "looking for beginning of object key string"


class _Wrong(Exception):
    """`at`: the byte that does not belong; "" for `where`: the text ends too early."""

    def __init__(self, at: int, where: str) -> None:
        self.at = at
        self.where = where


def find_mistake(text: bytes) -> str:
    """ "" when none is found in the first MOST_BYTES."""
    try:
        end = _value(text[:MOST_BYTES])
    except _Wrong as wrong:
        if wrong.at >= len(text):
            return "invalid JSON: unexpected EOF"
        if wrong.at >= MOST_BYTES:
            return ""
        return f"invalid JSON: invalid character {_quote(text[wrong.at])} {wrong.where}"
    rest = _BLANK.match(text, end)
    return "unexpected content after JSON" if rest and rest.end() < len(text) else ""


def _value(text: bytes) -> int:
    """Where the first value ends.  Raises _Wrong."""
    inside: list[bytes] = []  # the brackets that are open
    at = _blank(text, 0)
    while True:
        at, opened = _begin(text, at, inside)
        if opened:
            continue
        # a value is complete: commas and brackets until another begins, or all are closed
        while inside:
            at = _blank(text, at)
            closing = b"}" if inside[-1] == b"{" else b"]"
            if text[at : at + 1] == closing:
                inside.pop()
                at += 1
                continue
            if text[at : at + 1] != b",":
                raise _Wrong(at, "after object key:value pair" if closing == b"}" else "after array element")
            at = _blank(text, at + 1)
            if closing == b"}":
                at = _key(text, at)
            break
        else:
            return at


def _begin(text: bytes, at: int, inside: list[bytes]) -> tuple[int, bool]:
    """One scalar or an empty container (`False`), or the beginning of a full one (`True`)."""
    first = text[at : at + 1]
    if first == b"{":
        at = _blank(text, at + 1)
        if text[at : at + 1] == b"}":
            return at + 1, False
        inside.append(first)
        return _key(text, at), True
    if first == b"[":
        at = _blank(text, at + 1)
        if text[at : at + 1] == b"]":
            return at + 1, False
        inside.append(first)
        return at, True
    if first == b'"':
        return _string(text, at + 1), False
    if first and first in b"-0123456789":
        return _number(text, at), False
    for word in (b"true", b"false", b"null"):
        if first == word[:1]:
            return _literal(text, at, word), False
    raise _Wrong(at, _VALUE)


def _blank(text: bytes, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _key(text: bytes, at: int) -> int:
    """A key and its colon; where the value begins."""
    if text[at : at + 1] != b'"':
        raise _Wrong(at, _KEY)
    at = _blank(text, _string(text, at + 1))
    if text[at : at + 1] != b":":
        raise _Wrong(at, "after object key")
    return _blank(text, at + 1)


def _string(text: bytes, at: int) -> int:
    while True:
        found = _PLAIN.match(text, at)
        at = found.end() if found else at
        if text[at : at + 1] == b'"':
            return at + 1
        if text[at : at + 1] != b"\\":
            raise _Wrong(at, "in string literal")
        kind = text[at + 1 : at + 2]
        if not kind or kind not in b'"\\/bfnrtu':
            raise _Wrong(at + 1, "in string escape code")
        at += 2
        for _ in range(4 if kind == b"u" else 0):
            if not text[at : at + 1] or text[at : at + 1] not in _HEX:
                raise _Wrong(at, "in \\u hexadecimal character escape")
            at += 1


def _number(text: bytes, at: int) -> int:
    at += text[at : at + 1] == b"-"
    at = at + 1 if text[at : at + 1] == b"0" else _digits(text, at, "in numeric literal")
    if text[at : at + 1] == b".":
        at = _digits(text, at + 1, "after decimal point in numeric literal")
    if text[at : at + 1] in (b"e", b"E"):
        at += 1 + (text[at + 1 : at + 2] in (b"+", b"-"))
        at = _digits(text, at, "in exponent of numeric literal")
    return at


def _digits(text: bytes, at: int, where: str) -> int:
    found = _DIGITS.match(text, at)
    if found is None or found.end() == at:
        raise _Wrong(at, where)
    return found.end()


def _literal(text: bytes, at: int, word: bytes) -> int:
    for index, letter in enumerate(word):
        if text[at + index : at + index + 1] != bytes((letter,)):
            raise _Wrong(at + index, f"in literal {word.decode()} (expecting '{chr(letter)}')")
    return at + len(word)


def _quote(byte: int) -> str:
    """As Go shows a byte."""
    letter = chr(byte)
    if letter == "'":
        return r"'\''"
    if letter == '"':
        return "'\"'"
    names = {
        "\\": r"\\",
        "\n": r"\n",
        "\r": r"\r",
        "\t": r"\t",
        "\b": r"\b",
        "\f": r"\f",
        "\v": r"\v",
        "\a": r"\a",
    }
    if letter in names:
        return f"'{names[letter]}'"
    return f"'{letter}'" if letter.isprintable() else f"'\\x{byte:02x}'" if byte < 128 else f"'\\u{byte:04x}'"
