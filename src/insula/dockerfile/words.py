"""Words in a Dockerfile's instructions: quotes, escapes and `$variables`, as a shell has them.  Pure.

The rules are those of Dockerfile's reference ("Environment replacement") and of BuildKit's `shell` package,
whose behaviour docker users know: `$name`, `${name}`, and in braces the modifiers `:-` `-` `:+` `+` `:?` `?`
`#` `##` `%` `%%` `/` `//`.  No commands, no arithmetic.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping

from insula.dockerfile.globs import substitute, trim
from insula.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
_SPACE = " \t\n\r\f\v"
_SPACES = re.compile(rf"[{_SPACE}]+")
_DEEPEST = 40
_MOST = 1 << 20  # characters that variables may add: each can be twice what was before


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """What is wrong is said with the word that it is wrong in."""
    try:
        yield
    except InvalidRequest as error:
        quoted = json.dumps(text, ensure_ascii=False)
        raise InvalidRequest(f"failed to process {quoted}: {error.message}") from None


def expand(text: str, env: Mapping[str, str], escape: str = "\\") -> str:
    """`text` as one word: variables replaced, quotes and escapes gone.  Raises InvalidRequest."""
    with _named(text):
        return _Scanner(text, env, escape).whole()


def expand_words(text: str, env: Mapping[str, str], escape: str = "\\") -> tuple[str, ...]:
    """The same, split at blanks that are not quoted; a variable's value is split too."""
    scanner = _Scanner(text, env, escape)
    with _named(text):
        scanner.whole()
    return scanner.finished_words()


def expand_text(text: str, env: Mapping[str, str], escape: str = "\\") -> str:
    """A here-document's content: variables only; quotes stay as they are."""
    with _named(text):
        return _Scanner(text, env, escape, quotes=False).whole()


class _Scanner:
    def __init__(self, text: str, env: Mapping[str, str], escape: str, *, quotes: bool = True) -> None:
        self._text = text
        self._env = env
        self._escape = escape
        self._quotes = quotes
        self._at = 0
        self._depth = 0
        self._size = 0
        self._words: list[str] = []
        self._word: list[str] | None = None

    def whole(self) -> str:
        return self._until("", splitting=True)

    def finished_words(self) -> tuple[str, ...]:
        self._end_word()
        return tuple(self._words)

    # words

    def _end_word(self) -> None:
        if self._word is not None:
            self._words.append("".join(self._word))
        self._word = None

    def _raw(self, piece: str) -> None:
        """Part of a word, whatever is in it."""
        if self._word is None:
            self._word = []
        self._word.append(piece)

    def _split(self, value: str) -> None:
        """A variable's value, blanks in it ending words."""
        first, *others = _SPACES.split(value)
        if first:
            self._raw(first)
        for other in others:
            self._end_word()
            if other:
                self._raw(other)

    # characters

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += len(char)
        return char

    def _until(self, stop: str, *, splitting: bool = False, pattern: bool = False) -> str:
        """Everything up to `stop`, which is consumed; up to the end for "".  In a `pattern` what is escaped
        keeps a backslash, so that it is no wildcard."""
        out: list[str] = []
        while char := self._peek():
            if stop and char in stop:
                self._at += 1
                return "".join(out)
            if char == "$":
                piece = self._dollar()
                if splitting:
                    self._split(piece)
            elif self._quotes and char in "'\"":
                piece = self._single() if char == "'" else self._double()
                if splitting:
                    self._raw(piece)
            else:
                self._at += 1
                piece = char
                if char == self._escape:
                    piece = f"\\{self._escaped()}" if pattern else self._escaped()
                    if splitting and piece:
                        self._raw(piece)
                elif splitting:
                    if char in _SPACE:
                        self._end_word()
                    else:
                        self._raw(char)
            out.append(piece)
        if stop:
            raise InvalidRequest("syntax error: missing '}' of a substitution")
        return "".join(out)

    def _escaped(self) -> str:
        if self._quotes:
            return self._next()
        return self._next() if self._peek() in ("$", self._escape) and self._peek() else self._escape

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise InvalidRequest("unexpected end of statement while looking for matching single-quote")
        piece, self._at = self._text[self._at + 1 : end], end + 1
        return piece

    def _double(self) -> str:
        self._at += 1
        out: list[str] = []
        while char := self._peek():
            if char == "$":
                out.append(self._dollar())
                continue
            self._at += 1
            if char == '"':
                return "".join(out)
            if char == self._escape:
                following = self._next()
                if following not in ('"', "$", self._escape):
                    out.append(char)
                out.append(following)
            else:
                out.append(char)
        raise InvalidRequest("unexpected end of statement while looking for matching double-quote")

    # variables

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _dollar(self) -> str:
        value = self._value()
        self._size += len(value)
        if self._size > _MOST:
            raise InvalidRequest(f"expands to more than {_MOST >> 20} MiB")
        return value

    def _value(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            return self._env.get(name, "") if name else "$"
        self._at += 1
        self._depth += 1
        if self._depth > _DEEPEST:
            raise InvalidRequest("a substitution is nested too deeply")
        try:
            return self._braces()
        finally:
            self._depth -= 1

    def _braces(self) -> str:
        name = self._name()
        value = self._env.get(name)
        char = self._next()
        if not name:
            raise InvalidRequest("syntax error: bad substitution")
        if char == "}":
            return value or ""
        strict = char == ":"
        if strict:
            char = self._next()
        missing = value is None or (strict and not value)
        match char:
            case "-":
                default = self._until("}")
                return default if missing else value or ""
            case "+":
                other = self._until("}")
                return "" if missing else other
            case "?":
                message = self._until("}")
                if missing:
                    kind = "empty" if strict and value is not None else "unset"
                    raise InvalidRequest(f"{name}: {message or f'is not allowed to be {kind}'}")
                return value or ""
        if not strict and char in ("#", "%"):
            longest = self._peek() == char
            self._at += longest
            return trim(value or "", self._until("}", pattern=True), prefix=char == "#", longest=longest)
        if not strict and char == "/":
            everywhere = self._peek() == "/"
            self._at += everywhere
            pattern, replacement = self._until("/", pattern=True), self._until("}")
            return substitute(value or "", pattern, replacement, everywhere=everywhere)
        if not char:
            raise InvalidRequest("syntax error: missing '}' of a substitution")
        raise InvalidRequest(f"unsupported modifier ({char}) in substitution")
