"""Memory of another process, copied while it stands still.  Synchronous; root, or who may trace it.

`/proc/PID/pagemap` says which pages of a private mapping are the process's own (Documentation/admin-guide/mm/
pagemap.rst), so that of a mapping which is mostly a file's only what was written to it has to be read.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from insula.errors import Failure
from insula.system.memory_file import find_extents

_PAGE = 4096
_PIECE = 1 << 20
_ZERO = bytes(_PIECE)
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)")
# bit 63 of an entry: present; 62: swapped; 61: a file's page, or shared.  Of the highest byte: own or not.
_OWN = bytes(1 if (top & 0x40) or (top & 0xA0) == 0x80 else 0 for top in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A part of one of the process's mappings.  `file` is the path of what is mapped, "" for nothing;
    `offset` is that of `start` in it."""

    pid: int
    start: int
    size: int
    shared: bool
    file: str
    offset: int


def find_mapping(pid: int, address: int, size: int) -> Mapping:
    """That of `size` bytes from `address`.  Raises Failure when they are not in one mapping."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            found = _LINE.match(line)
            assert found is not None
            start, end = int(found[1], 16), int(found[2], 16)
            if not start <= address < end:
                continue
            if end - address < size:
                break
            return Mapping(
                pid=pid,
                start=address,
                size=size,
                shared=found[3].endswith("s"),
                file=f"/proc/{pid}/map_files/{start:x}-{end:x}" if found[6] != "0" else "",
                offset=int(found[4], 16) + address - start,
            )
    raise Failure(f"process {pid} has no mapping of {size} bytes at {address:#x}")


def copy_file(mapping: Mapping, target: int) -> None:
    """What is in the mapping's file, below what the process itself has written: for a private mapping this
    can be done while it runs.  `target` has holes there, and is as long as the mapping.  Raises Failure."""
    with _opened(mapping.file) as source:
        for start, length in find_extents(source):
            first, end = max(start, mapping.offset), min(start + length, mapping.offset + mapping.size)
            at = first
            while at < end:
                piece = os.pread(source, min(_PIECE, end - at), at)
                if not piece:
                    raise Failure(f"the memory file of process {mapping.pid} became shorter")
                at += os.pwrite(target, piece, at - mapping.offset)


def copy_own(mapping: Mapping, target: int) -> int:
    """The pages that are the process's own, over what `copy_file` has put there; returns how many bytes.
    It must stand still meanwhile."""
    total = 0
    with _opened(f"/proc/{mapping.pid}/mem") as memory:
        for start, length in find_own(mapping):
            total += length
            for at in range(start, start + length, _PIECE):
                piece = os.pread(memory, min(_PIECE, start + length - at), mapping.start + at)
                if mapping.file:
                    os.pwrite(target, piece, at)
                else:
                    _write_without_zeros(target, piece, at)
    return total


def find_own(mapping: Mapping) -> Iterator[tuple[int, int]]:
    """(offset, length) of runs of pages that are the process's own."""
    with _opened(f"/proc/{mapping.pid}/pagemap") as pagemap:
        entries = os.pread(pagemap, mapping.size // _PAGE * 8, mapping.start // _PAGE * 8)
    own = entries[7::8].translate(_OWN)  # the highest byte of each
    at = own.find(1)
    while at >= 0:
        end = own.find(0, at)
        end = len(own) if end < 0 else end
        yield at * _PAGE, (end - at) * _PAGE
        at = own.find(1, end)


def _write_without_zeros(target: int, piece: bytes, at: int) -> None:
    """Pages of zeros stay holes."""
    if piece == _ZERO[: len(piece)]:
        return
    view = memoryview(piece)
    zero = _ZERO[:_PAGE]
    start = None
    for offset in range(0, len(piece), _PAGE):
        if view[offset : offset + _PAGE] == zero:
            if start is not None:
                os.pwrite(target, view[start:offset], at + start)
                start = None
        elif start is None:
            start = offset
    if start is not None:
        os.pwrite(target, view[start:], at + start)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
