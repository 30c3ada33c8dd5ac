from __future__ import annotations

import pytest

from insula.engine.engine import Engine
from insula.engine.restarts import Decision, decide_restart, wanted_at_start
from insula.engine.types import WaitCondition
from insula.errors import InvalidRequest, NotModified
from insula.model.instance import Instance, RestartPolicy, State

from .rooms import World, shell, spec

SECOND = 10**9


def decide(name: str, *, most: int = 0, **facts: object) -> Decision:
    defaults: dict[str, object] = {
        "exit_code": 1,
        "stopped": False,
        "ran_ns": SECOND,
        "backoff_ms": 0,
        "restarts": 0,
    }
    policy = RestartPolicy(name=name, maximum_retry_count=most)
    return decide_restart(policy, **{**defaults, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "exit_code", "expected"),
    [
        ("", 1, False),
        ("no", 1, False),
        ("always", 0, True),
        ("unless-stopped", 0, True),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
    ],
)
def test_which_exits_are_followed_by_a_restart(name: str, exit_code: int, expected: bool) -> None:
    assert decide(name, exit_code=exit_code).restart is expected


def test_what_a_user_stopped_stays_stopped() -> None:
    assert not decide("always", stopped=True).restart


def test_on_failure_gives_up() -> None:
    assert decide("on-failure", most=3, restarts=2).restart
    assert not decide("on-failure", most=3, restarts=3).restart


def test_the_wait_doubles_up_to_a_minute_and_starts_afresh_after_a_stable_run() -> None:
    waits = [decide("always").backoff_ms]
    for _ in range(12):
        waits.append(decide("always", backoff_ms=waits[-1]).backoff_ms)
    assert waits[:4] == [100, 200, 400, 800]
    assert waits[-1] == 60_000
    assert decide("always", backoff_ms=60_000, ran_ns=10 * SECOND).backoff_ms == 100


@pytest.mark.parametrize(
    ("name", "exit_code", "stopped", "expected"),
    [
        ("always", 0, True, True),
        ("unless-stopped", 0, True, False),
        ("unless-stopped", 0, False, True),
        ("on-failure", 0, False, False),
        ("on-failure", 255, False, True),
        ("no", 1, False, False),
    ],
)
def test_who_is_started_with_the_daemon(name: str, exit_code: int, stopped: bool, expected: bool) -> None:
    record = Instance(
        id="1",
        name="one",
        spec=spec("true", restart=RestartPolicy(name=name)),
        image_id="",
        state=State.EXITED,
        created_ns=1,
        started_ns=2,
        exit_code=exit_code,
        stopped_by_user=stopped,
    )
    assert wanted_at_start(record) is expected


async def test_on_failure_restarts_and_counts(world: World, engine: Engine) -> None:
    policy = RestartPolicy(name="on-failure", maximum_retry_count=2)
    made = await engine.create(shell("exit 5", restart=policy), None)
    events = world.events.follow(since_ns=0)
    await engine.start_instance(made.id)
    dies = 0
    async for event in events:
        dies += event.action == "die"
        if dies == 3:
            break
    await events.aclose()  # type: ignore[attr-defined]
    await engine.wait(made.id)
    record = engine.find(made.id)
    assert (record.state, record.exit_code, record.restart_count) == (State.EXITED, 5, 2)
    with pytest.raises(NotModified):
        await engine.stop_instance(made.id)


async def test_a_stop_ends_the_waiting_for_a_restart(engine: Engine) -> None:
    made = await engine.create(shell("exit 1", restart=RestartPolicy(name="always")), None)
    died = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    await engine.start_instance(made.id)
    await died
    assert engine.find(made.id).state is State.RESTARTING
    await engine.stop_instance(made.id)
    assert engine.find(made.id).state is State.EXITED
    await engine.remove(made.id)


async def test_a_killed_instance_is_not_restarted(engine: Engine) -> None:
    made = await engine.create(spec("sleep", "infinity", restart=RestartPolicy(name="always")), None)
    await engine.start_instance(made.id)
    await engine.kill(made.id)
    assert engine.find(made.id).state is State.EXITED
    await engine.start_instance(made.id)
    await engine.remove(made.id, force=True)


async def test_policies_are_checked(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="unknown policy 'sometimes'"):
        await engine.create(spec("true", restart=RestartPolicy(name="sometimes")), None)
    with pytest.raises(InvalidRequest, match="can only be used with 'on-failure'"):
        await engine.create(spec("true", restart=RestartPolicy(name="always", maximum_retry_count=1)), None)
    with pytest.raises(InvalidRequest, match="AutoRemove"):
        await engine.create(spec("true", restart=RestartPolicy(name="always"), auto_remove=True), None)
