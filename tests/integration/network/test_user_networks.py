"""Networks of one's own against the kernel: links that come and go, routes, names, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from insula.errors import Failure, Forbidden, InvalidRequest, NoSuchNetwork
from insula.model.network import LinkKind, Network, NetworkRequest, PortBinding, Wanted
from insula.model.reports import PruneFilters
from insula.network import dns
from insula.network.networks import Networks
from insula.system import links

from .conftest import HOST, OUTSIDE, Host, inside, make_socket
from .test_networks import HERE, A, B, nft, refused, run_each, serve, source_seen
from .test_recovery import crash

pytestmark = pytest.mark.integration


def own(name: str, subnet: str = "", **more: bool) -> NetworkRequest:
    return NetworkRequest(name=name, subnet=subnet, **more)  # type: ignore[arg-type]


@pytest.fixture
async def lan(networks: Networks) -> AsyncIterator[Network]:
    yield await networks.create(own("lan", "10.7.0.0/24"))
    for instance_id in (A, B):
        await networks.disconnect(instance_id)
    await networks.remove("lan")


async def veth(networks: Networks, instance_id: str, network: str, *names: str, **wanted: str) -> str:
    endpoint = await networks.connect(
        instance_id,
        network,
        LinkKind.VETH,
        names=names,
        wanted=Wanted(**wanted),  # type: ignore[arg-type]
    )
    return endpoint.netns


def shown(netns: str, *words: str) -> str:
    return inside(
        netns, lambda: subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
    )


def ask(netns: str, server: str, name: str, kind: int = dns.A, *, tcp: bool = False) -> tuple[int, list[str]]:
    """(code, addresses)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack(">HHHHHH", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)
    with make_socket(netns, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as client:
        client.connect((server, 53))
        client.sendall(struct.pack(">H", len(query)) + query if tcp else query)
        said = client.recv(2000)[2 if tcp else 0 :]
    number, flags, _, answers, *_ = struct.unpack_from(">HHHHHH", said)
    assert (number, bool(flags & 0x8000)) == (77, True)
    rest = said[len(query) :]
    return flags & 15, [socket.inet_ntoa(rest[n * 16 + 12 : n * 16 + 16]) for n in range(answers)]


async def asked(netns: str, server: str, name: str, kind: int = dns.A, *, tcp: bool = False) -> object:
    """While our own loop, which answers, goes on."""
    return await asyncio.to_thread(lambda: ask(netns, server, name, kind, tcp=tcp))


async def test_interfaces_come_and_go_while_an_instance_lives(
    networks: Networks, lan: Network, host: Host
) -> None:
    netns = await veth(networks, A, "bridge")
    assert netns == await veth(networks, A, "lan", "a", mac="02:00:00:00:00:07")
    assert [(e.network_name, e.interface) for e in networks.endpoints(A)] == [
        ("bridge", "eth0"),
        ("lan", "eth1"),
    ]
    assert "02:00:00:00:00:07" in shown(netns, "link", "show", "eth1")
    assert "default via 172.29.0.1 dev eth0" in shown(netns, "route")  # `bridge` comes before `lan`
    binding = PortBinding(container_port=80, host_port=8080)
    await networks.publish(A, [binding])
    with serve(netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
        await networks.leave(A, networks.find("bridge").id)
        await networks.leave(A, networks.find("bridge").id)
        assert "default via 10.7.0.1 dev eth1" in shown(netns, "route")
        assert "eth0" not in shown(netns, "link")
        assert source_seen(listener, HERE, "127.0.0.1", 8080) == "10.7.0.1"  # the port came along
        assert source_seen(listener, host.outside, HOST, 8080) == OUTSIDE
    await networks.leave(A, lan.id)
    assert networks.endpoints(A) == networks.ports(A) == ()
    assert shown(netns, "route") == ""
    assert netns == await veth(networks, A, "lan", "a")
    assert "default via 10.7.0.1 dev eth0" in shown(netns, "route")
    await networks.disconnect(A)
    await networks._plumbing.settled()
    assert not os.path.lexists(netns)


async def test_names_are_answered_by_udp_and_tcp_and_others_passed_on(
    networks: Networks, lan: Network, host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = await veth(networks, A, "lan", "one", "web")
    two = await veth(networks, B, "lan", "two", "web")
    first, second = (networks.endpoints(instance_id)[0].address for instance_id in (A, B))
    for tcp in (False, True):
        assert (0, [second]) == await asked(one, lan.gateway, "two", tcp=tcp)
        assert (0, []) == await asked(one, lan.gateway, "two", dns.AAAA, tcp=tcp)
    code, found = await asked(two, lan.gateway, "web")  # type: ignore[misc]
    assert (0, {first, second}) == (code, set(found))
    resolv_conf = tmp_path / "resolv.conf"
    monkeypatch.setattr("insula.network.names._RESOLV_CONF", str(resolv_conf))
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    assert (dns.SERVER_FAILURE, []) == await asked(one, lan.gateway, "elsewhere")  # nobody is there
    async with upstream("127.0.0.1", "192.0.2.1"):
        for tcp in (False, True):
            assert (0, ["192.0.2.1"]) == await asked(one, lan.gateway, "elsewhere.example", tcp=tcp)
    networks.rename(B, "two", "zwei")
    assert (0, [second]) == await asked(one, lan.gateway, "zwei")


@contextlib.asynccontextmanager
async def upstream(address: str, answer: str) -> AsyncIterator[None]:
    """The host's own name server, on every address, as some are."""

    def said(data: bytes) -> bytes:
        query = dns.parse_query(data)
        assert isinstance(query, dns.Query)
        return dns.make_answer(query, [dns.address_record(answer)], most=512)

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(said(data), addr)  # type: ignore[attr-defined]

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        answered = said(await reader.readexactly(length))
        writer.write(struct.pack(">H", len(answered)) + answered)
        await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("0.0.0.0", 53))
    async with await asyncio.start_server(serve_one, "0.0.0.0", 53):
        yield
    transport.close()


async def test_an_instance_that_publishes_port_53_is_nobodys_name_server(
    networks: Networks, lan: Network
) -> None:
    one = await veth(networks, A, "lan", "one")
    await networks.publish(A, [PortBinding(container_port=53, host_port=53, protocol="udp")])
    two = await veth(networks, B, "lan", "two")
    address = networks.endpoints(A)[0].address
    assert (0, [address]) == await asked(two, lan.gateway, "one")
    assert one != two


async def test_an_internal_network_has_no_way_out_and_asks_nobody(networks: Networks, host: Host) -> None:
    await networks.create(own("island", "10.8.0.0/24", internal=True))
    netns = await veth(networks, A, "island", "a")
    assert "default" not in shown(netns, "route")
    assert await networks.publish(A, [PortBinding(container_port=80)]) == ()
    assert (dns.SERVER_FAILURE, []) == await asked(netns, "10.8.0.1", "elsewhere.example")
    shown(netns, "route", "add", "default", "via", "10.8.0.1")
    with serve(host.outside, 80), serve(netns, 80) as listener:
        assert refused(netns, OUTSIDE, 80)
        assert source_seen(listener, HERE, "10.8.0.2", 80) == "10.8.0.1"
    await networks.disconnect(A)
    await networks.remove("island")


async def test_a_network_in_use_stays_and_an_unused_one_leaves_nothing(
    networks: Networks, host: Host
) -> None:
    made = await networks.create(own("lan"))
    rules = nft("list", "table", "inet", "insulat0")
    assert made.bridge in host.links()
    assert made.bridge in rules
    await veth(networks, A, made.id[:10], "a")
    with pytest.raises(Forbidden, match='network lan has active endpoints \\(name:"a"'):
        await networks.remove("lan")
    with pytest.raises(InvalidRequest, match="user configured subnets"):
        await veth(networks, B, "lan", address="10.0.0.2")
    await networks.disconnect(A)
    assert (await networks.prune(PruneFilters(labels=("x",)))).deleted == ()
    assert (await networks.prune(PruneFilters())).deleted == ("lan",)
    with pytest.raises(NoSuchNetwork):
        networks.find("lan")
    assert made.bridge not in host.links()
    assert made.bridge not in nft("list", "table", "inet", "insulat0")


async def test_the_drivers_options_have_their_effect(networks: Networks, host: Host) -> None:
    options = {
        "com.docker.network.bridge.enable_ip_masquerade": "false",
        "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
        "com.docker.network.driver.mtu": "1280",
    }
    await networks.create(NetworkRequest(name="lan", subnet="10.7.0.0/24", options=options))
    netns = await veth(networks, A, "lan")
    with serve(host.outside, 80) as listener:
        assert source_seen(listener, netns, OUTSIDE, 80) == networks.endpoints(A)[0].address
    assert "mtu 1280" in shown(netns, "link", "show", "eth0")
    asked = PortBinding(container_port=80, host_port=8080)
    (decided,) = await networks.publish(A, [asked])
    assert decided.host_ip == "127.0.0.1"
    with serve(netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
        assert refused(host.outside, HOST, 8080)
    await networks.disconnect(A)
    await networks.remove("lan")


async def test_a_link_that_cannot_be_made_leaves_nothing(networks: Networks, lan: Network) -> None:
    netns = await veth(networks, A, "bridge")
    shown(netns, "link", "add", "eth1", "type", "veth", "peer", "name", "v")  # the name is taken
    with pytest.raises(Failure, match="cannot connect"):
        await veth(networks, A, "lan", address="10.7.0.9")
    assert [e.network_name for e in networks.endpoints(A)] == ["bridge"]
    with links.open_route() as route:
        found = {link.name: link for link in links.list_links(route)}
    assert not [link for link in found.values() if link.master == found[lan.bridge].index]
    assert "default via 172.29.0.1" in shown(netns, "route")
    shown(netns, "link", "delete", "eth1")
    await veth(networks, A, "lan", address="10.7.0.9")
    assert "10.7.0.9/24" in shown(netns, "-4", "addr", "show", "eth1")


async def test_a_chosen_address_is_had_and_then_taken(networks: Networks, lan: Network) -> None:
    netns = await veth(networks, A, "lan", address="10.7.0.77")
    assert "10.7.0.77/24" in shown(netns, "-4", "addr")
    with pytest.raises(Forbidden, match="Address already in use"):
        await veth(networks, B, "lan", address="10.7.0.77")
    assert networks.endpoints(B) == ()


@pytest.mark.parametrize("lost", [(), ("link", "flush")])
async def test_after_a_crash_networks_are_as_they_were(host: Host, lost: Sequence[str]) -> None:
    """`lost`: the host's bridges too, as after somebody's clean-up or a reboot."""
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    lan = await networks.create(own("lan", "10.7.0.0/24"))
    await networks.create(own("other", internal=True))
    one, two = await veth(networks, A, "lan", "one"), await veth(networks, B, "lan", "two")
    await veth(networks, A, "other", "one")
    await networks.publish(A, [PortBinding(container_port=80, host_port=8080)])
    before = networks.endpoints(A)
    listed = networks.list()
    await crash(networks, store)
    if lost:
        for bridge in (lan.bridge, "insulat0"):
            run_each(f"ip link delete {bridge}")
        nft("flush", "ruleset")
    store = host.store()
    again = host.networks(store)
    await again.start()
    await again.recover({A, B})
    assert again.list() == listed
    assert again.endpoints(A) == before
    assert (0, [before[0].address]) == await asked(two, lan.gateway, "one")
    with serve(one, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
        source_seen(listener, two, before[0].address, 80)
    await again.disconnect(A)
    await again.disconnect(B)
    await again.remove("lan")
    await again.stop()  # the unused one goes with the daemon, and comes back with it
    assert host.links() == []
    third = host.networks(store)
    await third.start()
    assert [n.name for n in third.list()] == ["bridge", "host", "none", "other"]
    await third.remove("other")
    await third.stop()
    assert host.links() == []
    assert os.listdir(host.exec_root) == []
    store.close()
