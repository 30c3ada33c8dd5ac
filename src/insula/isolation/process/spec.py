"""From a LaunchPlan to an OCI config.json, and from an ExecPlan to a process.json.  Pure.

Defaults are Docker's (moby: oci/defaults.go, daemon/oci_linux.go).  For every plan in
tests/unit/isolation/golden there is the file that this makes.
"""

from __future__ import annotations

import base64
import functools
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from insula.isolation.plan import LaunchPlan, Process, Security
from insula.isolation.process.mounts import make_mounts
from insula.isolation.process.resources import BlockDevices, make_resources
from insula.isolation.users import Identity
from insula.model.limits import Ulimit
from insula.security import seccomp

OCI_VERSION = "1.0.2"
DEFAULT_PARENT = "insula"
INIT_TARGET = "/sbin/docker-init"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device of the host, looked up.  `kind` is c or b."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    rules: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What config.json depends on besides the plan.  `raw_seccomp`: the runtime has been seen to apply the
    annotation `run.oci.seccomp_bpf_data` (crun), which replaces the seccomp section."""

    cgroup_version: int
    kernel: tuple[int, int]
    capabilities: frozenset[str]
    swap_accounting: bool
    init_path: str = ""
    raw_seccomp: bool = False
    arch: str = "amd64"


def cgroup_name(plan: LaunchPlan) -> str:
    """Below the root of every hierarchy, without a leading slash; `..` leads no higher."""
    parent = posixpath.normpath(f"/{plan.cgroup_parent}").strip("/")
    return f"{parent or DEFAULT_PARENT}/{plan.id}"


def make_config(
    plan: LaunchPlan,
    identity: Identity,
    facts: HostFacts,
    devices: tuple[DeviceNode, ...] = (),
    block_devices: BlockDevices = (),
    *,
    shared: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """`block_devices`: (major, minor) of those that `plan.limits.throttles` name, in their order.
    `shared`: where the namespaces are that are another container's, by the runtime's words for them."""
    assert plan.directory is not None
    security = plan.security
    args = plan.process.args
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _make_process(
            plan.process,
            identity,
            capabilities=_capabilities(security, facts),
            ulimits=plan.limits.ulimits,
            no_new_privileges=security.no_new_privileges,
            args=(INIT_TARGET, "--", *args) if plan.init else args,
        ),
        "root": {"path": plan.directory.merged, "readonly": security.read_only_root},
        "mounts": make_mounts(plan, facts.kernel, facts.init_path if plan.init else "", INIT_TARGET),
        "linux": _make_linux(plan, facts, devices, block_devices, shared),
    }
    if security.seccomp and facts.raw_seccomp:
        # crun takes a finished filter instead of the section, and saves the 20 ms of libseccomp's making one
        config["annotations"] = {
            "run.oci.seccomp_bpf_data": _seccomp_bpf(security.seccomp, security.capabilities, facts.kernel)
        }
    if plan.limits.oom_score_adj:
        config["process"]["oomScoreAdj"] = plan.limits.oom_score_adj
    if plan.uts_mode != "host":
        config["hostname"] = plan.hostname
    return config


def make_exec_process(
    plan: LaunchPlan, process: Process, identity: Identity, facts: HostFacts, *, privileged: bool
) -> dict[str, Any]:
    """For `crun exec --process`: the instance's own limits, unless privileged."""
    full = privileged or plan.security.privileged
    document = _make_process(
        process,
        identity,
        capabilities=_capabilities(plan.security, facts, everything=full),
        ulimits=plan.limits.ulimits,
        no_new_privileges=plan.security.no_new_privileges and not privileged,
        args=process.args,
    )
    if plan.limits.oom_score_adj:
        document["oomScoreAdj"] = plan.limits.oom_score_adj
    return document


def _capabilities(security: Security, facts: HostFacts, *, everything: bool = False) -> tuple[str, ...]:
    """All that there are means all that the daemon itself has, as in Docker."""
    if everything or security.privileged:
        return tuple(sorted(facts.capabilities))
    if security.all_capabilities:
        return tuple(name for name in security.capabilities if name in facts.capabilities)
    return security.capabilities


def with_home(env: tuple[str, ...], home: str) -> list[str]:
    """An empty one is none, as runc has it."""
    if any(e.startswith("HOME=") and e != "HOME=" for e in env):
        return list(env)
    return [*(e for e in env if e != "HOME="), f"HOME={home}"]


