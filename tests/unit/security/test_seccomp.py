"""The profile resolved for an instance, as an OCI section and as BPF that a simulated kernel runs."""

from __future__ import annotations

import json

import pytest

from insula.errors import InvalidRequest
from insula.security import bpf
from insula.security.capabilities import finalize_capabilities
from insula.security.seccomp import compile_bpf, make_oci_section, resolve, syscall_numbers
from insula.security.tighten import tighten
from unit.security.bpf_machine import run_filter

KERNEL = (6, 1)
NUMBERS = syscall_numbers()
ERRNO = 0x00050000
I386 = 0x40000003


def rule(*names: str, action: str = "ALLOW", **more: object) -> dict[str, object]:
    return {"names": list(names), "action": f"SCMP_ACT_{action}", **more}


def profile(*rules: dict[str, object]) -> str:
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "archMap": [
                {
                    "architecture": "SCMP_ARCH_X86_64",
                    "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                }
            ],
            "syscalls": list(rules),
        }
    )


def argument(index: int, value: int, op: str, value_two: int = 0) -> dict[str, object]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": f"SCMP_CMP_{op}"}


SAMPLE = profile(
    rule("read", "write", "exit_group", "mseal"),
    rule("personality", args=[argument(0, 0, "EQ")]),
    rule("personality", args=[argument(0, 0xFFFFFFFF, "EQ")]),
    rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
    rule("mount", action="ERRNO", errnoRet=1, excludes={"caps": ["CAP_SYS_ADMIN"]}),
    rule("arch_prctl", includes={"arches": ["amd64"]}),
    rule("breakpoint", "sync_file_range", includes={"arches": ["arm64"]}),
    rule("ptrace", includes={"minKernel": "4.8"}),
    rule("bpf", includes={"minKernel": "6.2"}),
    rule("socket", action="ERRNO", errnoRet=22, args=[argument(0, 16, "EQ"), argument(2, 9, "EQ")]),
    rule("socket", args=[argument(2, 9, "NE")]),
    rule("socket", args=[argument(0, 16, "NE")]),
    rule("clone", args=[argument(0, 0x7E020000, "MASKED_EQ", 0)]),
    rule("kexec_load", action="KILL_PROCESS"),
)


def answer(name: str, *args: int, caps: tuple[str, ...] = (), text: str = SAMPLE) -> int:
    return int(run_filter(compile_bpf(text, caps, KERNEL), NUMBERS[name], args)[0])


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("read", (), bpf.ALLOW),
        ("mseal", (), bpf.ALLOW),
        ("open", (), ERRNO | 38),
        ("mount", (), ERRNO | 1),
        ("arch_prctl", (), bpf.ALLOW),
        ("sync_file_range", (), ERRNO | 38),
        ("ptrace", (), bpf.ALLOW),
        ("bpf", (), ERRNO | 38),
        ("kexec_load", (), bpf.KILL_PROCESS),
        ("personality", (0,), bpf.ALLOW),
        ("personality", (0xFFFFFFFF,), bpf.ALLOW),
        ("personality", (0x1_0000_0000,), ERRNO | 38),
        ("personality", (8,), ERRNO | 38),
        ("socket", (16, 3, 9), ERRNO | 22),
        ("socket", (16, 3, 0), bpf.ALLOW),
        ("socket", (2, 1, 9), bpf.ALLOW),
        ("clone", (0x00000F00,), bpf.ALLOW),
        ("clone", (0x10000000,), ERRNO | 38),
    ],
)
def test_verdicts(name: str, args: tuple[int, ...], expected: int) -> None:
    assert answer(name, *args) == expected


def test_a_capability_opens_its_calls() -> None:
    assert answer("mount", caps=("CAP_SYS_ADMIN",)) == bpf.ALLOW


NESTING = profile(
    rule("read", "clone", "clone3", "unshare", "mount", "setns", "syslog", "keyctl", "mbind"),
    rule("setns", includes={"caps": ["CAP_SYS_ADMIN"]}),
)
NEW_USER = 0x10000000


