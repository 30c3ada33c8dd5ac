"""Health checks: moby's rules, and probes of instances on the fake backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from insula.engine.engine import Engine
from insula.engine.health import (
    after_probe,
    at_start,
    check_health,
    cut_output,
    merge_health,
    pause_ns,
    probe_args,
    timed_out,
)
from insula.engine.types import CommitSpec, ExecSpec
from insula.errors import Conflict, InvalidRequest
from insula.events import Event
from insula.model.durations import format_duration, parse_duration
from insula.model.health import Health, HealthCheck, HealthStatus, ProbeResult
from insula.model.image import Image
from insula.model.instance import InstanceSpec

from .rooms import World, spec

MS = 10**6
SECOND = 10**9
STARTING, HEALTHY, UNHEALTHY = HealthStatus


def result(code: int, *, start_ns: int = 100) -> ProbeResult:
    return ProbeResult(start_ns=start_ns, end_ns=start_ns, exit_code=code, output="")


def after(health: Health, check: HealthCheck, *codes: int, start_ns: int = 100) -> Health:
    for code in codes:
        health = after_probe(health, check, result(code, start_ns=start_ns), started_ns=0)
    return health


def test_failures_in_a_row_make_it_unhealthy_and_one_success_healthy() -> None:
    check = HealthCheck(test=("CMD", "x"))
    two = after(Health(), check, 1, 1)
    assert (two.status, two.failing_streak) == (STARTING, 2)
    assert after(two, check, 0, 1, 1).status is HEALTHY
    assert after(two, check, 1).status is UNHEALTHY
    assert after(two, check, 1, 0).failing_streak == 0
    assert after(Health(), HealthCheck(retries=1), -1).status is UNHEALTHY
    assert [entry.exit_code for entry in after(Health(), check, 1, 2, 3, 4, 5, 6).log] == [2, 3, 4, 5, 6]


def test_failures_of_the_start_period_do_not_count_until_it_was_healthy() -> None:
    check = HealthCheck(start_period_ns=SECOND, retries=1)
    early = after(Health(), check, 1, 1, start_ns=SECOND - 1)
    assert (early.status, early.failing_streak, len(early.log)) == (STARTING, 0, 2)
    assert after(early, check, 1, start_ns=SECOND).status is UNHEALTHY
    assert after(early, check, 0, 1, start_ns=SECOND - 1).status is UNHEALTHY


def test_how_long_between_two_probes() -> None:
    check = HealthCheck(start_period_ns=SECOND)
    assert pause_ns(check, STARTING, age_ns=0) == 5 * SECOND
    assert pause_ns(check, HEALTHY, age_ns=0) == 30 * SECOND
    assert pause_ns(check, STARTING, age_ns=SECOND) == 30 * SECOND
    own = HealthCheck(start_period_ns=SECOND, start_interval_ns=7, interval_ns=9)
    assert (pause_ns(own, STARTING, age_ns=0), pause_ns(own, UNHEALTHY, age_ns=0)) == (7, 9)


def test_what_is_run() -> None:
    assert probe_args(HealthCheck(test=("CMD", "a", "b c")), ("/bin/bash", "-c")) == ("a", "b c")
    assert probe_args(HealthCheck(test=("CMD-SHELL", "a b")), ()) == ("/bin/sh", "-c", "a b")
    assert probe_args(HealthCheck(test=("CMD-SHELL", "a b")), ("/bin/bash", "-c")) == (
        "/bin/bash",
        "-c",
        "a b",
    )
    for nothing in (None, HealthCheck(test=("NONE",)), HealthCheck(), HealthCheck(test=("ODD", "x"))):
        assert probe_args(nothing, ()) == ()
        assert at_start(nothing, None) is None


def test_what_the_request_leaves_empty_is_the_image_s() -> None:
    image = HealthCheck(test=("CMD", "x"), interval_ns=1, retries=2)
    assert merge_health(None, image) == image
    assert merge_health(HealthCheck(retries=5), image) == HealthCheck(
        test=("CMD", "x"), interval_ns=1, retries=5
    )
    assert merge_health(HealthCheck(test=("NONE",)), None) == HealthCheck(test=("NONE",))


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (HealthCheck(interval_ns=MS - 1), "Interval in Healthcheck cannot be less than 1ms"),
        (HealthCheck(timeout_ns=-1), "Timeout in Healthcheck cannot be less than 1ms"),
        (HealthCheck(start_period_ns=1), "StartPeriod in Healthcheck"),
        (HealthCheck(start_interval_ns=1), "StartInterval in Healthcheck"),
        (HealthCheck(retries=-1), "Retries in Healthcheck cannot be negative"),
        (HealthCheck(test=("ODD", "x")), "unknown probe type 'ODD'"),
        (HealthCheck(test=("CMD",)), "nothing to run after CMD"),
    ],
)
def test_what_is_refused(check: HealthCheck, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_health(check)


def test_outputs_and_durations() -> None:
    assert cut_output(b"x" * 4096) == "x" * 4096
    assert cut_output(b"x" * 4097) == "x" * 4096 + "..."
    sentence = "Health check exceeded timeout (1m30s)"
    assert timed_out(HealthCheck(timeout_ns=90 * SECOND), b"") == sentence
    assert timed_out(HealthCheck(timeout_ns=90 * SECOND), b"so far") == f"{sentence}: so far"
    for text in ("0s", "1ns", "1.5µs", "250ms", "1s", "1.5s", "1m0s", "1h0m0.001s"):
        assert format_duration(parse_duration(text) or 0) == text


def probed(program: str, *, interval_ms: int = 1, timeout_ms: int = 10_000, **fields: int) -> InstanceSpec:
    check = HealthCheck(
        test=("CMD-SHELL", program), interval_ns=interval_ms * MS, timeout_ns=timeout_ms * MS, **fields
    )
    return spec("sleep", "infinity", health=check)


@pytest.fixture
async def told(world: World) -> AsyncIterator[AsyncIterator[Event]]:
    """What happens from now on, as it happens."""
    events = world.events.follow()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)

    async def stream() -> AsyncIterator[Event]:
        yield await waiting
        async for event in events:
            yield event

    yield stream()
    waiting.cancel()


async def until(told: AsyncIterator[Event], action: str) -> Event:
    async with asyncio.timeout(10):
        async for event in told:
            if event.action.startswith(action):
                return event
    raise AssertionError(action)


async def start(engine: Engine, wanted: InstanceSpec) -> str:
    made = await engine.create(wanted, None)
    await engine.start_instance(made.id)
    return made.id


def health(engine: Engine, ref: str) -> Health:
    found = engine.find(ref).health
    assert found is not None
    return found


async def test_it_becomes_healthy_then_unhealthy_then_healthy(
    engine: Engine, told: AsyncIterator[Event]
) -> None:
    ref = await start(engine, probed("cat /flag", retries=2))
    assert health(engine, ref) == Health()
    await until(told, "health_status: unhealthy")
    assert health(engine, ref).failing_streak >= 2
    touched = await engine.exec_create(ref, ExecSpec(args=("touch", "/flag")))
    await engine.exec_start(touched, detach=True, tty=False)
    await until(told, "health_status: healthy")
    assert health(engine, ref).log[-1].exit_code == 0
    assert [e.id for e in engine.describe(ref).execs if e.exit_code is not None] == [touched]
    await engine.remove(ref, force=True)


async def test_a_probe_that_takes_too_long_is_killed(engine: Engine, told: AsyncIterator[Event]) -> None:
    ref = await start(engine, probed("echo begun; sleep infinity", timeout_ms=30, retries=1))
    died = await until(told, "exec_die")
    assert died.attributes["exitCode"] == "137"
    await until(told, "health_status: unhealthy")
    last = health(engine, ref).log[0]
    assert (last.exit_code, last.output) == (-1, "Health check exceeded timeout (30ms): begun\n")
    assert last.end_ns - last.start_ns >= 30 * MS
    await engine.remove(ref, force=True)


async def test_a_program_that_is_not_there_is_a_failure_with_the_reason(
    engine: Engine, told: AsyncIterator[Event]
) -> None:
    check = HealthCheck(test=("CMD", "no-such"), interval_ns=MS, retries=1)
    ref = await start(engine, spec("sleep", "infinity", health=check))
    await until(told, "health_status: unhealthy")
    assert health(engine, ref).log[0].exit_code == -1
    assert "executable file not found" in health(engine, ref).log[0].output
    await engine.remove(ref, force=True)


def probers(engine: Engine) -> list[asyncio.Task[None]]:
    return [entry.prober for entry in engine._instances.all() if entry.prober is not None]


async def test_nobody_probes_while_it_is_paused_or_has_ended(
    engine: Engine, told: AsyncIterator[Event]
) -> None:
    ref = await start(engine, probed("true"))
    await until(told, "health_status: healthy")
    await engine.pause(ref)
    assert health(engine, ref).status is UNHEALTHY
    assert probers(engine) == []
    await engine.unpause(ref)
    await until(told, "health_status: healthy")
    await engine.kill(ref)
    assert health(engine, ref).status is UNHEALTHY
    assert probers(engine) == []
    log = health(engine, ref).log
    await engine.start_instance(ref)
    assert health(engine, ref) == Health(log=log)
    assert len(probers(engine)) == 1
    await engine.remove(ref, force=True)


async def test_what_freezing_does_to_a_probe_says_nothing_of_its_health(
    world: World, engine: Engine, told: AsyncIterator[Event]
) -> None:
    ref = await start(engine, probed("true", retries=1))
    await until(told, "health_status: healthy")
    world.backend.freezing_s = 0.05
    await engine.pause(ref)
    await engine.unpause(ref)
    assert (await until(told, "health_status")).action == "health_status: healthy"
    await engine.remove(ref, force=True)


async def test_a_commit_says_nothing_of_its_health(
    world: World, engine: Engine, told: AsyncIterator[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def commit(*_: object, base: Image, **__: object) -> Image:
        return base

    monkeypatch.setattr(engine._kit.images, "commit", commit)
    ref = await start(engine, probed("true", retries=1))
    await until(told, "health_status: healthy")
    world.backend.freezing_s = 0.05
    await engine.commit(ref, CommitSpec(pause=True))
    assert "health_status: unhealthy" not in world.seen()
    assert health(engine, ref).status is HEALTHY
    assert len(probers(engine)) == 1
    await engine.remove(ref, force=True)


async def test_it_is_probed_on_when_it_cannot_be_paused(
    world: World, engine: Engine, told: AsyncIterator[Event]
) -> None:
    ref = await start(engine, probed("true"))
    await until(told, "health_status: healthy")
    world.backend.break_at = "freeze"
    with pytest.raises(Conflict, match="broken at freeze"):
        await engine.pause(ref)
    assert health(engine, ref).status is HEALTHY
    assert len(probers(engine)) == 1
    await engine.remove(ref, force=True)


async def test_a_daemon_that_comes_back_goes_on(world: World, told: AsyncIterator[Event]) -> None:
    engine = await world.engine()
    ref = await start(engine, probed("true"))
    await until(told, "health_status: healthy")
    await engine.stop()
    again = await world.engine()
    recorded = health(again, ref)
    assert recorded.status is HEALTHY
    await until(told, "exec_die")
    await until(told, "exec_die")
    assert health(again, ref).log[-1].start_ns > recorded.log[-1].start_ns
    await again.remove(ref, force=True)
    await again.stop()


async def test_the_image_s_check_is_used_and_none_turns_it_off(world: World) -> None:
    world.put_image(health=HealthCheck(test=("CMD", "true"), interval_ns=SECOND))
    engine = await world.engine()
    plain = await engine.create(spec("sleep", "infinity"), None)
    assert engine.find(plain.id).config.health == HealthCheck(test=("CMD", "true"), interval_ns=SECOND)
    off = await start(engine, spec("sleep", "infinity", health=HealthCheck(test=("NONE",))))
    assert engine.find(off).health is None
    await engine.remove(off, force=True)
    await engine.stop()
