"""Find the VMs of an earlier daemon again, and remove what is left of dead ones.  Async."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from insula.errors import InsulaError
from insula.isolation.backend import Liveness
from insula.isolation.plan import LaunchPlan
from insula.isolation.vm.cgroup import PARENT, Cgroup
from insula.isolation.vm.order import HELPER_SUFFIX, passing_prefixes, probe_id
from insula.isolation.vm.record import (
    VmRecord,
    finalize_status,
    find_records,
    host_boot_id,
    read_exit,
    read_record,
)
from insula.isolation.vm.stats import host_oom_kills
from insula.isolation.vm.vm import Vm
from insula.isolation.vm.wire import Fields
from insula.system.cgroups import Layout
from insula.system.files import remove_tree
from insula.system.pidfd import Watch, is_alive

_ANSWER_S = 5.0  # of many at once on a busy host; who is silent is asked again by the next verb
_REAP_TRIES = 50
_REAP_PAUSE_S = 0.02
_OURS = ("vm.json", "control.sock", "qmp.sock", "share.sock", "console.log", "exit", "qemu.log")
_OUR_DIRECTORIES = ("root", "shares", "files")


def _watch(pid: int, started: int) -> Watch | None:
    if not is_alive(pid, started):
        return None
    try:
        watch = Watch(pid)
    except ProcessLookupError:
        return None
    if not is_alive(pid, started):  # it ended, and another took its number, between the two
        watch.close()
        return None
    return watch


async def find_vm(plan: LaunchPlan, vm: Vm, layout: Layout) -> Liveness:
    """Fill `vm` with what runs, or with how it ended."""
    cgroup = Cgroup(layout, plan.id)
    record = read_record(plan.run_dir)
    if record is not None:
        cgroup = Cgroup(layout, record.owner or plan.id)
    if record is None:
        await end_left(cgroup)  # started, and the daemon died before it could write that down
        return Liveness.GONE
    same_boot = record.boot_id == host_boot_id()
    watch = _watch(record.pid, record.started) if same_boot else None
    if watch is None:
        return await _ended(plan, vm, record, cgroup, same_boot)
    helpers = [w for w in (_watch(pid, started) for pid, started in record.helpers) if w is not None]
    vm.take(record, watch, helpers, cgroup, None)
    if record.unconfirmed:
        await vm.kill_and_wait()  # it is still the one that it was copied from
        return Liveness.GONE
    with contextlib.suppress(InsulaError):
        vm.paused = await vm.monitor.status() == "paused"
    if vm.paused:
        return Liveness.PAUSED
    hello = await _ask(vm)
    if hello is not None and (hello.get("state") or [""])[0] in ("idle", "configured"):
        await vm.kill_and_wait()  # the daemon died in the middle of launching it
        return Liveness.GONE
    if hello is not None:
        await vm.hold_workload(False)  # the daemon may have died while files of a frozen instance were read
    return Liveness.RUNNING


async def _ask(vm: Vm) -> Fields | None:
    """The agent's greeting; None when it does not answer now (a later verb tries again)."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            return (await vm.channel()).hello
    except (InsulaError, TimeoutError):
        return None


async def _ended(plan: LaunchPlan, vm: Vm, record: VmRecord, cgroup: Cgroup, same_boot: bool) -> Liveness:
    if not same_boot and read_exit(plan.run_dir, record.launched_ns) is None:
        return Liveness.GONE
    host_oom = same_boot and host_oom_kills(cgroup.layout, cgroup.group) > 0
    vm.record = record
    vm.take_ended(finalize_status(plan.run_dir, record.launched_ns, killed=False, host_oom=host_oom))
    await end_left(cgroup)
    return Liveness.EXITED


async def end_left(cgroup: Cgroup) -> None:
    """Whatever still runs in the VM's cgroup: virtiofsd of a QEMU that is gone."""
    for pid in cgroup.pids():
        try:
            watch = Watch(pid)
        except ProcessLookupError:
            continue
        watch.signal(signal.SIGKILL)
        await watch.wait()
        watch.close()
    for _ in range(_REAP_TRIES):  # a zombie keeps its cgroup until its parent, perhaps init, reaps it
        if cgroup.remove():
            return
        await asyncio.sleep(_REAP_PAUSE_S)


async def end_helpers(exec_root: str, layout: Layout) -> None:
    """Helper VMs (the accelerator's probe, clones that were made ahead, and what was to be a template too)
    of an earlier daemon here: nobody uses them any more."""
    base = os.path.join(exec_root, "instances")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(base):
            if os.path.exists(os.path.join(base, name, "files")):
                await end_left(Cgroup(layout, name + HELPER_SUFFIX))
                remove_tree(os.path.join(base, name, "files"))
    await end_left(Cgroup(layout, probe_id(exec_root)))
    taken = {record.owner for _, record in find_records(base)}
    for name in _groups(layout):  # by their cgroups: a crash may have left nothing else of one
        if name.startswith(passing_prefixes(exec_root)) and name not in taken:
            await end_left(Cgroup(layout, name))
    for kind in ("templates", "clones"):
        remove_tree(os.path.join(exec_root, kind))


def _groups(layout: Layout) -> set[str]:
    """Names of all VMs' cgroups on this host, other daemons' too."""
    found: set[str] = set()
    for directory in layout.directories(PARENT):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.update(os.listdir(directory))
    return found


async def forget(plan: LaunchPlan, layout: Layout) -> None:
    """End what is left of the instance and remove its files in the run directory; idempotent."""
    record = read_record(plan.run_dir)
    for name in {plan.id, plan.id + HELPER_SUFFIX, record.owner if record and record.owner else plan.id}:
        await end_left(Cgroup(layout, name))
    for name in _OURS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(plan.run_dir, name))
    for name in _OUR_DIRECTORIES:
        remove_tree(os.path.join(plan.run_dir, name))
