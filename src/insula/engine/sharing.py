"""The namespaces of another instance: `--network`, `--pid` and `--ipc container:NAME`.  Pure.

Who it is is looked up at create, and kept by its id; at every start it must run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from insula.engine.instances import Entry
from insula.errors import Conflict, Failure, InsulaError, InvalidRequest, NoSuchInstance
from insula.isolation.plan import LaunchPlan
from insula.model.instance import InstanceSpec, State
from insula.model.isolation import link_kind
from insula.model.network import LinkKind

_OF = "container:"
_PID = ("", "private", "host")
_IPC = ("", "none", "private", "shareable", "host")
_UTS = ("", "private", "host")


def check_modes(spec: InstanceSpec) -> None:
    """In moby's words.  Raises InvalidRequest."""
    pid, ipc, uts = spec.pid_mode, spec.ipc_mode, spec.uts_mode
    if ipc not in _IPC and not ipc.startswith(_OF):
        raise InvalidRequest(f"invalid IPC mode: {ipc[:128]}")
    if pid not in _PID and not (pid.startswith(_OF) and pid != _OF):
        raise InvalidRequest(f"invalid PID mode: {pid[:128]}")
    if uts not in _UTS:
        raise InvalidRequest(f"invalid UTS mode: {uts[:128]}")


def settle_donors(spec: InstanceSpec, find: Callable[[str], Entry]) -> InstanceSpec:
    """Each by its id, as Docker keeps and shows them: a name may be another's tomorrow.  They need not run
    yet; that of a network need not be there, either.  Raises InvalidRequest."""
    changes = {}
    for field in ("network_mode", "pid_mode", "ipc_mode"):
        mode: str = getattr(spec, field)
        if mode.startswith(_OF):
            try:
                changes[field] = _OF + find(mode.removeprefix(_OF)).id
            except NoSuchInstance as error:
                if field != "network_mode":
                    raise InvalidRequest(error.message) from None
    return dataclasses.replace(spec, **changes) if changes else spec  # type: ignore[arg-type]


def with_donors(plan: LaunchPlan, entry: Entry, find: Callable[[str], Entry]) -> LaunchPlan:
    """Raises InvalidRequest, Conflict, and Failure (as Docker's, 500) for one that does not run."""
    changes = {}
    for field, word, mode in (("pid_mode", "PID", plan.pid_mode), ("ipc_mode", "IPC", plan.ipc_mode)):
        if mode.startswith(_OF):
            changes[field] = _OF + _donor(entry, word, mode.removeprefix(_OF), find).id
    return dataclasses.replace(plan, **changes) if changes else plan  # type: ignore[arg-type]


def _donor(entry: Entry, word: str, ref: str, find: Callable[[str], Entry]) -> Entry:
    failed = f"failed to join {word} namespace"
    try:
        other = find(ref)
    except NoSuchInstance as error:
        raise InvalidRequest(f"{failed}: {error.message}") from None
    if other is entry:
        raise InvalidRequest(f"{failed}: it is the container's own")
    stopped = Failure(f"{failed}: Container {other.id} is not running")
    plan = _running(other, failed, stopped, hint="docker exec runs a program in it")
    if word == "IPC" and plan.ipc_mode not in ("shareable", "host"):
        raise InvalidRequest(
            f"{failed}: container {ref}: non-shareable IPC "
            "(hint: use IpcMode:shareable for the donor container)"
        )
    return other


def network_donor(entry: Entry, ref: str, find: Callable[[str], Entry]) -> LaunchPlan:
    """The plan of the instance whose network it is to share.  Raises NoSuchInstance, InvalidRequest,
    Conflict."""
    other = find(ref)
    if other is entry:
        raise InvalidRequest("cannot join own network")
    stopped = Conflict(f"cannot join network of a non running container: {other.id}")
    return _running(
        other,
        "cannot join network",
        stopped,
        hint="put both on one network, where they find each other by name",
    )


def _running(other: Entry, failed: str, stopped: InsulaError, *, hint: str) -> LaunchPlan:
    """The plan of one that has namespaces of the host's now.  `stopped` is raised if it does not run; `hint`
    is for one that is a kernel away.  Raises Conflict, too."""
    if other.record.state is State.RESTARTING:
        raise Conflict(f"{failed}: Container {other.id} is restarting, wait until the container is running")
    if not other.alive or other.plan is None:
        raise stopped
    if link_kind(other.record.spec.isolation) is not LinkKind.VETH:
        raise Conflict(f"{failed}: that of {other.record.name} is inside of a virtual machine", hint=hint)
    return other.plan
