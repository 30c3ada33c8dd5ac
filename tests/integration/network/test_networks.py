"""The network room against the kernel: addresses, reachability, published ports, taps, what is left."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from insula.errors import Failure, Forbidden, InvalidRequest
from insula.model.network import Endpoint, LinkKind, PortBinding, Wanted
from insula.network.networks import Networks
from insula.system import links
from insula.system.tap import open_tap

from .conftest import GATEWAY, HOST, OUTSIDE, Host, inside, make_socket

pytestmark = pytest.mark.integration

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
HERE = "/proc/thread-self/ns/net"


async def veth(networks: Networks, instance_id: str) -> Endpoint:
    return await networks.connect(instance_id, "bridge", LinkKind.VETH)


def both(binding: PortBinding) -> tuple[PortBinding, ...]:
    """What a binding becomes that names no address."""
    return tuple(dataclasses.replace(binding, host_ip=host_ip) for host_ip in ("0.0.0.0", "::"))


def run_each(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


def nft(*arguments: str) -> str:
    return subprocess.run(["nft", *arguments], capture_output=True, text=True, check=True).stdout


def serve(netns: int | str, port: int, address: str = "0.0.0.0") -> socket.socket:
    listener = make_socket(netns)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def source_seen(listener: socket.socket, netns: int | str, address: str, port: int) -> str:
    """Connect from a namespace, exchange a byte both ways; the client's address as the server sees it."""
    with make_socket(netns) as client:
        client.connect((address, port))
        connection, peer = listener.accept()
        with connection:
            client.sendall(b"x")
            assert connection.recv(1) == b"x"
            connection.sendall(b"y")
            assert client.recv(1) == b"y"
    return str(peer[0])


def refused(netns: int | str, address: str, port: int) -> bool:
    with make_socket(netns) as client:
        client.settimeout(0.3)
        try:
            client.connect((address, port))
        except OSError:
            return True
    return False


async def test_an_instance_gets_an_address_a_route_and_a_mac_from_it(networks: Networks, host: Host) -> None:
    endpoint = await veth(networks, A)
    assert endpoint.netns.startswith(f"{host.exec_root}/netns/")
    assert endpoint.gateway == GATEWAY
    raw = socket.inet_aton(endpoint.address)
    assert endpoint.mac == (b"\x02\x42" + raw).hex(":")
    shown = inside(
        endpoint.netns, lambda: subprocess.run(["ip", "-4", "a"], capture_output=True, text=True)
    ).stdout
    assert f"inet {endpoint.address}/16" in shown
    assert "LOOPBACK,UP" in shown
    route = inside(endpoint.netns, lambda: subprocess.run(["ip", "r"], capture_output=True, text=True)).stdout
    assert f"default via {GATEWAY} dev eth0" in route
    assert networks.endpoints(A) == (endpoint,)
    assert networks.members(endpoint.network_id) == {A: endpoint}


async def test_nobody_on_a_bridge_is_the_hosts_router(networks: Networks) -> None:
    """CVE-2020-13401: a bridge without IPv6 of ours has a link-local address all the same."""
    assert "0" == Path("/proc/sys/net/ipv6/conf/insulat0/accept_ra").read_text().strip()


async def test_instances_reach_each_other_and_the_host(networks: Networks) -> None:
    first, second = await veth(networks, A), await veth(networks, B)
    with serve(second.netns, 80) as listener:
        assert source_seen(listener, first.netns, second.address, 80) == first.address
        assert source_seen(listener, HERE, second.address, 80) == GATEWAY
    with serve(HERE, 81) as listener:
        assert source_seen(listener, first.netns, GATEWAY, 81) == first.address


async def test_the_way_out_is_masqueraded_and_the_way_in_is_closed(networks: Networks, host: Host) -> None:
    endpoint = await veth(networks, A)
    with serve(host.outside, 80) as listener:
        assert source_seen(listener, endpoint.netns, OUTSIDE, 80) == HOST
    with serve(endpoint.netns, 80):
        assert refused(host.outside, endpoint.address, 80)


