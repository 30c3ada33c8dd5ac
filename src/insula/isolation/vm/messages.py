"""From a plan to the fields that the agent gets.  Pure but for the time: golden files hold the results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence

from insula.isolation.edits import Edit
from insula.isolation.plan import ExecPlan, LaunchPlan, Process
from insula.isolation.vm.own_devices import finalize_devices
from insula.model.limits import Limits
from insula.model.mounts import EtcFile, Mount, MountKind
from insula.model.network import Endpoint

Pairs = list[tuple[str, str]]

# Docker's defaults for --tmpfs; the options given come after and override them
_WITH_CLOCK = 2  # from which version on PAUSE takes the time
_TMPFS_FLAGS = "nosuid,nodev,noexec"


def identity(plan: LaunchPlan, *, entropy: bytes, time_ns: int, machine_id: str, generation: str) -> Pairs:
    return [
        ("hostname", plan.hostname),
        ("domainname", plan.domainname),
        ("entropy", entropy.hex()),
        ("time_ns", str(time_ns)),
        ("machine_id", machine_id),
        ("generation", generation),
    ]


def nic(endpoint: Endpoint) -> str:
    """`mac name address/prefix gateway mtu`, `-` for none; several with commas between them."""
    addresses, gateways = ",".join(endpoint.cidrs), ",".join(endpoint.gateways)
    words = (endpoint.mac, endpoint.interface, addresses or "-", gateways or "-", str(endpoint.mtu or 1500))
    return " ".join(words)


def network(
    *,
    gone: Sequence[str],
    plugged_in: Sequence[Endpoint],
    gateways: Sequence[str],
    edits: Iterable[Edit] = (),
) -> Pairs:
    """Of a guest whose workload runs: interfaces that go, by name, and that come, the default routes, lines
    of files."""
    pairs: Pairs = [("gone", name) for name in gone]
    pairs += [("rescan", str(int(bool(plugged_in))))]
    pairs += [("nic", nic(dataclasses.replace(endpoint, gateway="", gateway6=""))) for endpoint in plugged_in]
    pairs.append(("gateway", ",".join(gateways) or "-"))
    for edit in edits:
        target = escape(edit.file.target)
        pairs += [("line", f"-{target}\t{escape(line)}") for line in edit.gone]
        pairs += [("line", f"+{target}\t{escape(line)}") for line in edit.added]
    return pairs


def mount(mount_: Mount, file: str) -> str:
    """`kind TAB source TAB target TAB flags TAB options`.  `file`: the share holds only this file."""
    if mount_.kind is MountKind.TMPFS:
        flags = f"{_TMPFS_FLAGS},ro" if mount_.read_only else _TMPFS_FLAGS
        return "\t".join(("tmpfs", "tmpfs", mount_.target, flags, ",".join(mount_.options)))
    source = f"{mount_.tag}:/{file}" if file else mount_.tag
    return "\t".join(("virtiofs", source, mount_.target, "ro" if mount_.read_only else "rw", ""))


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def etc_file(file: EtcFile) -> str:
    return f"{escape(file.target)}\t{escape(file.text)}"


def configure(
    plan: LaunchPlan,
    share_files: dict[str, str],
    *,
    rescan: bool,
    rehearsal: bool = False,
    fresh: bool = False,
) -> Pairs:
    """`share_files`: tag of a share to the name of the one file that it holds.  `rescan`: the machine has
    devices that its guest has not seen.  `rehearsal`: the workload's end is not the machine's.  `fresh`: the
    upper disk is as empty as its template's was."""
    pairs: Pairs = [
        ("image_serial", "image"),
        ("upper_serial", "upper"),
        ("upper_format", "ext4"),
        ("read_only", "1" if plan.security.read_only_root else "0"),
        ("shm_kib", str(max(1, plan.limits.shm_size_bytes // 1024))),
        ("rescan", str(int(rescan))),
        ("rehearsal", str(int(rehearsal))),
        ("upper_fresh", str(int(fresh))),
    ]
    pairs += [("nic", nic(endpoint)) for endpoint in plan.endpoints]
    pairs += [("mount", mount(m, share_files.get(m.tag, ""))) for m in plan.mounts]
    pairs += [("file", etc_file(file)) for file in plan.etc_files]
    pairs += finalize_devices(plan.security)
    pairs += [("sysctl", f"{name}={value}") for name, value in plan.security.sysctls]
    if plan.limits.memory_bytes > 0:
        pairs.append(("cgroup", f"memory.max={plan.limits.memory_bytes}"))
    if plan.limits.pids > 0:
        pairs.append(("cgroup", f"pids.max={plan.limits.pids}"))
    return pairs


def renew(plan: LaunchPlan) -> Pairs:
    """What a machine that runs gets when it becomes this plan's."""
    pairs: Pairs = [("nic", nic(endpoint)) for endpoint in plan.endpoints]
    return pairs + [("file", etc_file(file)) for file in plan.etc_files]


def configure_helper() -> Pairs:
    """The root, and nothing on it."""
    return [("image_serial", "image"), ("upper_serial", "upper"), ("upper_format", "ext4")]


def change(old: Limits, new: Limits) -> Pairs:
    """What of a running workload's limits is another now."""
    memory = str(new.memory_bytes) if new.memory_bytes > 0 else "max"
    pids = str(new.pids) if new.pids > 0 else "max"
    pairs: Pairs = [("cgroup", f"memory.max={memory}")] if old.memory_bytes != new.memory_bytes else []
    return pairs + ([("cgroup", f"pids.max={pids}")] if old.pids != new.pids else [])


def pause(held: bool, *, version: int) -> Pairs:
    """`version`: the agent's.  The machine has stood still in between, and so has its clock."""
    clock = [("time_ns", str(time.time_ns()))] if not held and version >= _WITH_CLOCK else []
    return [("on", str(int(held))), *clock]


def rlimits(limits: Limits) -> Pairs:
    return [("rlimit", f"{u.name} {u.soft} {u.hard}") for u in limits.ulimits]


def process(process_: Process, *, open_stdin: bool, capabilities: Sequence[str]) -> Pairs:
    pairs: Pairs = [("arg", arg) for arg in process_.args]
    pairs += [("env", entry) for entry in process_.env]
    pairs += [("cwd", process_.cwd), ("user", process_.user)]
    pairs += [("group", group) for group in process_.groups]
    pairs += [("tty", "1" if process_.tty else "0"), ("stdin", "1" if open_stdin else "0")]
    if process_.console_rows and process_.console_cols:
        pairs += [("rows", str(process_.console_rows)), ("cols", str(process_.console_cols))]
    pairs += [("cap", capability) for capability in capabilities]
    return pairs


def workload(plan: LaunchPlan) -> Pairs:
    security = plan.security
    pairs = process(
        plan.process, open_stdin=plan.console.open_stdin, capabilities=security.capabilities
    ) + rlimits(plan.limits)
    pairs += [
        ("stdin_once", "1" if plan.console.stdin_once else "0"),
        ("no_new_privs", "1" if security.no_new_privileges else "0"),
        ("init", "1" if plan.init else "0"),
        ("privileged", "1" if security.privileged else "0"),
        ("oom_score_adj", str(plan.limits.oom_score_adj)),
    ]
    pairs += [("masked", path) for path in security.masked_paths]
    pairs += [("readonly", path) for path in security.readonly_paths]
    return pairs


def further(plan: LaunchPlan, exec_: ExecPlan, every_capability: Sequence[str]) -> Pairs:
    """An exec: the instance's rights, or all of them when it is privileged."""
    security = plan.security
    capabilities = every_capability if exec_.privileged else security.capabilities
    pairs = process(exec_.process, open_stdin=exec_.open_stdin, capabilities=capabilities) + rlimits(
        plan.limits
    )
    pairs += [
        ("no_new_privs", "1" if security.no_new_privileges and not exec_.privileged else "0"),
        ("privileged", "1" if exec_.privileged else "0"),
        ("oom_score_adj", str(plan.limits.oom_score_adj)),
    ]
    if not exec_.privileged:
        pairs += [("masked", path) for path in security.masked_paths]
        pairs += [("readonly", path) for path in security.readonly_paths]
    return pairs