@pytest.mark.parametrize(
    ("name", "args", "caps", "expected"),
    [
        ("read", (), (), bpf.ALLOW),
        ("clone", (0x00000F11,), (), bpf.ALLOW),
        ("clone", (NEW_USER | 0x11,), (), ERRNO | 1),
        ("clone", (0x00020000,), (), ERRNO | 1),
        ("clone", (NEW_USER,), ("CAP_SYS_ADMIN",), bpf.ALLOW),
        ("clone3", (), (), ERRNO | 38),
        ("clone3", (), ("CAP_SYS_ADMIN",), bpf.ALLOW),
        ("unshare", (NEW_USER,), (), ERRNO | 1),
        ("unshare", (NEW_USER,), ("CAP_SYS_ADMIN",), bpf.ALLOW),
        ("mount", (), ("CAP_NET_ADMIN",), ERRNO | 1),
        ("setns", (), (), ERRNO | 1),
        ("setns", (), ("CAP_SYS_ADMIN",), bpf.ALLOW),
        ("syslog", (), (), ERRNO | 1),
        ("syslog", (), ("CAP_SYSLOG",), bpf.ALLOW),
        ("syslog", (), ("CAP_SYS_ADMIN",), bpf.ALLOW),
        ("mbind", (), ("CAP_SYS_ADMIN",), ERRNO | 1),
        ("keyctl", (), ("CAP_SYS_ADMIN", "CAP_SYS_NICE"), ERRNO | 1),
    ],
)
def test_the_distributions_profile_is_made_as_strict_as_dockers(
    name: str, args: tuple[int, ...], caps: tuple[str, ...], expected: int
) -> None:
    assert answer(name, *args, caps=caps, text=tighten(NESTING)) == expected


@pytest.mark.parametrize(
    ("op", "allowed", "refused"),
    [
        ("GT", [6, 2**32, 2**63], [5, 0]),
        ("GE", [5, 2**40], [4]),
        ("LT", [0, 4], [5, 2**32]),
        ("LE", [0, 5], [6, 2**32 + 1]),
        ("NE", [4, 5 + 2**32], [5]),
        ("EQ", [5], [4, 5 + 2**32]),
    ],
)
def test_comparisons_are_of_64_bits(op: str, allowed: list[int], refused: list[int]) -> None:
    text = profile(rule("read", args=[argument(1, 5, op)]))
    assert [answer("read", 0, value, text=text) for value in allowed] == [bpf.ALLOW] * len(allowed)
    assert [answer("read", 0, value, text=text) for value in refused] == [ERRNO | 38] * len(refused)


def test_x32_calls_are_refused_and_other_architectures_kill() -> None:
    program = compile_bpf(SAMPLE, (), KERNEL)
    assert run_filter(program, 0x40000000 | NUMBERS["read"])[0] == ERRNO | 38
    assert run_filter(program, 0xFFFFFFFF)[0] == ERRNO | 38
    assert run_filter(program, 3, arch=I386)[0] == bpf.KILL_PROCESS
    assert run_filter(program, 0, arch=0xC00000B7)[0] == bpf.KILL_PROCESS


def test_32_bit_calls_have_their_own_numbers() -> None:
    program = compile_bpf(SAMPLE, (), KERNEL, i386=True)
    numbers = syscall_numbers("i386")
    assert run_filter(program, numbers["read"], arch=I386)[0] == bpf.ALLOW
    assert run_filter(program, numbers["open"], arch=I386)[0] == ERRNO | 38
    assert run_filter(program, 0, arch=0xC00000B7)[0] == bpf.KILL_PROCESS
    assert run_filter(program, NUMBERS["read"])[0] == bpf.ALLOW


def test_a_long_profile_is_searched_not_walked() -> None:
    text = profile(*(rule(name) for i, name in enumerate(sorted(NUMBERS)) if i % 2))
    program = compile_bpf(text, (), KERNEL)
    steps = [run_filter(program, number)[1] for number in NUMBERS.values()]
    assert max(steps) < 40
    for i, name in enumerate(sorted(NUMBERS)):
        assert run_filter(program, NUMBERS[name])[0] == (bpf.ALLOW if i % 2 else ERRNO | 38)


def test_oci_section_carries_architectures_arguments_and_errnos() -> None:
    section = make_oci_section(resolve(SAMPLE, finalize_capabilities(), KERNEL))
    assert section["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert section["defaultErrnoRet"] == 38
    assert {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1} in section["syscalls"]
    assert {
        "names": ["personality"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
    } in section["syscalls"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction": "SCMP_ACT_DANCE"}',
        profile({"names": ["read"], "action": "SCMP_ACT_NOTIFY"}),
        profile(rule("read", args=[argument(9, 0, "EQ")])),
        profile(rule("read", includes={"minKernel": "new"})),
    ],
)
def test_a_bad_profile_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="seccomp profile"):
        resolve(text, (), KERNEL)
