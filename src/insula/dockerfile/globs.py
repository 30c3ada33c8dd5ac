"""A shell's patterns in `${name#pattern}` and its like, in bounded time whatever a stranger writes.  Pure.

Not with `re`: several `*` over a long value would keep its backtracking busy for hours.
"""

from __future__ import annotations

from collections.abc import Iterator

from insula.errors import InvalidRequest

_ANY, _STAR = object(), object()
_MOST_STEPS = 500_000


class _Budget:
    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise InvalidRequest("the pattern takes too long on a value of this length")


def _tokens(pattern: str) -> list[object]:
    """`*`, `?`, and a backslash before what is meant as it is."""
    found: list[object] = []
    escaped = False
    for char in pattern:
        if escaped or char not in "\\*?":
            found.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            found.append(_STAR if char == "*" else _ANY)
    return found


def _ends(tokens: list[object], value: str, start: int, budget: _Budget) -> Iterator[int]:
    """Where a match that begins at `start` may end, nearest first."""
    states = _closed(tokens, {0})
    at = start
    while True:
        if len(tokens) in states:
            yield at
        if at == len(value) or not states:
            return
        budget.spend(1 + len(states))
        char = value[at]
        at += 1
        after: set[int] = set()
        for state in states:
            if state == len(tokens):
                continue
            token = tokens[state]
            if token is _STAR:
                after.add(state)
            elif token is _ANY or token == char:
                after.add(state + 1)
        states = _closed(tokens, after)


def _closed(tokens: list[object], states: set[int]) -> set[int]:
    """With what follows a `*` that matches nothing."""
    found = set(states)
    for state in states:
        at = state
        while at < len(tokens) and tokens[at] is _STAR:
            at += 1
            found.add(at)
    return found


def _pick(ends: Iterator[int], *, longest: bool) -> int | None:
    picked = None
    for end in ends:
        picked = end
        if not longest:
            break
    return picked


def trim(value: str, pattern: str, *, prefix: bool, longest: bool) -> str:
    """Without the shortest or longest part at its beginning (`prefix`) or end that matches.

    Raises InvalidRequest for what takes too long.
    """
    tokens = _tokens(pattern)
    if not prefix:
        tokens, value = tokens[::-1], value[::-1]
    end = _pick(_ends(tokens, value, 0, _Budget()), longest=longest)
    rest = value if end is None else value[end:]
    return rest if prefix else rest[::-1]


def substitute(value: str, pattern: str, replacement: str, *, everywhere: bool) -> str:
    """The first, or every, longest part that matches replaced; what matches nothing at all is no part."""
    tokens, budget = _tokens(pattern), _Budget()
    out: list[str] = []
    at = 0
    while at < len(value):
        end = _pick(_ends(tokens, value, at, budget), longest=True)
        if end is None or end == at:
            out.append(value[at])
            at += 1
            continue
        out.append(replacement)
        at = end
        if not everywhere:
            break
    return "".join(out) + value[at:]
