"""A small generator of seccomp filters in classic BPF, for x86_64.  Pure.

Not an interpreter of profiles (that is `seccomp`): it gets verdicts by system call number and writes a binary
search over the numbers, so that a call costs about eight instructions however long the profile is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from insula.errors import InvalidRequest

AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003
X32_BIT = 0x40000000
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
_ENOSYS = 38
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_LD_W_ABS = 0x20
_ALU_AND_K = 0x54
_JMP_JA = 0x05
_JMP_JEQ_K = 0x15
_JMP_JGT_K = 0x25
_JMP_JGE_K = 0x35
_RET_K = 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data

# code, jump if true, jump if false, k
Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Test:
    """A condition on argument `index`; for MASKED_EQ `value` is the mask and `value_two` the datum."""

    __test__ = False  # not for pytest

    index: int
    operator: str
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """If every test holds: the verdict."""

    tests: tuple[Test, ...]
    verdict: int


def verdict(action: str, errno: int) -> int:
    """The kernel's return value for libseccomp's word."""
    words = {
        "ALLOW": ALLOW,
        "LOG": 0x7FFC0000,
        "TRACE": 0x7FF00000 | (errno & 0xFFFF),
        "TRAP": 0x00030000,
        "ERRNO": ERRNO | (errno & 0xFFFF),
        "KILL": 0,
        "KILL_THREAD": 0,
        "KILL_PROCESS": KILL_PROCESS,
    }
    return words[action]


Table = Mapping[int, Sequence[Branch]]


def assemble(native: Table, default: int, *, i386: Table | None = None) -> bytes:
    """The filter as `struct sock_filter[]`, from the branches by system call number.

    Of several branches for one number, one without tests decides alone (as in libseccomp); otherwise
    the one with most tests comes first, and none holding means the default.  `i386` is for 32-bit calls;
    None: they kill.  Raises InvalidRequest if the filter is longer than the kernel takes.
    """
    long_mode: list[Instruction] = [
        (_LD_W_ABS, 0, 0, _NR),
        (_JMP_JGE_K, 0, 1, X32_BIT),
        (_RET_K, 0, 0, ERRNO | _ENOSYS),
        *_table(native, default),
    ]
    code: list[Instruction] = [
        (_LD_W_ABS, 0, 0, _ARCH),
        (_JMP_JEQ_K, 1, 0, AUDIT_ARCH_X86_64),
        (_JMP_JA, 0, 0, len(long_mode)),
        *long_mode,
    ]
    if i386 is not None:
        code += [(_JMP_JEQ_K, 1, 0, AUDIT_ARCH_I386), (_RET_K, 0, 0, KILL_PROCESS)]
        code += [(_LD_W_ABS, 0, 0, _NR), *_table(i386, default)]
    else:
        code.append((_RET_K, 0, 0, KILL_PROCESS))
    if len(code) > _MAX_INSTRUCTIONS:
        raise InvalidRequest(f"the seccomp profile needs {len(code)} instructions; the kernel takes 4096")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _table(by_number: Table, default: int) -> list[Instruction]:
    leaves = [(number, _leaf(branches, default)) for number, branches in sorted(by_number.items())]
    return _search(_ranges(leaves, [(_RET_K, 0, 0, default)]))


def _leaf(branches: Sequence[Branch], default: int) -> list[Instruction]:
    plain = [branch for branch in branches if not branch.tests]
    if plain:
        return [(_RET_K, 0, 0, plain[0].verdict)]
    code: list[Instruction] = []
    for branch in sorted(branches, key=lambda b: -len(b.tests)):
        code += _branch(branch)
    return [*code, (_RET_K, 0, 0, default)]


def _ranges(
    leaves: list[tuple[int, list[Instruction]]], otherwise: list[Instruction]
) -> list[tuple[int, list[Instruction]]]:
    """(first number, code) for stretches of equal code, with the default in the gaps."""
    found: list[tuple[int, list[Instruction]]] = []
    following = 0
    for number, code in leaves:
        if number > following:
            found.append((following, otherwise))
        found.append((number, code))
        following = number + 1
    found.append((following, otherwise))
    return [entry for i, entry in enumerate(found) if i == 0 or entry[1] != found[i - 1][1]]


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    left, right = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_JMP_JGE_K, 0, 1, ranges[middle][0]), (_JMP_JA, 0, 0, len(left)), *left, *right]


def _branch(branch: Branch) -> list[Instruction]:
    """The tests, each going past the end when it fails, then the verdict."""
    code: list[Instruction] = [(_RET_K, 0, 0, branch.verdict)]
    for test in reversed(branch.tests):
        code = [*_test(test, len(code)), *code]
    return code


def _test(test: Test, after: int) -> list[Instruction]:
    """Falls through when it holds; when not, goes `after` instructions past its own end."""
    high, low = test.value >> 32 & 0xFFFFFFFF, test.value & 0xFFFFFFFF
    load_low = (_LD_W_ABS, 0, 0, _ARGS + 8 * test.index)
    load_high = (_LD_W_ABS, 0, 0, _ARGS + 8 * test.index + 4)
    if test.operator == "EQ":
        return [
            load_high,
            (_JMP_JEQ_K, 0, after + 2, high),
            load_low,
            (_JMP_JEQ_K, 0, after, low),
        ]
    if test.operator == "NE":
        return [
            load_high,
            (_JMP_JEQ_K, 0, 2, high),
            load_low,
            (_JMP_JEQ_K, after, 0, low),
        ]
    if test.operator == "MASKED_EQ":
        datum = test.value_two
        return [
            load_high,
            (_ALU_AND_K, 0, 0, high),
            (_JMP_JEQ_K, 0, after + 3, datum >> 32 & 0xFFFFFFFF),
            load_low,
            (_ALU_AND_K, 0, 0, low),
            (_JMP_JEQ_K, 0, after, datum & 0xFFFFFFFF),
        ]
    compare = _JMP_JGT_K if test.operator in ("GT", "LE") else _JMP_JGE_K
    if test.operator in ("GT", "GE"):
        return [
            load_high,
            (_JMP_JGT_K, 3, 0, high),
            (_JMP_JEQ_K, 0, after + 2, high),
            load_low,
            (compare, 0, after, low),
        ]
    return [  # LT, LE: fail where GE, GT would hold
        load_high,
        (_JMP_JGT_K, after + 3, 0, high),
        (_JMP_JEQ_K, 0, 2, high),
        load_low,
        (compare, after, 0, low),
    ]
