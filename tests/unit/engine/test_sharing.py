"""Namespaces of another instance: what may be asked for, and of whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from insula.engine import sharing
from insula.errors import Conflict, Failure, InsulaError, InvalidRequest, NoSuchInstance
from insula.isolation.plan import Console, LaunchPlan, Process, Security
from insula.model.instance import InstanceSpec, State
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.root import DirectoryRoot

ID = "d" * 64


def make_plan(**fields: Any) -> LaunchPlan:
    return LaunchPlan(
        id="e" * 64,
        isolation=Isolation.PROCESS,
        state_dir="/s",
        run_dir="/r",
        hostname="h",
        process=Process(args=("sh",), env=()),
        console=Console(),
        limits=Limits(),
        security=Security(capabilities=(), seccomp=""),
        directory=DirectoryRoot(merged="/m", lowers=(), upper="", work=""),
        **fields,
    )


def donor(
    *, alive: bool = True, state: State = State.RUNNING, isolation: str = "process", ipc: str = ""
) -> Any:
    record = SimpleNamespace(state=state, name="other", spec=SimpleNamespace(isolation=Isolation(isolation)))
    return SimpleNamespace(id=ID, alive=alive, record=record, plan=make_plan(ipc_mode=ipc))


def find(one: Any) -> Any:
    def look(ref: str) -> Any:
        if one is None:
            raise NoSuchInstance(ref)
        return one

    return look


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ipc_mode": "odd"}, "invalid IPC mode: odd"),
        ({"pid_mode": "odd"}, "invalid PID mode: odd"),
        ({"pid_mode": "container"}, "invalid PID mode: container"),
        ({"pid_mode": "container:"}, "invalid PID mode: container:"),
        ({"uts_mode": "container:x"}, "invalid UTS mode: container:x"),
    ],
)
def test_a_mode_that_is_none(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        sharing.check_modes(InstanceSpec(image="i", isolation=Isolation.PROCESS, **fields))  # type: ignore[arg-type]
    assert message == raised.value.message


def test_a_name_becomes_an_id_that_runs() -> None:
    plan = make_plan(pid_mode="container:other", ipc_mode="container:other")
    joined = sharing.with_donors(plan, SimpleNamespace(), find(donor(ipc="shareable")))  # type: ignore[arg-type]
    assert (f"container:{ID}", f"container:{ID}") == (joined.pid_mode, joined.ipc_mode)
    alone = make_plan(pid_mode="host")
    assert alone is sharing.with_donors(alone, SimpleNamespace(), find(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "mode", "kind", "message"),
    [
        (None, "pid", InvalidRequest, "failed to join PID namespace: No such container: other"),
        (donor(alive=False), "pid", Failure, f"failed to join PID namespace: Container {ID} is not running"),
        (donor(state=State.RESTARTING), "pid", Conflict, "is restarting"),
        (donor(isolation="vm"), "pid", Conflict, "inside of a virtual machine"),
        (donor(), "ipc", InvalidRequest, "non-shareable IPC"),
    ],
)
def test_a_donor_that_cannot_be(other: Any, mode: str, kind: type[InsulaError], message: str) -> None:
    plan = make_plan(**{f"{mode}_mode": "container:other"})
    with pytest.raises(kind, match=message):
        sharing.with_donors(plan, SimpleNamespace(), find(other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        (None, NoSuchInstance, "No such container: other"),
        (donor(alive=False), Conflict, f"cannot join network of a non running container: {ID}"),
        (
            donor(alive=False, state=State.RESTARTING),
            Conflict,
            f"cannot join network: Container {ID} is restarting, wait until the container is running",
        ),
        (
            donor(isolation="vm"),
            Conflict,
            "cannot join network: that of other is inside of a virtual machine",
        ),
    ],
)
def test_a_network_that_cannot_be_shared(other: Any, kind: type[InsulaError], message: str) -> None:
    with pytest.raises(kind) as raised:
        sharing.network_donor(SimpleNamespace(), "other", find(other))  # type: ignore[arg-type]
    assert message == raised.value.message


def test_the_network_of_another_is_that_of_its_plan() -> None:
    other = donor()
    assert other.plan is sharing.network_donor(SimpleNamespace(), "other", find(other))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="cannot join own network"):
        sharing.network_donor(other, "other", find(other))