async def test_a_published_port_is_reached_from_everywhere(networks: Networks, host: Host) -> None:
    server, other = await veth(networks, A), await veth(networks, B)
    asked = PortBinding(container_port=80, host_port=8080)
    assert await networks.publish(A, [asked]) == both(asked)
    with serve(server.netns, 80) as listener:
        assert source_seen(listener, HERE, "127.0.0.1", 8080) == GATEWAY
        assert source_seen(listener, HERE, HOST, 8080) in (GATEWAY, HOST)
        assert source_seen(listener, HERE, GATEWAY, 8080) == GATEWAY
        assert source_seen(listener, host.outside, HOST, 8080) == OUTSIDE
        assert source_seen(listener, other.netns, HOST, 8080) == GATEWAY
        assert source_seen(listener, other.netns, GATEWAY, 8080) == GATEWAY
        assert source_seen(listener, server.netns, HOST, 8080) == GATEWAY


async def test_udp_is_published_too(networks: Networks, host: Host) -> None:
    server = await veth(networks, A)
    await networks.publish(A, [PortBinding(container_port=53, host_port=5353, protocol="udp")])
    with make_socket(server.netns, socket.SOCK_DGRAM) as service:
        service.bind(("0.0.0.0", 53))
        for netns, address in ((HERE, "127.0.0.1"), (host.outside, HOST), (server.netns, HOST)):
            with make_socket(netns, socket.SOCK_DGRAM) as client:
                client.connect((address, 5353))
                client.send(b"q")
                question, peer = service.recvfrom(10)
                assert question == b"q"
                service.sendto(b"a", peer)
                assert client.recv(10) == b"a"


async def test_a_udp_client_that_never_stops_finds_the_new_server(networks: Networks, host: Host) -> None:
    """One socket, one source port, through: nobody, a first instance, a second one."""
    binding = PortBinding(container_port=53, host_port=5353, protocol="udp")
    with make_socket(host.outside, socket.SOCK_DGRAM) as client:
        client.connect((HOST, 5353))
        with make_socket(HERE, socket.SOCK_DGRAM) as before:
            before.bind(("0.0.0.0", 5353))
            client.send(b"0")
            assert before.recv(10) == b"0"
        for instance_id in (A, B):
            server = await veth(networks, instance_id)
            await networks.publish(instance_id, [binding])
            with make_socket(server.netns, socket.SOCK_DGRAM) as service:
                service.bind(("0.0.0.0", 53))
                client.send(b"q")
                assert service.recv(10) == b"q"
            await networks.disconnect(instance_id)


