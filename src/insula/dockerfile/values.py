"""The forms in which instructions take their arguments: exec form, pairs, flags, ports.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from insula.errors import InvalidRequest

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_FLAG = re.compile(r"""--(?:\s|$)|--((?:[^\s"'\\]|\\.|"(?:\\.|[^"\\])*"|'[^']*')+)\s*""")
_QUOTED = re.compile(r"""\\(.)|"((?:\\.|[^"\\])*)"|'([^']*)'""", re.DOTALL)


def json_words(text: str) -> tuple[str, ...] | None:
    """The exec form.  None for anything else, as Docker then takes it for the shell form."""
    if not text.startswith("["):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tuple(items) if isinstance(items, list) and all(isinstance(i, str) for i in items) else None


def split_flags(text: str) -> tuple[tuple[tuple[str, str | None], ...], str]:
    """Leading `--name=value`s (value None: no `=`), and what follows them."""
    flags: list[tuple[str, str | None]] = []
    while match := _FLAG.match(text):
        text = text[match.end() :].lstrip()
        if match[1] is None:  # a bare -- ends them
            break
        name, equals, value = _QUOTED.sub(_unquoted, match[1]).partition("=")
        flags.append((name, value if equals else None))
    return tuple(flags), text


def _unquoted(match: re.Match[str]) -> str:
    return match[1] or match[2] or match[3] or ""


def take_flags(
    instruction: str,
    flags: Sequence[tuple[str, str | None]],
    known: Mapping[str, bool],
    many: Sequence[str] = (),
) -> dict[str, tuple[str, ...]]:
    """`known`: name to whether it is a switch (true or false).  Raises InvalidRequest in BuildKit's words."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in flags:
        if name not in known:
            raise InvalidRequest(f"unknown flag: {name}", hint=_known_flags(instruction, known))
        if name in found and name not in many:
            raise InvalidRequest(f"duplicate flag specified: {name}")
        if known[name]:
            if value not in (None, "true", "false"):
                raise InvalidRequest(f"expecting boolean value for flag {name}, not: {value}")
        elif value is None:
            raise InvalidRequest(f"missing a value on flag: {name}")
        found[name] = (*found.get(name, ()), "true" if value is None else value)
    return found


def _known_flags(instruction: str, known: Mapping[str, bool]) -> str:
    if not known:
        return f"{instruction} has no flags"
    return f"{instruction} has {', '.join(f'--{name}' for name in known)}"


def parse_pairs(instruction: str, text: str, escape: str = "\\") -> tuple[tuple[str, str], ...]:
    """`a=1 b="two words"`, or the old form `a the rest of the line`; values still have their quotes.
    Raises InvalidRequest."""
    words = quoted_words(text, escape)
    if not words:
        raise InvalidRequest(f"{instruction} requires at least one argument")
    if "=" not in words[0]:
        name, _, value = text.strip().partition(" ") if " " in text.strip() else text.strip().partition("\t")
        if not value.strip():
            raise InvalidRequest(f"{instruction} must have two arguments")
        return ((name, value.strip()),)
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidRequest(
                f"Syntax error - can't find = in {json.dumps(word)}. Must be of the form: name=value"
            )
        if not name:
            raise InvalidRequest(f"{instruction} names can not be blank")
        pairs.append((name, value))
    return tuple(pairs)


def quoted_words(text: str, escape: str) -> list[str]:
    """Split at blanks outside quotes; quotes and escapes stay for `words.expand`."""
    words: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == escape and quote != "'" and at < len(text):
            char += text[at]
            at += 1
        elif quote:
            if char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char.isspace():
            if word:
                words.append(word)
            word = ""
            continue
        word += char
    return [*words, word] if word else words


def expand_ports(word: str) -> list[str]:
    """`80`, `80/udp`, `8000-8003` to `port/protocol`s.  Raises InvalidRequest."""
    match = _PORT.fullmatch(word)
    if match is None:
        raise InvalidRequest(f"invalid containerPort: {word}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 0 < first <= last <= 65535:
        raise InvalidRequest(f"invalid containerPort: {word}")
    return [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]
