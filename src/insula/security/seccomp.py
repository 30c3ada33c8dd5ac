"""System call filters: the distribution's profile, resolved for one instance.

Not a policy of our own: the profile is the file that the containers tools install (or the user's), in the
containers-common format, with rules that hold only for some capabilities, architectures or kernels.
Pure, except `read_default_profile`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from insula.errors import InvalidRequest, Unavailable
from insula.security import bpf
from insula.security.tighten import tighten

DEFAULT_PROFILE = "/usr/share/containers/seccomp.json"
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_ACTIONS = ("KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG")
_SECCOMP_ARCH = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}
_EPERM = 1


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on one argument; `value_two` is the datum of MASKED_EQ."""

    index: int
    value: int
    value_two: int
    operator: str


@dataclass(frozen=True, slots=True)
class Rule:
    names: tuple[str, ...]
    action: str
    errno: int
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """A profile after its conditions have been decided."""

    default_action: str
    default_errno: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...] = field(default=())


def read_default_profile() -> str:
    """Text of the distribution's profile, made as strict as Docker's.  Raises Unavailable when the package is
    not there."""
    path = os.environ.get("INSULA_SECCOMP_PROFILE", DEFAULT_PROFILE)
    try:
        with open(path, encoding="utf-8") as file:
            return tighten(file.read())
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"the seccomp profile {path} is not valid: {error!r}") from error
    except OSError as error:
        raise Unavailable(
            f"the seccomp profile {path} cannot be read: {error.strerror}",
            hint="apt-get install golang-github-containers-common, or --security-opt seccomp=unconfined",
        ) from error


def resolve(
    profile_json: str, capabilities: Sequence[str], kernel: tuple[int, int], arch: str = "amd64"
) -> Filter:
    """Decide every condition of the profile.  `arch` is Go's name.  Raises InvalidRequest for a bad one."""
    return _resolve(profile_json, tuple(capabilities), kernel, arch)


@functools.lru_cache(maxsize=32)
def _resolve(profile_json: str, capabilities: tuple[str, ...], kernel: tuple[int, int], arch: str) -> Filter:
    try:
        profile = json.loads(profile_json)
        rules = tuple(
            _read_rule(entry)
            for entry in profile.get("syscalls") or ()
            if _applies(entry, frozenset(capabilities), kernel, arch)
        )
        return Filter(
            default_action=_action(profile["defaultAction"]),
            default_errno=int(profile.get("defaultErrnoRet") or _EPERM),
            architectures=_architectures(profile, arch),
            rules=rules,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidRequest(f"the seccomp profile is not valid: {error!r}") from error


def make_oci_section(filter_: Filter) -> dict[str, Any]:
    """`linux.seccomp` of an OCI config.json."""
    section: dict[str, Any] = {
        "defaultAction": f"SCMP_ACT_{filter_.default_action}",
        "architectures": list(filter_.architectures),
        "syscalls": [_oci_rule(rule) for rule in filter_.rules],
    }
    if filter_.default_action in ("ERRNO", "TRACE"):
        section["defaultErrnoRet"] = filter_.default_errno
    return section


def compile_bpf(
    profile_json: str, capabilities: Sequence[str], kernel: tuple[int, int], *, i386: bool = False
) -> bytes:
    """The profile as `struct sock_filter[]` for an x86_64 kernel: what SECCOMP_SET_MODE_FILTER takes.

    x32 calls answer ENOSYS.  Another architecture's calls kill; with `i386` the profile holds for 32-bit
    calls too.  Raises InvalidRequest.
    """
    filter_ = resolve(profile_json, capabilities, kernel)
    return bpf.assemble(
        _table(filter_, "x86_64"),
        bpf.verdict(filter_.default_action, filter_.default_errno),
        i386=_table(filter_, "i386") if i386 else None,
    )


def _table(filter_: Filter, machine: str) -> dict[int, list[bpf.Branch]]:
    numbers = syscall_numbers(machine)
    table: dict[int, list[bpf.Branch]] = {}
    for rule in filter_.rules:
        tests = tuple(bpf.Test(a.index, a.operator, a.value, a.value_two) for a in rule.arguments)
        verdict = bpf.verdict(rule.action, rule.errno)
        for name in rule.names:
            if name in numbers:
                table.setdefault(numbers[name], []).append(bpf.Branch(tests, verdict))
    return table


def syscall_numbers(machine: str = "x86_64") -> dict[str, int]:
    """By name; `machine` is x86_64 or i386."""
    text = resources.files("insula.security").joinpath(f"syscalls_{machine}.txt").read_text(encoding="ascii")
    pairs = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {name: int(number) for name, number in pairs}


def _applies(entry: dict[str, Any], caps: frozenset[str], kernel: tuple[int, int], arch: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if any(cap not in caps for cap in includes.get("caps") or ()):
        return False
    if (least := includes.get("minKernel")) and kernel < _version(least):
        return False
    if arch in (excludes.get("arches") or ()):
        return False
    if any(cap in caps for cap in excludes.get("caps") or ()):
        return False
    return not ((least := excludes.get("minKernel")) and kernel >= _version(least))


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"minKernel {text!r}")
    return int(match[1]), int(match[2])


def _read_rule(entry: dict[str, Any]) -> Rule:
    names = tuple(entry.get("names") or ()) or (entry["name"],)
    return Rule(
        names=names,
        action=_action(entry["action"]),
        errno=int(entry["errnoRet"]) if entry.get("errnoRet") is not None else _EPERM,
        arguments=tuple(_read_argument(a) for a in entry.get("args") or ()),
    )


def _read_argument(raw: dict[str, Any]) -> Argument:
    operator = str(raw["op"]).removeprefix("SCMP_CMP_")
    index = int(raw["index"])
    if operator not in _OPERATORS or not 0 <= index <= 5:
        raise ValueError(f"argument {raw!r}")
    return Argument(index, int(raw["value"]), int(raw.get("valueTwo") or 0), operator)


def _action(text: str) -> str:
    action = text.removeprefix("SCMP_ACT_")
    if action not in _ACTIONS:
        raise ValueError(f"action {text!r}")
    return action


def _architectures(profile: dict[str, Any], arch: str) -> tuple[str, ...]:
    native = _SECCOMP_ARCH[arch]
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            return (native, *(entry.get("subArchitectures") or ()))
    return tuple(profile.get("architectures") or (native,))


def _oci_rule(rule: Rule) -> dict[str, Any]:
    document: dict[str, Any] = {"names": list(rule.names), "action": f"SCMP_ACT_{rule.action}"}
    if rule.action in ("ERRNO", "TRACE"):
        document["errnoRet"] = rule.errno
    if rule.arguments:
        document["args"] = [
            {"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": f"SCMP_CMP_{a.operator}"}
            for a in rule.arguments
        ]
    return document
