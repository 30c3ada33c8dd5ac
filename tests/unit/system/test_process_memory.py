"""The memory of a real process, copied: what is a file's, what it has written itself, and what it has not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from insula.errors import Failure
from insula.system.memory_file import find_extents, make_memory_file
from insula.system.process_memory import copy_file, copy_own, find_mapping, find_own

PAGE = 4096
PAGES = 64
# maps the file it has as descriptor 3, writes two runs of pages, prints where, and waits
CHILD = """
import ctypes, mmap, sys
kind = sys.argv[1]
size = 64 * 4096
if kind == "anonymous":
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
else:
    memory = mmap.mmap(3, size, flags=mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED)
memory[5 * 4096:7 * 4096] = b"w" * 2 * 4096
memory[63 * 4096:] = b"z" * 4096
memory[20 * 4096:21 * 4096] = bytes(4096)
memory[30 * 4096]
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def file() -> Iterator[int]:
    fd = make_memory_file("test", PAGES * PAGE)
    os.pwrite(fd, b"f" * 40 * PAGE, 10 * PAGE)
    yield fd
    os.close(fd)


def expected(kind: str) -> bytes:
    content = bytearray(PAGES * PAGE)
    if kind != "anonymous":
        content[10 * PAGE : 50 * PAGE] = b"f" * 40 * PAGE
    content[5 * PAGE : 7 * PAGE] = b"w" * 2 * PAGE
    content[63 * PAGE :] = b"z" * PAGE
    content[20 * PAGE : 21 * PAGE] = bytes(PAGE)
    return bytes(content)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it reads another process's memory")
@pytest.mark.parametrize("kind", ["private", "shared", "anonymous"])
def test_a_copy_is_what_the_process_sees(kind: str, file: int) -> None:
    read, write = os.pipe()
    argv = [sys.executable, "-c", f"import os; os.dup2({file}, 3)\n{CHILD}", kind]
    with subprocess.Popen(argv, stdin=read, stdout=subprocess.PIPE, text=True, pass_fds=(file,)) as child:
        os.close(read)
        target = make_memory_file("copy", PAGES * PAGE)
        try:
            assert child.stdout is not None
            mapping = find_mapping(child.pid, int(child.stdout.readline()), PAGES * PAGE)
            assert (kind == "shared", kind != "anonymous") == (mapping.shared, bool(mapping.file))
            if kind != "anonymous":
                copy_file(mapping, target)
            if kind != "shared":
                own = [(start // PAGE, length // PAGE) for start, length in find_own(mapping)]
                assert {(5, 2), (20, 1), (63, 1)} <= set(own)
                assert sum(length for _, length in own) <= 5  # a page that was only read is not its own
                assert copy_own(mapping, target) == sum(length for _, length in own) * PAGE
            assert expected(kind) == os.pread(target, PAGES * PAGE, 0)
            if kind == "anonymous":  # zeros take no memory
                assert 3 * PAGE == sum(length for _, length in find_extents(target))
            with pytest.raises(Failure, match="has no mapping of"):
                find_mapping(child.pid, mapping.start, 1 << 40)
        finally:
            os.close(write)
            os.close(target)