def sctp_init(source_port: int, port: int) -> bytes:
    """The first packet of an SCTP association: a chunk INIT with one stream each way (RFC 9260 §3.3.2)."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 1)
    head = struct.pack(">HHI", source_port, port, 0)
    crc = 0xFFFFFFFF
    for byte in head + bytes(4) + chunk:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk


async def test_sctp_is_published_without_sctp_on_this_host(networks: Networks, host: Host) -> None:
    """The kernel translates it; raw sockets stand for programs that speak it.  Also for the next instance."""
    binding = PortBinding(container_port=80, host_port=8080, protocol="sctp")
    with inside(
        host.outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    ) as raw:
        for instance_id in (A, B):
            server = await veth(networks, instance_id)
            assert both(binding) == await networks.publish(instance_id, [binding])
            with pytest.raises(Failure, match="port is already allocated"):
                await networks.publish(instance_id, [dataclasses.replace(binding, host_ip="127.0.0.1")])
            (picked, *_) = await networks.publish(instance_id, [dataclasses.replace(binding, host_port=0)])
            assert picked.host_port > 1023

            def make() -> socket.socket:
                made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
                made.settimeout(5)
                return made

            with inside(server.netns, make) as service:
                raw.sendto(sctp_init(5000, 8080), (HOST, 0))
                packet, (peer, _) = service.recvfrom(1000)
                assert (OUTSIDE, (5000, 80)) == (peer, struct.unpack(">HH", packet[20:24]))
            await networks.disconnect(instance_id)


async def test_a_port_at_loopback_is_for_the_host_alone(networks: Networks, host: Host) -> None:
    server, other = await veth(networks, A), await veth(networks, B)
    at_loopback = PortBinding(container_port=80, host_port=8080, host_ip="127.0.0.1")
    at_wire = PortBinding(container_port=80, host_port=8081, host_ip=HOST)
    await networks.publish(A, [at_loopback, at_wire])
    with serve(server.netns, 80) as listener:
        assert source_seen(listener, HERE, "127.0.0.1", 8080) == GATEWAY
        assert refused(host.outside, HOST, 8080)
        assert refused(HERE, HOST, 8080)
        assert source_seen(listener, host.outside, HOST, 8081) == OUTSIDE
        assert refused(HERE, "127.0.0.1", 8081)
        # route_localnet opens the host's loopback to nobody: not even to who routes 127.0.0.1 at the bridge
        inside(
            other.netns,
            lambda: subprocess.run(
                """
            ip link set lo down; ip addr flush dev lo; sysctl -qw net.ipv4.conf.eth0.route_localnet=1
            ip route add 127.0.0.0/8 via 172.29.0.1 dev eth0""",
                shell=True,
            ),
        )
        with serve(HERE, 9000, "127.0.0.1"):
            assert refused(other.netns, "127.0.0.1", 9000)
            assert refused(other.netns, "127.0.0.1", 8080)


async def test_a_taken_port_is_refused_in_dockers_words_and_nothing_is_left(networks: Networks) -> None:
    endpoint = await veth(networks, A)
    free, taken = (PortBinding(container_port=80, host_port=port) for port in (8080, 8081))
    with serve(HERE, 8081, "127.0.0.1"):
        with pytest.raises(Failure) as caught:
            await networks.publish(A, [free, taken], name="web")
    assert caught.value.message == (
        f"driver failed programming external connectivity on endpoint web ({endpoint.endpoint_id}): "
        "Bind for 0.0.0.0:8081 failed: port is already allocated"
    )
    assert networks.ports(A) == ()
    assert await networks.publish(A, [free, taken]) == (*both(free), *both(taken))
    await veth(networks, B)
    with pytest.raises(Failure, match="port is already allocated"):
        await networks.publish(B, [PortBinding(container_port=1, host_port=8080, host_ip="127.0.0.1")])
    with pytest.raises(OSError, match="in use"):
        serve(HERE, 8080)  # held against every other program of the host


async def test_a_host_port_is_picked_when_any_will_do(networks: Networks) -> None:
    endpoint = await veth(networks, A)
    asked = [PortBinding(container_port=80), PortBinding(container_port=53, protocol="udp")]
    tcp, tcp6, udp, udp6 = await networks.publish(A, asked)
    assert ((tcp, tcp6), (udp, udp6)) == (both(tcp), both(udp))
    assert tcp.host_port > 1023
    assert udp.host_port > 1023
    with serve(endpoint.netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", tcp.host_port)
    assert networks.ports(A) == (tcp, tcp6, udp, udp6)


async def test_what_is_disconnected_is_gone_and_its_port_free(networks: Networks, host: Host) -> None:
    endpoint = await veth(networks, A)
    binding = PortBinding(container_port=80, host_port=8080)
    await networks.publish(A, [binding])
    await networks.disconnect(A)
    await networks.disconnect(A)
    other = await veth(networks, A)
    assert other.address != endpoint.address
    assert await networks.publish(A, [binding]) == both(binding)
    with serve(other.netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
    await networks.disconnect(A)
    await networks.stop()
    assert host.links() == []
    assert os.listdir(host.exec_root) == []
    assert nft("list", "tables") == ""


async def test_a_tap_is_on_the_bridge_and_carries_frames(networks: Networks, host: Host) -> None:
    endpoint = await networks.connect(A, "bridge", LinkKind.TAP)
    assert endpoint.link == "ivaaaaaaaaaa"
    assert endpoint.netns == ""
    fd = open_tap(endpoint.link)
    try:
        mac = bytes.fromhex(endpoint.mac.replace(":", ""))
        ethernet = b"\xff" * 6 + mac + b"\x08\x06"
        arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(endpoint.address)
        arp += b"\0" * 6 + socket.inet_aton(GATEWAY)
        frame = b""
        while frame[12:14] != b"\x08\x06" or frame[20:22] != b"\0\x02":  # until it is an ARP answer
            # asked again and again: the bridge takes a moment to see that the port has a carrier
            os.write(fd, b"\0" * 10 + ethernet + arp)  # virtio-net header first
            if select.select([fd], [], [], 0.05)[0]:
                frame = os.read(fd, 2000)[10:]
        assert frame[28:32] == socket.inet_aton(GATEWAY)
        with pytest.raises(Failure, match="in use by another process"):
            open_tap(endpoint.link)
    finally:
        os.close(fd)
    await networks.disconnect(A)
    again = await networks.connect(A, "bridge", LinkKind.TAP)  # the old one is gone first
    assert again.link in host.links()
    await networks._plumbing.settled()  # who sees the old one off leaves alone what has its name now
    assert again.link in host.links()


async def test_no_network_is_a_namespace_with_loopback_only(networks: Networks) -> None:
    path = await networks.empty_namespace(A)
    with serve(path, 80) as listener:
        assert source_seen(listener, path, "127.0.0.1", 80) == "127.0.0.1"
    assert inside(path, lambda: [i[1] for i in socket.if_nameindex()]) == ["lo"]
    await networks.disconnect(A)
    assert not os.path.lexists(os.path.join(os.path.dirname(path), f"of-{A}"))


async def test_twenty_at_once_all_get_their_own(networks: Networks) -> None:
    endpoints = await asyncio.gather(*(veth(networks, f"{n:064}") for n in range(20)))
    assert len({e.address for e in endpoints}) == 20
    with serve(endpoints[19].netns, 80) as listener:
        assert source_seen(listener, endpoints[0].netns, endpoints[19].address, 80) == endpoints[0].address
    await asyncio.gather(*(networks.disconnect(f"{n:064}") for n in range(20)))


async def test_a_ready_slot_is_handed_out_in_no_time(networks: Networks) -> None:
    await veth(networks, A)
    began = time.perf_counter()
    await veth(networks, B)
    assert time.perf_counter() - began < 0.02  # some 0.5 ms; the bound is for a busy machine


async def test_refusals(networks: Networks) -> None:
    await veth(networks, A)
    with pytest.raises(Forbidden, match="already exists in network bridge"):
        await veth(networks, A)
    with pytest.raises(InvalidRequest, match="driver host"):
        await networks.connect(B, "host", LinkKind.VETH)
    with pytest.raises(InvalidRequest, match="dccp"):
        await networks.publish(A, [PortBinding(container_port=1, protocol="dccp")])
    with pytest.raises(InvalidRequest, match="invalid IP address"):
        await networks.publish(A, [PortBinding(container_port=1, host_ip="somewhere")])
    with pytest.raises(Failure, match="cannot assign requested address"):
        await networks.publish(A, [PortBinding(container_port=1, host_ip="192.0.2.1")])


async def test_a_mac_address_of_the_users_choice(networks: Networks) -> None:
    endpoint = await networks.connect(A, "default", LinkKind.VETH, wanted=Wanted(mac="02:11:22:33:44:55"))
    assert endpoint.mac == "02:11:22:33:44:55"

    def mac() -> str:
        with links.open_route() as route:
            found = links.find_link(route, "eth0")
            assert found is not None
            return found.mac

    assert inside(endpoint.netns, mac) == "02:11:22:33:44:55"


async def test_a_flushed_rule_set_is_written_again_with_the_next_port(networks: Networks) -> None:
    endpoint = await veth(networks, A)
    await networks.publish(A, [PortBinding(container_port=80, host_port=8080)])
    nft("flush", "ruleset")
    await networks.publish(A, [PortBinding(container_port=80, host_port=8081)])
    with serve(endpoint.netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
        source_seen(listener, HERE, "127.0.0.1", 8081)


async def test_other_tables_are_left_alone(networks: Networks) -> None:
    nft("add", "table", "inet", "theirs")
    await networks.stop()
    assert nft("list", "tables") == "table inet theirs\n"


async def test_a_firewall_that_drops_forwarded_traffic_is_named_with_the_remedy(host: Host) -> None:
    iptables = shutil.which("iptables-nft")
    if iptables is None:
        pytest.skip("no iptables here")
    run_each(
        f"{iptables} -P FORWARD DROP", f"{iptables} -N DOCKER-USER", f"{iptables} -A FORWARD -j DOCKER-USER"
    )
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    (warning,) = networks.warnings()
    await networks.stop()
    run_each(*warning.partition("allow it with: ")[2].replace("iptables", iptables).split("; "))
    again = host.networks(store)
    await again.start()
    assert again.warnings() == ()
    first, second = await veth(again, A), await veth(again, B)
    with serve(second.netns, 80) as listener:  # the remedy works
        source_seen(listener, first.netns, second.address, 80)
    with serve(host.outside, 80) as listener:
        source_seen(listener, first.netns, OUTSIDE, 80)
    await again.disconnect(A)
    await again.disconnect(B)
    await again.stop()
    store.close()


async def test_a_slot_made_for_somebody_who_went_away_is_taken_down(networks: Networks, host: Host) -> None:
    asking = asyncio.create_task(
        networks.connect(A, "bridge", LinkKind.VETH, wanted=Wanted(mac="02:11:22:33:44:55"))
    )
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert networks.endpoints(A) == ()
    await networks.stop()
    assert host.links() == []
