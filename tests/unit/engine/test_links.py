"""Legacy links: what they tell of the other (moby's names), and that they follow it."""

from __future__ import annotations

import pytest

from insula.engine.engine import Engine
from insula.engine.links import link_environment
from insula.errors import Conflict, Failure, InvalidRequest, NoSuchInstance

from .rooms import World, spec

SLEEP = ("sleep", "infinity")


def hosts(engine: Engine, ref: str) -> list[str]:
    plan = engine.describe(ref).plan
    assert plan is not None
    return next(file.text for file in plan.etc_files if file.target == "/etc/hosts").splitlines()


async def linked(engine: Engine) -> tuple[str, str]:
    """`db`, and `web` that calls it `it`; the ids."""
    db = await engine.create(spec(*SLEEP, env=("WHO=db",), exposed_ports=("80/tcp",), hostname="h"), "db")
    await engine.start_instance("db")
    web = await engine.create(spec(*SLEEP, network_mode="bridge", links=("db:it",)), "web")
    await engine.start_instance("web")
    return db.id, web.id


async def test_a_link_follows_the_other_and_can_be_taken_away(engine: Engine, world: World) -> None:
    db, web = await linked(engine)
    assert (("db", "it"),) == engine.describe("web").links
    assert ("web/it",) == engine.describe("db").link_names
    plan = engine.describe("web").plan
    assert plan is not None
    (first,) = world.networks.endpoints(db)
    assert {f"IT_PORT=tcp://{first.address}:80", "IT_ENV_WHO=db", "IT_NAME=/web/it"} <= set(plan.process.env)
    assert f"{first.address}\tit h db" in hosts(engine, "web")
    await engine.restart("db", timeout_s=0)
    (second,) = world.networks.endpoints(db)
    assert second.address != first.address
    assert f"{second.address}\tit h db" in hosts(engine, "web")
    assert not [line for line in hosts(engine, "web") if line.startswith(f"{first.address}\t")]
    with pytest.raises(NoSuchInstance):
        await engine.unlink("web", "that")
    await engine.unlink("web", "it")
    assert not [line for line in hosts(engine, "web") if "it h db" in line]
    assert () == engine.describe("web").links == engine.describe("db").link_names
    for each in (web, db):
        await engine.remove(each, force=True)


async def test_the_other_must_exist_at_create_and_run_at_start(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="could not get container for db: No such container: db"):
        await engine.create(spec(*SLEEP, network_mode="bridge", links=("db:it",)), "web")
    await engine.create(spec(*SLEEP), "db")
    with pytest.raises(Conflict, match="already in use by another link"):
        await engine.create(spec(*SLEEP, network_mode="bridge", links=("db:it", "db:it")), "web")
    await engine.create(spec(*SLEEP, network_mode="bridge", links=("db:it",)), "web")
    with pytest.raises(Failure, match="Cannot link to a non running container: /db AS /web/it"):
        await engine.start_instance("web")
    await engine.remove("db")
    await engine.start_instance("web")  # as in Docker: it has no link any more
    await engine.remove("web", force=True)


def test_the_environment_of_a_link() -> None:
    env, exposed = ("WHO=db", "PATH=/bin", "HOME=/", "EMPTY="), ("53/udp", "80", "81/tcp", "443")
    found = link_environment("web", "my-db", "172.17.0.5", env, exposed)
    assert found == (
        "MY_DB_PORT=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_80_TCP_PORT=80",
        "MY_DB_PORT_80_TCP_PROTO=tcp",
        "MY_DB_PORT_81_TCP=tcp://172.17.0.5:81",
        "MY_DB_PORT_81_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_81_TCP_PORT=81",
        "MY_DB_PORT_81_TCP_PROTO=tcp",
        "MY_DB_PORT_443_TCP=tcp://172.17.0.5:443",
        "MY_DB_PORT_443_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_443_TCP_PORT=443",
        "MY_DB_PORT_443_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://172.17.0.5:53",
        "MY_DB_PORT_53_UDP_ADDR=172.17.0.5",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_PORT_80_TCP_START=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP_PORT_START=80",
        "MY_DB_PORT_80_TCP_END=tcp://172.17.0.5:81",
        "MY_DB_PORT_80_TCP_PORT_END=81",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_WHO=db",
        "MY_DB_ENV_EMPTY=",
    )


def test_one_that_exposes_nothing_is_named_all_the_same() -> None:
    assert link_environment("web", "db", "172.17.0.5", (), ()) == ("DB_NAME=/web/db",)
