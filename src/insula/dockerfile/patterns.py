"""File name patterns: `.dockerignore` and `COPY --exclude` (`Ignored`), sources of COPY.  Pure.

Both are Go's: `filepath.Match`, with `**` and `!` in the first (moby/patternmatcher).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from insula.errors import InvalidRequest

_WILDCARD = re.compile(r"(?:[^*?\[\\]|\\.)*+[*?\[]", re.DOTALL)


def has_wildcards(pattern: str) -> bool:
    """Whether a source of COPY is a pattern.  As in Docker, what has only escaped ones is a plain name, its
    backslashes included."""
    return _WILDCARD.match(pattern) is not None


def parse_ignore(text: str) -> tuple[str, ...]:
    """The patterns of a `.dockerignore`: no comments, no empty lines, cleaned."""
    found = []
    for number, row in enumerate(text.removeprefix("\ufeff").splitlines()):
        pattern = row.strip() if not (number == 0 and row.startswith("#")) else ""
        if not pattern or row.startswith("#"):
            continue
        negated = pattern.startswith("!")
        pattern = pattern[negated:].strip()
        if pattern:
            pattern = posixpath.normpath(pattern)
            if len(pattern) > 1 and pattern.startswith("/"):
                pattern = pattern.lstrip("/")
        found.append("!" + pattern if negated else pattern)
    return tuple(found)


class Ignored:
    """Whether a path (relative, with `/`) is left out.  The last pattern that matches it, or a directory that
    it is in, decides."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for pattern in patterns:
            negated = pattern.startswith("!")
            text = posixpath.normpath(pattern[negated:].strip() or ".").lstrip("/")
            if text == "." and not negated and pattern.strip() in ("", "."):
                continue
            if not pattern[negated:].strip():
                raise InvalidRequest(f'illegal exclusion pattern: "{pattern}"')
            self._rules.append((_compile(text), negated))
        self.has_exceptions = any(negated for _, negated in self._rules)

    def matches(self, path: str) -> bool:
        parts = path.strip("/").split("/")
        names = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        ignored = False
        for pattern, negated in self._rules:
            if negated == ignored and any(pattern.fullmatch(name) for name in names):
                ignored = not negated
        return ignored


def _compile(pattern: str) -> re.Pattern[str]:
    source, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern[at : at + 1] == "*":
            at += 1
            if pattern[at : at + 1] == "/":
                at += 1
            source += ".*" if at >= len(pattern) else "(?:.*/)?"
        else:
            piece, at = _piece(pattern, char, at)
            source += piece
    return _compiled(source, pattern)


def _piece(pattern: str, char: str, at: int) -> tuple[str, int]:
    """The regular expression for one element that begins with `char`, and where the next begins."""
    if char == "*":
        return "[^/]*", at
    if char == "?":
        return "[^/]", at
    if char == "\\" and at < len(pattern):
        return re.escape(pattern[at]), at + 1
    if char == "[":
        start = at + (pattern[at : at + 1] == "^")
        end = pattern.find("]", start + 1)
        if end < 0:
            raise InvalidRequest(f"syntax error in pattern: {pattern}")
        inside = pattern[at:end].replace("[", r"\[").replace("&&", r"&\&").replace("||", r"|\|")
        return f"[{inside}]", end + 1
    return re.escape(char), at


def _compiled(source: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(source, re.DOTALL)
    except re.error:
        raise InvalidRequest(f"syntax error in pattern: {pattern}") from None


def compile_part(pattern: str) -> re.Pattern[str]:
    """One part of a path, between slashes.  Raises InvalidRequest."""
    source, at = "", 0
    while at < len(pattern):
        piece, at = _piece(pattern, pattern[at], at + 1)
        source += piece
    return _compiled(source, pattern)
