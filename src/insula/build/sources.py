"""Finding what COPY and ADD name, inside roots that nobody changes meanwhile.  Synchronous, light to import.

Runs in the confined child only: whatever a link says, nothing outside the child's own file system is there.
A root is a path; what is in it is hostile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from insula.dockerfile.patterns import compile_part, has_wildcards
from insula.errors import InvalidRequest

_LONGEST_CHAIN = 40
_MAX_MATCHES = 1_000_000

Look = Callable[[tuple[bytes, ...]], "bytes | bool | None"]
"""What is at a path that the step itself has made: a link's target, True for a directory, False for anything
else; None: nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """`path` is real, `name` as it was asked for (relative to the root, its links not followed)."""

    path: bytes
    name: bytes
    status: os.stat_result


def parts_of(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def resolve(root: bytes, path: bytes, *, look: Look = lambda _: None) -> tuple[bytes, ...]:
    """The parts of the path, below the root, that `path` means when `root` is `/`, its links followed.

    What does not exist stays as it is written.  Raises InvalidRequest for a circle of links.
    """
    todo = parts_of(path)[::-1]
    done: list[bytes] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == b"..":
            del done[-1:]
            continue
        target = _link(root, (*done, part), look)
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _LONGEST_CHAIN:
            raise InvalidRequest(f"{os.fsdecode(path)}: too many levels of symbolic links")
        if target.startswith(b"/"):
            done.clear()
        todo += parts_of(target)[::-1]
    return tuple(done)


def _link(root: bytes, parts: tuple[bytes, ...], look: Look) -> bytes | None:
    made = look(parts)
    if isinstance(made, bytes):
        return made
    if made is not None:
        return None
    try:
        return os.readlink(b"/".join((root, *parts)))
    except OSError:  # it is no link, or it is not there
        return None


def find_sources(root: bytes, pattern: str) -> Iterator[Found]:
    """What a source of COPY means, in the order of names.  Raises FileNotFoundError for a plain name that is
    not there, InvalidRequest for a pattern that is none."""
    name = os.fsencode(pattern)
    if not has_wildcards(pattern):
        yield _found(root, name)
        return
    patterns = [os.fsdecode(part) for part in _clean(name)]
    for count, parts in enumerate(_matching(root, (), patterns)):
        if count >= _MAX_MATCHES:
            raise InvalidRequest(f"{pattern}: matches more than {_MAX_MATCHES} files")
        yield _found(root, b"/".join(parts))


def _clean(name: bytes) -> list[bytes]:
    """Without `.` and `..`, which cannot lead out."""
    done: list[bytes] = []
    for part in parts_of(name):
        if part == b"..":
            del done[-1:]
        else:
            done.append(part)
    return done


def _found(root: bytes, name: bytes) -> Found:
    parts = resolve(root, name)
    path = b"/".join((root, *parts))
    return Found(path, b"/".join(_clean(name)), os.lstat(path))


def _matching(root: bytes, parts: tuple[bytes, ...], patterns: list[str]) -> Iterator[tuple[bytes, ...]]:
    wanted = compile_part(patterns[0])
    directory = b"/".join((root, *parts)) or b"/"
    for entry in sorted(os.listdir(directory)):
        if not wanted.fullmatch(os.fsdecode(entry)):
            continue
        below = (*parts, entry)
        if len(patterns) == 1:
            yield below
        elif stat.S_ISDIR(os.lstat(b"/".join((root, *below))).st_mode):
            yield from _matching(root, below, patterns[1:])
