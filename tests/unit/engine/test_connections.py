"""Networks of an instance that is there: joined and left, and as before when that fails."""

from __future__ import annotations

import pytest

from insula.engine.engine import Engine
from insula.errors import (
    Conflict,
    Failure,
    Forbidden,
    InvalidRequest,
    NoSuchInstance,
    NoSuchNetwork,
    UnsupportedField,
)
from insula.model.instance import InstanceSpec
from insula.model.isolation import Isolation
from insula.model.network import SYSCTLS_OPTION, NetworkRequest, NetworkSpec, PortBinding

from .rooms import World, spec

SLEEP = ("sleep", "infinity")


async def networks_of(engine: Engine, instance: str) -> dict[str, NetworkSpec]:
    return {wanted.name: wanted for wanted in engine.find(instance).spec.networks or ()}


async def started(engine: Engine, request: InstanceSpec) -> str:
    for name in ("one", "two"):
        await engine.networks.create(NetworkRequest(name=name))
    made = await engine.create(request, "web")
    await engine.start_instance(made.id)
    return made.id


async def test_a_running_instance_joins_and_leaves(engine: Engine, world: World) -> None:
    web = await started(engine, spec(*SLEEP))
    await engine.connect("web", NetworkSpec(name=engine.networks.find("two").id[:12], aliases=("db",)))
    assert ["bridge", "two"] == list(await networks_of(engine, web))
    assert ("db",) == (await networks_of(engine, web))["two"].aliases
    assert {"bridge", "two"} == world.backend.networks_of(web)
    names = world.networks.endpoints(web)[1].names
    assert ("web", "db", web[:12]) == names
    await engine.disconnect("web", "bridge")
    assert {"two"} == world.backend.networks_of(web) == set(await networks_of(engine, web))
    await engine.restart(web, timeout_s=0)
    assert {"two"} == world.backend.networks_of(web)
    await engine.remove(web, force=True)


async def test_what_gets_a_network_publishes_its_ports(engine: Engine, world: World) -> None:
    binding = PortBinding(container_port=80, host_port=8080)
    web = await started(engine, spec(*SLEEP, ports=(binding,)))
    await engine.disconnect(web, "bridge")
    assert () == world.networks.ports(web)
    other = (await engine.create(spec(*SLEEP, ports=(binding,)), "other")).id
    await engine.start_instance(other)
    with pytest.raises(Failure, match="port is already allocated"):
        await engine.connect(web, NetworkSpec(name="one"))
    assert set() == set(await networks_of(engine, web)) == world.backend.networks_of(web)
    await engine.remove(other, force=True)
    for name in ("one", "two"):
        await engine.connect(web, NetworkSpec(name=name))
        assert (binding,) == world.networks.ports(web)
    await engine.remove(web, force=True)


async def test_hosts_and_resolv_conf_follow(engine: Engine, world: World) -> None:
    web = await started(engine, spec(*SLEEP, extra_hosts=("h:host-gateway",)))

    def text(target: str) -> str:
        plan = engine.describe(web).plan
        assert plan is not None
        return next(file.text for file in plan.etc_files if file.target == target)

    (first,) = world.networks.endpoints(web)
    await engine.connect("web", NetworkSpec(name="one"))
    second = world.networks.endpoints(web)[1]
    assert f"{first.address}\t{web[:12]}\n{second.address}\t{web[:12]}\n" in text("/etc/hosts")
    for network in ("bridge", "one"):
        await engine.disconnect("web", network)
    assert f"{second.address}\t" not in text("/etc/hosts")
    assert f"{engine.networks.find('bridge').gateway}\th\n" in text("/etc/hosts")
    await engine.remove(web, force=True)


