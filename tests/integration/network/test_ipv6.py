"""IPv6 against the kernel: addresses and routes, what is reached and what is not, ports on [::] and ::1,
names, and all of it again after a crash."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.errors import Failure, Forbidden, InvalidRequest
from insula.model.network import AddressRange, Endpoint, LinkKind, NetworkRequest, PortBinding, Wanted
from insula.network.networks import Networks

from .conftest import Host, inside
from .test_networks import HERE, A, B, C, nft, run_each
from .test_recovery import crash
from .test_user_networks import shown

pytestmark = pytest.mark.integration

HOST6, OUTSIDE6 = "2001:db8:1::1", "2001:db8:1::2"
LAN6, GATEWAY6 = "fd00:1::/64", "fd00:1::1"


@pytest.fixture
def wire(host: Host) -> Host:
    """The outside has IPv6, too."""
    subprocess.run(
        ["ip", "-6", "addr", "add", f"{HOST6}/64", "dev", "wire", "nodad"], check=True, capture_output=True
    )
    for words in (f"addr add {OUTSIDE6}/64 dev eth0 nodad", f"route add default via {HOST6}"):
        inside(host.outside, lambda words=words: subprocess.run(["ip", "-6", *words.split()], check=True))  # type: ignore[misc]
    return host


def request(name: str = "lan", subnet6: str = LAN6, **more: object) -> NetworkRequest:
    return NetworkRequest(name=name, ipv6=True, range6=AddressRange(subnet=subnet6), **more)  # type: ignore[arg-type]


async def veth(
    networks: Networks, instance_id: str, network: str = "lan", *names: str, **wanted: str
) -> Endpoint:
    return await networks.connect(
        instance_id,
        network,
        LinkKind.VETH,
        names=names,
        wanted=Wanted(**wanted),  # type: ignore[arg-type]
    )


def make(netns: int | str, family: int, kind: int) -> socket.socket:
    def do() -> socket.socket:
        made = socket.socket(family, kind)
        made.settimeout(5)
        return made

    return inside(netns, do)


def listen(netns: int | str, port: int, address: str = "::", kind: int = socket.SOCK_STREAM) -> socket.socket:
    """`::` takes IPv4 as well."""
    server = make(netns, socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    if ":" in address:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


async def client_seen(server: socket.socket, netns: int | str, address: str, port: int) -> str:
    """Connect, exchange more than a buffer both ways, end it properly; the client as the server sees it."""
    data = bytes(range(256)) * 4096

    def talk() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with make(netns, family, socket.SOCK_STREAM) as client:
            client.connect((address, port))
            there, peer = server.accept()
            with there:
                there.settimeout(5)
                client.settimeout(5)
                client.sendall(b"x")
                assert there.recv(1) == b"x"
                there.sendall(b"y")
                assert client.recv(1) == b"y"
                client.sendall(data[:4000])
                client.shutdown(socket.SHUT_WR)
                got = b""
                while piece := there.recv(1 << 16):
                    got += piece
                assert got == data[:4000]
                there.sendall(data[:60000])
                there.shutdown(socket.SHUT_WR)
                got = b""
                while piece := client.recv(1 << 16):
                    got += piece
                assert got == data[:60000]
        return str(peer[0])

    return await asyncio.to_thread(talk)


async def is_refused(netns: int | str, address: str, port: int) -> bool:
    def try_it() -> bool:
        with make(netns, socket.AF_INET6, socket.SOCK_STREAM) as client:
            client.settimeout(0.4)
            try:
                client.connect((address, port))
                return client.recv(1) == b""  # taken, and let go at once
            except OSError:
                return True

    return await asyncio.to_thread(try_it)


async def test_an_instance_has_an_address_of_each_family_and_their_routes(networks: Networks) -> None:
    lan = await networks.create(request(subnet="10.9.0.0/24"))
    assert lan.range6 == AddressRange(subnet=LAN6, gateway=GATEWAY6, chosen_subnet=True)
    first = await veth(networks, A)
    chosen = await veth(networks, B, address6="fd00:1::99", more=("169.254.8.8/16", "fe80::77/64"))
    assert (first.address6, first.prefix_len6, first.gateway6) == ("fd00:1::2", 64, GATEWAY6)
    assert f"inet6 {first.address6}/64 scope global nodad" in shown(first.netns, "-6", "a", "show", "eth0")
    assert f"default via {GATEWAY6} dev eth0" in shown(first.netns, "-6", "route")
    assert "default via 10.9.0.1 dev eth0" in shown(first.netns, "-4", "route")
    addresses = shown(chosen.netns, "a", "show", "eth0")
    for expected in ("fd00:1::99/64", "169.254.8.8/16", "fe80::77/64"):
        assert expected in addresses
    with listen(chosen.netns, 80) as server:
        assert await client_seen(server, first.netns, "fd00:1::99", 80) == first.address6
    with listen(HERE, 81) as server:
        assert await client_seen(server, first.netns, GATEWAY6, 81) == first.address6
    with pytest.raises(Forbidden, match="Address already in use"):
        await veth(networks, C, address6="fd00:1::99")
    with pytest.raises(InvalidRequest, match="no configured subnet contains"):
        await veth(networks, C, address6="fd00:2::99")
    assert len([line for line in shown(HERE, "-6", "route").splitlines() if LAN6 in line]) == 1


async def test_one_that_runs_joins_and_leaves_and_its_routes_follow(networks: Networks) -> None:
    await networks.create(request("a"))
    await networks.create(request("b", ""))
    bridge = await veth(networks, A, "bridge")
    assert shown(bridge.netns, "-6", "addr", "show", "eth0") == ""
    b = await veth(networks, A, "b")
    assert f"default via {b.gateway6} dev eth1" in shown(bridge.netns, "-6", "route")
    a = await veth(networks, A, "a")
    assert f"default via {a.gateway6} dev eth2" in shown(bridge.netns, "-6", "route")
    assert f"default via {a.gateway} dev eth2" in shown(bridge.netns, "-4", "route")
    by_name = {endpoint.network_name: endpoint for endpoint in networks.endpoints(A)}
    assert by_name["a"].gateways == (a.gateway, a.gateway6)
    assert by_name["b"].gateways == by_name["bridge"].gateways == ()
    await networks.leave(A, a.network_id)
    assert f"default via {b.gateway6} dev eth1" in shown(bridge.netns, "-6", "route")
    assert f"default via {b.gateway} dev eth1" in shown(bridge.netns, "-4", "route")
    await networks.leave(A, b.network_id)
    assert "default" not in shown(bridge.netns, "-6", "route")


async def test_the_way_out_is_masqueraded_and_the_way_in_is_closed(networks: Networks, wire: Host) -> None:
    await networks.create(request())
    await networks.create(request("other", ""))
    one, other = await veth(networks, A), await veth(networks, B, "other")
    with listen(wire.outside, 80) as server:
        assert await client_seen(server, one.netns, OUTSIDE6, 80) == HOST6
    with listen(one.netns, 80):
        assert await is_refused(wire.outside, one.address6, 80)
        assert await is_refused(other.netns, one.address6, 80)


async def test_a_port_is_published_on_both_families_and_reached_from_everywhere(
    networks: Networks, wire: Host
) -> None:
    await networks.create(request())
    one, other = await veth(networks, A), await veth(networks, B)
    decided = await networks.publish(A, [PortBinding(container_port=80)])
    assert [binding.host_ip for binding in decided] == ["0.0.0.0", "::"]
    (port,) = {binding.host_port for binding in decided}
    with listen(one.netns, 80) as server:
        assert await client_seen(server, wire.outside, HOST6, port) == OUTSIDE6
        assert await client_seen(server, HERE, HOST6, port) in (HOST6, GATEWAY6)
        assert await client_seen(server, HERE, "::1", port) == GATEWAY6  # relayed
        assert await client_seen(server, HERE, "127.0.0.1", port) == f"::ffff:{one.gateway}"
        assert await client_seen(server, other.netns, HOST6, port) == GATEWAY6
        assert await client_seen(server, one.netns, GATEWAY6, port) == GATEWAY6  # hairpin
    with pytest.raises(Failure, match="port is already allocated"):
        await networks.publish(B, [PortBinding(container_port=80, host_ip="::1", host_port=port)])
    await networks.disconnect(A)
    assert await is_refused(HERE, "::1", port)


async def test_an_instance_without_ipv6_is_reached_by_it_all_the_same(networks: Networks, wire: Host) -> None:
    """What Docker has docker-proxy for."""
    one = await veth(networks, A, "bridge")
    both = PortBinding(container_port=80, host_port=8080)
    loopback = PortBinding(container_port=80, host_port=8081, host_ip="::1")
    question = PortBinding(container_port=53, host_port=5353, protocol="udp")
    await networks.publish(A, [both, loopback, question])
    assert networks._publishing.relays._child is None  # nobody has used it so far
    with listen(one.netns, 80, "0.0.0.0") as server:
        for netns, address in ((HERE, "::1"), (HERE, HOST6), (wire.outside, HOST6)):
            assert await client_seen(server, netns, address, 8080) == one.gateway
        assert await client_seen(server, HERE, "::1", 8081) == one.gateway
        assert await is_refused(wire.outside, HOST6, 8081)
    assert await is_refused(HERE, "::1", 8080)  # nobody listens there any more
    with listen(one.netns, 53, "0.0.0.0", socket.SOCK_DGRAM) as server:
        for address in ("::1", HOST6):
            with make(HERE, socket.AF_INET6, socket.SOCK_DGRAM) as client:
                client.connect((address, 5353))
                client.send(b"what")
                data, peer = await asyncio.to_thread(server.recvfrom, 100)
                assert (data, peer[0]) == (b"what", one.gateway)
                server.sendto(b"that", peer)
                assert await asyncio.to_thread(client.recv, 100) == b"that"


async def test_the_relay_is_started_again_when_it_is_gone(networks: Networks) -> None:
    one = await veth(networks, A, "bridge")
    await networks.publish(A, [PortBinding(container_port=80, host_port=8080)])
    with listen(one.netns, 80, "0.0.0.0") as server:
        await client_seen(server, HERE, "::1", 8080)
        child = networks._publishing.relays._child
        assert child is not None
        child.kill()
        await client_seen(server, HERE, "::1", 8080)
        assert networks._publishing.relays._child is not child
        (relay,) = networks._publishing.relays._relays
        with open(f"/proc/{networks._publishing.relays._child.pid}/status") as status:  # type: ignore[union-attr]
            assert "Uid:\t65534\t65534\t65534\t65534" in status.read()
    assert relay.fileno() >= 0
    await networks.disconnect(A)
    assert relay.fileno() == -1


async def test_a_relay_follows_its_instance_to_another_network(networks: Networks) -> None:
    await networks.create(NetworkRequest(name="a"))
    bridge = await veth(networks, A, "bridge")
    await networks.publish(A, [PortBinding(container_port=80, host_port=8080)])
    with listen(bridge.netns, 80, "0.0.0.0") as server:
        assert await client_seen(server, HERE, "::1", 8080) == bridge.gateway
        a = await veth(networks, A, "a")
        assert await client_seen(server, HERE, "::1", 8080) == a.gateway


async def test_an_internal_network_leads_nowhere(networks: Networks, wire: Host) -> None:
    await networks.create(request("island", internal=True))
    one, other, far = (
        await veth(networks, A, "island"),
        await veth(networks, B, "island"),
        await veth(networks, C, "bridge"),
    )
    assert "default" not in shown(one.netns, "-6", "route")
    await networks.publish(C, [PortBinding(container_port=80, host_port=8080)])
    with listen(other.netns, 80) as server:
        assert await client_seen(server, one.netns, other.address6, 80) == one.address6
    with listen(wire.outside, 80):
        assert await is_refused(one.netns, OUTSIDE6, 80)
    with listen(far.netns, 80, "0.0.0.0") as server:
        await client_seen(server, HERE, "::1", 8080)
        assert await is_refused(one.netns, GATEWAY6, 8080)  # not even through the relay


async def test_with_icc_off_members_do_not_reach_each_other(networks: Networks) -> None:
    await networks.create(request(options={"com.docker.network.bridge.enable_icc": "false"}))
    one, other = await veth(networks, A), await veth(networks, B)
    with listen(other.netns, 80):
        assert await is_refused(one.netns, other.address6, 80)
    with listen(HERE, 81) as server:
        assert await client_seen(server, one.netns, GATEWAY6, 81) == one.address6


async def test_names_have_addresses_of_both_families(networks: Networks) -> None:
    await networks.create(request())
    one, two = await veth(networks, A, "lan", "one"), await veth(networks, B, "lan", "two")

    def look_up(kind: str, name: str) -> str:
        argv = ["busybox", "nslookup", f"-type={kind}", name, one.gateway]
        return inside(
            one.netns, lambda: subprocess.run(argv, capture_output=True, text=True, check=False)
        ).stdout

    assert f"Address: {two.address6}" in await asyncio.to_thread(look_up, "aaaa", "two")
    assert f"Address: {two.address}\n" in await asyncio.to_thread(look_up, "a", "two")
    assert "two.lan" in await asyncio.to_thread(
        look_up, "ptr", ipaddress.ip_address(two.address6).reverse_pointer
    )


async def test_all_of_it_is_there_again_after_a_crash_and_a_loss_of_the_bridge(wire: Host) -> None:
    store = wire.store()
    networks = wire.networks(store)
    await networks.start()
    await networks.create(request())
    one = await veth(networks, A)
    await networks.publish(A, [PortBinding(container_port=80, host_port=8080)])
    with listen(one.netns, 80) as server:
        for lost in (False, True):
            await crash(networks, store)
            if lost:
                nft("flush", "ruleset")
                run_each(f"ip link del {networks.find('lan').bridge}")
            store = wire.store()
            networks = wire.networks(store)
            await networks.start()
            await networks.recover({A})
            assert [b.host_ip for b in networks.ports(A)] == ["0.0.0.0", "::"]
            assert await client_seen(server, wire.outside, HOST6, 8080) == OUTSIDE6
            assert await client_seen(server, HERE, "::1", 8080) == GATEWAY6
            other = await veth(networks, B)
            assert other.address6 != one.address6
            await networks.disconnect(B)
    await networks.disconnect(A)
    await networks.remove("lan")
    await networks.stop()
    store.close()
    assert wire.links() == []


async def test_a_host_that_hears_routers_goes_on_to(networks: Networks, host: Host) -> None:
    def setting(name: str) -> str:
        return Path(f"/proc/sys/net/ipv6/conf/{name}").read_text().strip()

    assert (setting("all/forwarding"), setting("wire/accept_ra")) == ("0", "1")
    lan = await networks.create(request())
    assert (setting("all/forwarding"), setting("wire/accept_ra")) == ("1", "2")
    assert setting(f"{lan.bridge}/accept_ra") == "0"


async def test_a_firewall_that_drops_what_is_forwarded_of_ipv6_is_named_with_the_remedy(
    networks: Networks, wire: Host
) -> None:
    """Docker from 27 on sets that policy."""
    ip6tables = shutil.which("ip6tables-nft")
    if ip6tables is None:
        pytest.skip("no iptables here")
    run_each(f"{ip6tables} -P FORWARD DROP")
    await networks.create(NetworkRequest(name="old"))
    assert networks.warnings() == ()
    await networks.create(request())
    (warning,) = networks.warnings()
    assert warning.startswith("the host's ip6tables drop forwarded traffic")
    run_each(*warning.partition("allow it with: ")[2].replace("ip6tables", ip6tables).split("; "))
    one = await veth(networks, A)
    with listen(wire.outside, 80) as server:  # the remedy works
        assert await client_seen(server, one.netns, OUTSIDE6, 80) == HOST6


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(true):
            pass


@pytest.mark.parametrize("family", [4, 6])
async def test_an_address_that_is_another_s_now_is_known_at_once(networks: Networks, family: int) -> None:
    """Of which the host, and who is on the network, remember a MAC for up to 45 s."""
    await networks.create(request(subnet="10.9.0.0/16"))
    address = {4: "10.9.0.77", 6: "fd00:1::77"}[family]
    chosen = {"address" if family == 4 else "address6": address}
    peer = await veth(networks, B, "lan")

    def known(netns: str, interface: str) -> str:
        words = ("ip", "-o", "neigh", "show", "to", address, "dev", interface)
        return inside(netns, lambda: subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    bridge = next(network.bridge for network in networks.list() if network.name == "lan")
    for instance_id, mac in ((A, "02:00:00:00:00:0a"), (C, "02:00:00:00:00:0c")):
        served = await veth(networks, instance_id, "lan", mac=mac, **chosen)
        assert known(HERE, bridge) == ""
        if instance_id == C:  # it was told, and had an entry to change
            await until(lambda mac=mac: mac in known(peer.netns, peer.interface))  # type: ignore[misc]
        with listen(served.netns, 80) as server:
            await client_seen(server, HERE, address, 80)
            await client_seen(server, peer.netns, address, 80)
        assert mac in known(HERE, bridge)
        assert mac in known(peer.netns, peer.interface)
        await networks.disconnect(instance_id)


async def test_the_default_bridge_has_ipv6_where_the_daemon_is_told_so(wire: Host) -> None:
    store = wire.store()
    before = wire.networks(store)
    await before.start()
    old = await veth(before, A, "bridge")
    assert (old.address6, before.find("bridge").ipv6) == ("", False)
    await crash(before, store)
    store = wire.store()
    networks = wire.networks(store, ipv6=AddressRange())
    await networks.start()
    await networks.recover({A})
    chosen = networks.find("bridge").carried6
    assert chosen is not None
    assert chosen.subnet.startswith("fd")
    new, tap = await veth(networks, B, "bridge"), await networks.connect(C, "bridge", LinkKind.TAP)
    for endpoint in (new, tap):
        assert ipaddress.ip_address(endpoint.address6) in ipaddress.ip_network(chosen.subnet)
        assert endpoint.gateway6 == chosen.gateway
    assert f"default via {chosen.gateway}" in shown(new.netns, "-6", "route")
    await networks.publish(B, [PortBinding(container_port=80, host_port=8080)])
    with listen(new.netns, 80) as server:
        assert await client_seen(server, wire.outside, HOST6, 8080) == OUTSIDE6
    with listen(wire.outside, 80) as server:
        assert await client_seen(server, new.netns, OUTSIDE6, 80) == HOST6
    await crash(networks, store)
    store = wire.store()
    networks = wire.networks(store, ipv6=AddressRange())
    await networks.start()
    assert networks.find("bridge").carried6 == chosen  # the same again
    await networks.recover(set())
    await networks.stop()
    networks = wire.networks(store, ipv6=AddressRange(subnet="fd00:7::/124"))
    await networks.start()
    assert (await veth(networks, A, "bridge")).address6.startswith("fd00:7::")
    await networks.disconnect(A)
    await networks.stop()
    store.close()
