"""Pages of networks: statuses and shapes, byte by byte, and through docker-py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
import pytest

from api_wire import ask
from fake_house import House, start_house

OPTION = "com.docker.network.driver.mtu"
SYSCTLS = "com.docker.network.endpoint.sysctls"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started


async def send(house: House, method: str, target: str, body: Any = b"") -> tuple[int, Any]:
    status, _, said = await ask(house, method, target, body)
    return status, json.loads(said) if said.strip() else None


async def test_a_network_is_made_joined_left_and_shown(house: House) -> None:
    """Its name has slashes, as those that vagrant gives."""
    asked = {
        "Name": "lan/10.1.0.0/24",
        "CheckDuplicate": True,
        "Internal": True,
        "Attachable": True,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.128/25"}]},
        "Options": {OPTION: "1400", "own": "kept"},
        "Labels": {"a": "b"},
    }
    status, said = await send(house, "POST", "/v1.47/networks/create", asked)
    assert (201, {"Id", "Warning"}) == (status, set(said))
    assert 409 == (await send(house, "POST", "/v1.43/networks/create", asked))[0]
    made = await house.ok("create", "--name", "web", "busybox", "sleep", "infinity")
    endpoint = {"Aliases": ["db"], "IPAMConfig": {"IPv4Address": "10.1.0.9"}, "DriverOpts": {"x.y": "z"}}
    join = {"Container": "web", "EndpointConfig": endpoint}
    assert (200, None) == await send(house, "POST", "/networks/lan/10.1.0.0/24/connect", join)
    again = {"Container": "web"}  # of one that does not run it is left as it was, as in moby
    assert 200 == (await send(house, "POST", f"/networks/{said['Id'][:9]}/connect", again))[0]
    _, shown = await send(house, "GET", "/containers/web/json")
    settings = shown["NetworkSettings"]["Networks"]
    assert ["bridge", "lan/10.1.0.0/24"] == list(settings)
    expected = {**endpoint, "DNSNames": ["web", "db", made[:12]]}
    assert expected == {key: settings["lan/10.1.0.0/24"][key] for key in expected}
    _, listed = await send(
        house, "GET", "/containers/json?all=1&filters=" + '{"network":["lan/10.1.0.0/24"]}'
    )
    assert [made] == [each["Id"] for each in listed]
    await house.ok("start", "web")
    assert 403 == (await send(house, "POST", f"/networks/{said['Id'][:9]}/connect", again))[0]
    _, network = await send(house, "GET", "/networks/lan/10.1.0.0/24")
    member = network["Containers"][made]
    assert ("web", "10.1.0.9/16") == (member["Name"], member["IPv4Address"])
    assert (True, True, {"a": "b"}) == (network["Internal"], network["Attachable"], network["Labels"])
    assert {OPTION: "1400", "own": "kept"} == network["Options"]
    config = {"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.128/25", "Gateway": "10.1.0.129"}
    assert [config] == network["IPAM"]["Config"]
    leave = {"Container": "web", "Force": False}
    assert (200, None) == await send(house, "POST", "/networks/lan/10.1.0.0/24/disconnect", leave)
    assert 500 == (await send(house, "POST", "/networks/lan/10.1.0.0/24/disconnect", leave))[0]
    assert (204, None) == await send(house, "DELETE", "/networks/lan/10.1.0.0/24")


async def test_two_networks_of_one_name_for_who_asks_for_them(house: House) -> None:
    async def make(**fields: Any) -> tuple[int, Any]:
        return await send(house, "POST", "/networks/create", {"Name": "lan", **fields})

    first = (await make())[1]["Id"]
    assert 409 == (await make())[0]
    assert 409 == (await make(CheckDuplicate=None))[0]
    status, said = await make(CheckDuplicate=False)
    assert (201, f"Network with name lan (id : {first}) already exists") == (status, said["Warning"])
    status, why = await send(house, "GET", "/networks/lan")
    assert (400, "network lan is ambiguous (2 matches found on name)") == (status, why["message"])
    await house.ok("create", "--name", "web", "--network", said["Id"], "busybox", "sleep", "infinity")
    join = {"Container": "web"}
    await house.ok("start", "web")
    assert 403 == (await send(house, "POST", f"/networks/{said['Id']}/connect", join))[0]
    _, shown = await send(house, "GET", "/containers/web/json")
    assert said["Id"] == shown["NetworkSettings"]["Networks"]["lan"]["NetworkID"]
    assert 200 == (await send(house, "POST", f"/networks/{said['Id']}/disconnect", join))[0]
    assert 204 == (await send(house, "DELETE", f"/networks/{first}"))[0]
    assert 200 == (await send(house, "GET", "/networks/lan"))[0]


async def test_subnets_with_host_bits_are_told_as_they_are_used(house: House) -> None:
    configs = [{"Subnet": "10.3.0.7/24"}, {"Subnet": "2001:389::1/64", "Gateway": "2001:389::ffff"}]
    asked = {"Name": "lan", "EnableIPv6": True, "IPAM": {"Config": configs, "Options": {"a": "b"}}}
    status, said = await send(house, "POST", "/networks/create", asked)
    assert 201 == status
    assert {"a": "b"} == (await send(house, "GET", "/networks/lan"))[1]["IPAM"]["Options"]
    assert [
        "IPAM.Options have no effect: the default driver has none",
        "10.3.0.7/24 is an address in 10.3.0.0/24, which is used",
        "2001:389::1/64 is an address in 2001:389::/64, which is used",
    ] == said["Warning"].splitlines()


@pytest.mark.parametrize(
    ("target", "body", "status", "words"),
    [
        ("create", {}, 400, "name is empty"),
        ("create", {"Name": "host"}, 403, "operation is not permitted on predefined host network"),
        ("create", {"Name": "x", "Driver": "weave"}, 404, "plugin not found"),
        ("create", {"Name": "x", "IPAM": {"Driver": "weave"}}, 404, "plugin not found"),
        (
            "create",
            {"Name": "x", "EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "fe80::/64"}]}},
            400,
            "addresses of this kind",
        ),
        ("create", {"Name": "x", "IPAM": {"Config": [{"Gateway": "fd00::1"}]}}, 400, "needs a subnet"),
        ("create", {"Name": "x", "EnableIPv4": False}, 400, "EnableIPv4"),
        ("create", {"Name": "x", "Scope": "swarm"}, 400, "Scope"),
        ("create", {"Name": "x", "Ingress": True}, 400, "Ingress"),
        ("create", {"Name": "x", "ConfigFrom": {"Network": "y"}}, 400, "ConfigOnly"),
        ("create", {"Name": "x", "IPAM": {"Config": [{"Subnet": "10.0.0.0/8"}] * 2}}, 400, "one subnet"),
        (
            "create",
            {"Name": "x", "Options": {"com.docker.network.a": "b"}},
            400,
            "Options.com.docker.network.a",
        ),
        ("create", {"Name": 5}, 400, "invalid JSON"),
        ("nobody/connect", {"Container": "web"}, 404, "network nobody not found"),
        ("bridge/connect", {"Container": "nobody"}, 404, "No such container: nobody"),
        ("bridge/connect", {}, 400, "names no container"),
        ("bridge/disconnect", {}, 400, "names no container"),
        ("none/connect", {"Container": "web"}, 400, "private (none) mode"),
        (
            "bridge/connect",
            {"Container": "web", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.0.0"}}},
            400,
            "EndpointConfig.IPAMConfig.IPv4Address: invalid IPv4 address",
        ),
        (
            "bridge/connect",
            {"Container": "web", "EndpointConfig": {"DriverOpts": {"com.docker.network.endpoint.x": ""}}},
            400,
            "EndpointConfig.DriverOpts.com.docker.network.endpoint.x",
        ),
        (
            "bridge/connect",
            {"Container": "web", "EndpointConfig": {"DriverOpts": {SYSCTLS: "net.ipv4.conf.eth0.x=1"}}},
            400,
            "unrecognised network interface sysctl 'net.ipv4.conf.eth0.x=1'; represent",
        ),
        (
            "bridge/connect",
            {"Container": "web", "EndpointConfig": {"IPAMConfig": {"IPv6Address": "10.0.0.1"}}},
            400,
            "EndpointConfig.IPAMConfig.IPv6Address: invalid IPv6 address",
        ),
        (
            "bridge/connect",
            {"Container": "web", "EndpointConfig": {"IPAMConfig": {"LinkLocalIPs": ["10.0.0.1"]}}},
            400,
            "invalid link-local IP address",
        ),
        (
            "bridge/connect",
            {"Container": "web", "EndpointConfig": {"Links": ["a:b:c"]}},
            400,
            "bad format for links: a:b:c",
        ),
    ],
)
async def test_refusals(house: House, target: str, body: Any, status: int, words: str) -> None:
    await house.ok("create", "--name", "web", "busybox")
    found, said = await send(house, "POST", f"/networks/{target}", body)
    assert (status, True) == (found, words in said["message"]), said


async def test_docker_py_makes_and_joins_networks(house: House) -> None:
    def work() -> None:
        client = docker.DockerClient(base_url=house.host)
        pool = docker.types.IPAMPool(
            subnet="10.2.0.0/24", gateway="10.2.0.9", aux_addresses={"a": "10.2.0.8"}
        )
        made = client.networks.create(
            "lan", driver="bridge", ipam=docker.types.IPAMConfig(pool_configs=[pool])
        )
        web = client.containers.create("busybox", "sleep infinity", network="lan")
        client.networks.get("bridge").connect(web, aliases=None)
        web.reload()
        assert ["lan", "bridge"] == list(web.attrs["NetworkSettings"]["Networks"])
        made.disconnect(web)
        assert [made] == client.networks.list(names=["lan"])
        assert "10.2.0.8" == made.attrs["IPAM"]["Config"][0]["AuxiliaryAddresses"]["a"]
        web.remove()
        made.remove()
        client.close()

    await asyncio.to_thread(work)