def _make_process(
    process: Process,
    identity: Identity,
    *,
    capabilities: tuple[str, ...],
    ulimits: tuple[Ulimit, ...],
    no_new_privileges: bool,
    args: tuple[str, ...],
) -> dict[str, Any]:
    caps = list(capabilities)
    document: dict[str, Any] = {
        "terminal": process.tty,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)},
        "args": list(args),
        "env": with_home(process.env, identity.home),
        "cwd": process.cwd or "/",
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "noNewPrivileges": no_new_privileges,
    }
    if ulimits:
        document["rlimits"] = [
            {"type": f"RLIMIT_{u.name.upper()}", "soft": _rlimit(u.soft), "hard": _rlimit(u.hard)}
            for u in ulimits
        ]
    if process.tty and process.console_rows and process.console_cols:
        document["consoleSize"] = {"height": process.console_rows, "width": process.console_cols}
    return document


def _rlimit(value: int) -> int:
    return 2**64 - 1 if value < 0 else value


def _make_linux(
    plan: LaunchPlan,
    facts: HostFacts,
    devices: tuple[DeviceNode, ...],
    block_devices: BlockDevices,
    shared: Mapping[str, str],
) -> dict[str, Any]:
    security = plan.security
    section: dict[str, Any] = {
        "cgroupsPath": f"/{cgroup_name(plan)}",
        "namespaces": _make_namespaces(plan, facts, shared),
        "resources": {
            "devices": _device_rules(devices, security.device_rules, privileged=security.privileged),
            **make_resources(
                plan.limits,
                swap_accounting=facts.swap_accounting,
                swappiness=facts.cgroup_version == 1,
                block_devices=block_devices,
            ),
        },
        "maskedPaths": list(security.masked_paths),
        "readonlyPaths": list(security.readonly_paths),
    }
    sysctls = _make_sysctls(plan)
    if sysctls:
        section["sysctl"] = sysctls
    if devices:
        section["devices"] = [
            {
                "path": d.path,
                "type": d.kind,
                "major": d.major,
                "minor": d.minor,
                "fileMode": d.mode,
                "uid": d.uid,
                "gid": d.gid,
            }
            for d in devices
        ]
    if security.seccomp and not facts.raw_seccomp:
        section["seccomp"] = _seccomp_section(
            security.seccomp, security.capabilities, facts.kernel, facts.arch
        )
    propagations = {m.propagation for m in plan.mounts}
    for word in ("shared", "slave"):
        if {word, f"r{word}"} & propagations:
            section["rootfsPropagation"] = f"r{word}"
            break
    return section


@functools.lru_cache(maxsize=32)
def _seccomp_section(
    profile: str, capabilities: tuple[str, ...], kernel: tuple[int, int], arch: str
) -> dict[str, Any]:
    return seccomp.make_oci_section(seccomp.resolve(profile, capabilities, kernel, arch))


@functools.lru_cache(maxsize=32)
def _seccomp_bpf(profile: str, capabilities: tuple[str, ...], kernel: tuple[int, int]) -> str:
    return base64.b64encode(seccomp.compile_bpf(profile, capabilities, kernel, i386=True)).decode("ascii")


def _make_namespaces(plan: LaunchPlan, facts: HostFacts, shared: Mapping[str, str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{"type": "mount"}]
    for kind, mode in (("pid", plan.pid_mode), ("ipc", plan.ipc_mode)):
        if path := shared.get(kind):
            found.append({"type": kind, "path": path})
        elif mode != "host":
            found.append({"type": kind})
    if plan.uts_mode != "host":
        found.append({"type": "uts"})
    if not plan.host_network:
        path = plan.netns or next((e.netns for e in plan.endpoints if e.netns), "")
        found.append({"type": "network", "path": path} if path else {"type": "network"})
    # of its own by default with version 2 only, for privileged ones too, as moby
    if plan.cgroupns_mode == "private" or (not plan.cgroupns_mode and facts.cgroup_version == 2):
        found.append({"type": "cgroup"})
    return found


def _make_sysctls(plan: LaunchPlan) -> dict[str, str]:
    found: dict[str, str] = {}
    if not plan.host_network:  # moby's defaults: ping and low ports for everybody in there
        found = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    if plan.domainname and plan.uts_mode != "host":
        found["kernel.domainname"] = plan.domainname
    return found | dict(plan.security.sysctls)


def _device_rules(
    devices: tuple[DeviceNode, ...], further: tuple[str, ...], *, privileged: bool
) -> list[dict[str, Any]]:
    """The runtime adds the devices that every container has (null, zero, full, random, tty, pts, mknod)."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [
        {"allow": True, "type": d.kind, "major": d.major, "minor": d.minor, "access": d.rules}
        for d in devices
    ]
    return rules + [_device_rule(text) for text in further]


def _device_rule(text: str) -> dict[str, Any]:
    """`c 1:* rm`; a star is every number."""
    kind, numbers, access = text.split(" ")
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    for name, number in zip(("major", "minor"), numbers.split(":"), strict=True):
        if number != "*":
            rule[name] = int(number)
    return rule


def to_text(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))