async def test_who_has_nobody_to_ask_learns_its_neighbours_while_it_runs(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = await started(engine, spec(*SLEEP))
    for lines, expected in ([("192.0.2.7", "db db.lan")], True), ([], False):
        monkeypatch.setattr(world.networks, "neighbours", lambda _, lines=lines: tuple(lines))
        world.networks._fabric.on_neighbours("gone meanwhile")
        world.networks._fabric.on_neighbours(web)
        assert engine._neighbours._teller is not None
        await engine._neighbours._teller
        plan = engine.describe(web).plan
        assert plan is not None
        hosts = next(file.text for file in plan.etc_files if file.target == "/etc/hosts")
        assert ("192.0.2.7\tdb db.lan\n" in hosts) == expected
    monkeypatch.setattr(world.networks, "neighbours", lambda _: (("192.0.2.8", "late"),))
    world.backend.break_at = "set_network"  # as a paused VM's does
    world.networks._fabric.on_neighbours(web)
    await engine._neighbours._teller
    await engine.pause("web")
    await engine.unpause("web")
    await engine._neighbours._teller
    plan = engine.describe(web).plan
    assert plan is not None
    assert any("192.0.2.8\tlate\n" in file.text for file in plan.etc_files)
    await engine.remove(web, force=True)


async def test_a_backend_that_refuses_leaves_everything_as_it_was(engine: Engine, world: World) -> None:
    web = await started(engine, spec(*SLEEP))
    world.backend.break_at = "set_network"
    with pytest.raises(Conflict, match="broken at set_network"):
        await engine.connect("web", NetworkSpec(name="one"))
    assert {"bridge"} == world.backend.networks_of(web)
    assert ["bridge"] == [each.network_name for each in world.networks.endpoints(web)]
    assert {} == await networks_of(engine, web)
    assert [] == world.store.operations()
    await engine.connect("web", NetworkSpec(name="one"))
    await engine.remove(web, force=True)


async def test_of_a_stopped_one_only_what_it_wants_changes(engine: Engine, world: World) -> None:
    for name in ("one", "two"):
        await engine.networks.create(NetworkRequest(name=name))
    web = (await engine.create(spec(*SLEEP, networks=(NetworkSpec(name="one"),)), "web")).id
    await engine.connect("web", NetworkSpec(name="two"))
    await engine.disconnect("web", "one")
    assert () == world.networks.endpoints(web)
    await engine.networks.remove("two")
    with pytest.raises(NoSuchNetwork):
        await engine.start_instance("web")
    await engine.disconnect("web", "two", force=True)
    await engine.start_instance("web")
    assert set() == world.backend.networks_of(web)
    await engine.remove(web, force=True)


async def test_a_request_may_name_a_network_by_id_and_by_name(engine: Engine, world: World) -> None:
    one = await engine.networks.create(NetworkRequest(name="one"))
    wanted = (NetworkSpec(name=one.id), NetworkSpec(name="one", aliases=("a",)))
    web = (await engine.create(spec(*SLEEP, network_mode=one.id, networks=wanted), "web")).id
    assert {"one": NetworkSpec(name="one", aliases=("a",))} == await networks_of(engine, web)


async def test_the_network_of_another_is_joined_while_that_runs(engine: Engine, world: World) -> None:
    await engine.create(spec(*SLEEP, network_mode="container:web"), "guest")
    await engine.create(spec(*SLEEP, network_mode="container:itself"), "itself")
    await engine.create(spec(*SLEEP, isolation=Isolation.VM), "machine")
    await engine.create(spec(*SLEEP, network_mode="container:machine"), "stranger")
    with pytest.raises(NoSuchInstance):
        await engine.start_instance("guest")
    web = (await engine.create(spec(*SLEEP), "web")).id
    with pytest.raises(Conflict, match=f"cannot join network of a non running container: {web}"):
        await engine.start_instance("guest")
    with pytest.raises(InvalidRequest, match="cannot join own network"):
        await engine.start_instance("itself")
    for name in ("web", "guest", "machine"):
        await engine.start_instance(name)
    plan, host = (engine.describe(name).plan for name in ("guest", "web"))
    assert plan is not None
    assert host is not None
    assert (plan.joins_network, plan.hostname, plan.etc_files) == (True, host.hostname, host.etc_files)
    assert "HOSTNAME=" + host.hostname in plan.process.env
    with pytest.raises(Conflict, match="inside of a virtual machine"):
        await engine.start_instance("stranger")
    with pytest.raises(InvalidRequest, match="sharing network namespace"):
        await engine.connect("guest", NetworkSpec(name="bridge"))
    for name in ("web", "guest", "machine"):
        await engine.remove(name, force=True)


async def test_sysctls_of_an_endpoint_are_its_interface_s(engine: Engine) -> None:
    def tuned(network: str, value: str) -> NetworkSpec:
        option = f"net.ipv4.conf.IFNAME.log_martians={value},net.ipv6.conf.IFNAME.accept_ra=0"
        return NetworkSpec(name=network, driver_opts={SYSCTLS_OPTION: option})

    asked = spec(*SLEEP, networks=(tuned("one", "1"), tuned("two", "0")), sysctls={"net.core.somaxconn": "9"})
    ident = await started(engine, asked)
    plan = engine.describe(ident).plan
    assert plan is not None
    assert plan.security.sysctls == (
        ("net.core.somaxconn", "9"),
        ("net.ipv4.conf.eth0.log_martians", "1"),
        ("net.ipv6.conf.eth0.accept_ra", "0"),
        ("net.ipv4.conf.eth1.log_martians", "0"),
        ("net.ipv6.conf.eth1.accept_ra", "0"),
    )
    with pytest.raises(UnsupportedField, match="an instance that runs has its sysctls"):
        await engine.connect(ident, tuned("bridge", "1"))


async def test_refusals_are_mobys(engine: Engine) -> None:
    await started(engine, spec(*SLEEP))
    with pytest.raises(Forbidden, match="endpoint with name web already exists in network bridge"):
        await engine.connect("web", NetworkSpec(name="bridge"))
    with pytest.raises(Failure, match="is not connected to the network one"):
        await engine.disconnect("web", "one")
    with pytest.raises(InvalidRequest, match="connected to host network"):
        await engine.connect("web", NetworkSpec(name="host"))
    with pytest.raises(NoSuchNetwork, match="network three not found"):
        await engine.connect("web", NetworkSpec(name="three"))
    alone = (await engine.create(spec("true", network_mode="none"), "alone")).id
    with pytest.raises(InvalidRequest, match=r"private \(none\) mode"):
        await engine.connect(alone, NetworkSpec(name="one"))
    await engine.disconnect("web", "bridge")
    with pytest.raises(InvalidRequest, match="user defined networks only"):
        await engine.connect("web", NetworkSpec(name="bridge", ipv4_address="10.0.0.9"))
    await engine.remove("web", force=True)
