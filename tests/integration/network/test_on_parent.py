"""Networks on a link of the host's, against the kernel: macvlan and macvtap with a wire to a LAN of the
test's own; ipvlan, 802.1q and dummies where this kernel has them."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from insula.errors import Conflict, Failure, InvalidRequest, Unavailable
from insula.model.network import (
    AddressRange,
    Endpoint,
    LinkKind,
    Network,
    NetworkRequest,
    PortBinding,
    Wanted,
)
from insula.network.networks import Networks
from insula.network.stubs import ADDRESS as STUB
from insula.system import links
from insula.system.links import Link
from insula.system.netlink import Message, number
from insula.system.tap import open_link

from .conftest import HOST, Host, inside, make_socket
from .test_ipv6 import client_seen, listen
from .test_networks import HERE, A, B, C, nft, refused, run_each, serve, source_seen
from .test_recovery import crash
from .test_user_networks import asked, shown

pytestmark = pytest.mark.integration

ROUTER = "192.0.2.1"
SUBNET = "192.0.2.0/24"
_VNET_HEADER = bytes(10)


@dataclass
class Wire:
    """`parent` in the host; its other end is `router`, in a namespace, which has `ROUTER`."""

    parent: str
    router: int


@pytest.fixture
def wire(host: Host) -> Iterator[Wire]:
    run_each("ip link add lan0 type veth peer name lan1", "ip link set lan0 up")
    with links.open_route() as route:
        far = find("lan1")
        route.send(
            Message(
                links.RTM_NEWLINK,
                0,
                links.link_header(far.index) + number(links.IFLA_NET_NS_FD, host.outside),
            )
        )
    inside(host.outside, lambda: run_each(f"ip addr add {ROUTER}/24 dev lan1", "ip link set lan1 up"))
    yield Wire("lan0", host.outside)
    run_each("ip link del lan0")


def find(name: str) -> Link:
    with links.open_route() as route:
        found = links.find_link(route, name)
    assert found is not None
    return found


def request(
    name: str = "lan", driver: str = "macvlan", *, subnet: str = SUBNET, **options: str
) -> NetworkRequest:
    return NetworkRequest(
        name=name,
        driver=driver,
        subnet=subnet,
        gateway=subnet.replace(".0/24", ".1"),
        options={"parent": "lan0", **options},
    )


@pytest.fixture
async def lan(networks: Networks, wire: Wire) -> Network:
    return await networks.create(request())


async def join(
    networks: Networks, instance_id: str, network: str = "lan", *names: str, kind: LinkKind = LinkKind.VETH,
    **wanted: str,
) -> Endpoint:  # fmt: skip
    return await networks.connect(instance_id, network, kind, names=names, wanted=Wanted(**wanted))  # type: ignore[arg-type]


async def let_go(networks: Networks, *instances: str) -> None:
    for instance_id in instances:
        await networks.disconnect(instance_id)
    await networks._plumbing.settled()


async def test_containers_are_on_the_wire_and_beside_the_host(
    networks: Networks, lan: Network, wire: Wire
) -> None:
    one, two = (
        await join(networks, A, "lan", "one"),
        await join(networks, B, "lan", "two", mac="02:00:00:00:00:07"),
    )
    assert (one.driver, one.link, one.interface, one.gateway, one.mtu) == (
        "macvlan",
        "",
        "eth0",
        ROUTER,
        1500,
    )
    assert two.mac == "02:00:00:00:00:07"
    assert "02:00:00:00:00:07" in shown(two.netns, "link", "show", "eth0")
    assert f"default via {ROUTER} dev eth0" in shown(one.netns, "route")
    with serve(two.netns, 80) as listener:
        assert source_seen(listener, one.netns, two.address, 80) == one.address
        assert source_seen(listener, wire.router, two.address, 80) == ROUTER
        assert refused(HERE, two.address, 80)
    with serve(wire.router, 81) as listener:
        assert source_seen(listener, one.netns, ROUTER, 81) == one.address  # nothing is translated
    # a port that is published is not, as in Docker
    assert await networks.publish(A, [PortBinding(container_port=80, host_port=8080)]) == ()
    assert networks.ports(A) == ()
    await let_go(networks, A, B)
    await networks.remove("lan")
    assert find("lan0").alias == ""  # it is not ours


async def test_ipv6_is_carried_too(networks: Networks, wire: Wire) -> None:
    inside(wire.router, lambda: run_each("ip -6 addr add 2001:db8::1/64 dev lan1 nodad"))
    range6 = AddressRange(subnet="2001:db8::/64", gateway="2001:db8::1")
    await networks.create(dataclasses.replace(request(), ipv6=True, range6=range6))
    one, two = await join(networks, A, "lan", "one"), await join(networks, B, "lan", "two")
    assert "default via 2001:db8::1 dev eth0" in shown(one.netns, "-6", "route")
    with listen(two.netns, 80) as server:
        assert await client_seen(server, one.netns, two.address6, 80) == one.address6
        assert await client_seen(server, wire.router, two.address6, 80) == "2001:db8::1"
    await let_go(networks, A, B)


async def test_names_are_answered_inside_and_port_53_is_left_alone(networks: Networks, lan: Network) -> None:
    one, two = await join(networks, A, "lan", "one"), await join(networks, B, "lan", "two", "zwei")
    await networks.connect(B, "bridge", LinkKind.VETH)
    assert one.resolver == STUB
    with make_socket(one.netns, socket.SOCK_DGRAM) as own:
        own.bind(("0.0.0.0", 53))  # its own name server, as of those who block advertisements
        for tcp in (False, True):
            assert (0, [two.address]) == await asked(one.netns, STUB, "zwei", tcp=tcp)
    assert (0, [one.address]) == await asked(two.netns, STUB, "one.lan")
    await networks.leave(A, lan.id)
    assert (0, []) != await asked(two.netns, STUB, "one")
    assert "eth0" not in shown(one.netns, "link")
    again = await join(networks, A, "lan", "one", address=one.address)  # it is free at once
    assert (again.netns, again.mac) == (one.netns, one.mac)
    assert (0, [one.address]) == await asked(two.netns, STUB, "one")
    await let_go(networks, A, B)
    assert not os.path.lexists(one.netns)


async def test_a_virtual_machine_gets_a_macvtap(networks: Networks, lan: Network, wire: Wire) -> None:
    machine = await join(networks, A, "lan", "vm", kind=LinkKind.TAP)
    other = await join(networks, B, "lan", "container")
    found = find(machine.link)
    assert (found.kind, found.mac, found.up) == ("macvtap", machine.mac, True)
    assert "inet6" not in shown(HERE, "addr", "show", "dev", machine.link)
    assert (0, [machine.address]) == await asked(other.netns, STUB, "vm")
    fd = open_link(machine.link)
    try:
        for target in (ROUTER, other.address):
            assert arp(fd, machine, target) == target
    finally:
        os.close(fd)
    await let_go(networks, A, B)
    with links.open_route() as route:
        assert links.find_link(route, machine.link) is None


def arp(fd: int, machine: Endpoint, target: str) -> str:
    """Ask as a guest would, through its virtio-net; who answers."""
    mac = bytes.fromhex(machine.mac.replace(":", ""))
    addresses = socket.inet_aton(machine.address), bytes(6), socket.inet_aton(target)
    question = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + b"".join(addresses)
    os.write(fd, _VNET_HEADER + b"\xff" * 6 + mac + b"\x08\x06" + question)
    while select.select([fd], [], [], 10)[0]:
        frame = os.read(fd, 2000)[len(_VNET_HEADER) :]
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
            return socket.inet_ntoa(frame[28:32])
    raise AssertionError("nobody answers")


async def test_several_networks_share_a_parent_but_not_with_passthru(
    networks: Networks, lan: Network
) -> None:
    await networks.create(request("second", subnet="198.18.5.0/24"))
    with pytest.raises(Conflict, match="network lan is already using parent interface lan0"):
        await networks.create(request("third", subnet="198.18.6.0/24", macvlan_mode="passthru"))
    await networks.remove("second")
    await networks.remove("lan")
    await networks.create(request("alone", macvlan_mode="passthru"))
    before = find("lan0").mac
    first = await join(networks, A, "alone")
    assert first.mac in shown(first.netns, "link", "show", "eth0")
    with pytest.raises(Failure, match="a passthru link is alone on its parent"):
        await join(networks, B, "alone")
    assert networks.endpoints(B) == ()
    await let_go(networks, A)
    assert find("lan0").mac == before  # the kernel gives it back
    second = await join(networks, B, "alone", kind=LinkKind.TAP)
    assert find(second.link).mac == second.mac
    await let_go(networks, B)


async def test_what_cannot_be_is_said(networks: Networks, wire: Wire) -> None:
    with pytest.raises(Failure, match="parent interface nowhere0 was not found"):
        await networks.create(request(parent="nowhere0"))
    with pytest.raises(Failure, match="parent interface nowhere0 was not found"):
        await networks.create(request(parent="nowhere0.5"))
    with pytest.raises(InvalidRequest, match="vlan id must be between 1-4094, received: 4095"):
        await networks.create(request(parent="lan0.4095"))
    assert [network.name for network in networks.list()] == ["bridge", "host", "none"]
    await networks.create(request())
    run_each("ip link set lan0 master wire")
    with pytest.raises(Failure, match=r"lan0 is taken: .*bridge"):
        await join(networks, A)
    # kernels before 6.3 rename no link that is up
    run_each("ip link set lan0 nomaster", "ip link set lan0 down", "ip link set lan0 name lan9")
    with pytest.raises(Failure, match="parent interface lan0 was not found"):  # it went away meanwhile
        await join(networks, A)
    run_each("ip link set lan9 name lan0", "ip link set lan0 mtu 1400 up")
    assert (await join(networks, A)).mtu == 1400
    await let_go(networks, A)
    assert networks.endpoints(A) == ()


async def test_a_crash_leaves_nothing_but_what_runs(host: Host, wire: Wire) -> None:
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    await networks.create(request())
    one = await join(networks, A, "lan", "one")
    await join(networks, B, "lan", "two")
    machine = await join(networks, C, "lan", "three", kind=LinkKind.TAP)
    await crash(networks, store)
    run_each("ip link add iv0123456789 link lan0 type macvtap", "ip link set iv0123456789 alias somebody")
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    await networks.recover({A, C})
    await networks._plumbing.settled()
    assert [networks.endpoints(each) for each in (A, B, C)] == [(one,), (), (machine,)]
    assert find(machine.link).mac == machine.mac
    assert find("iv0123456789").kind == "macvtap"  # another daemon's
    assert (0, [machine.address]) == await asked(one.netns, STUB, "three")
    assert (0, []) != await asked(one.netns, STUB, "two")
    with make_socket(one.netns) as listener:  # the interface is the same
        listener.bind((one.address, 80))
        listener.listen()
        assert source_seen(listener, wire.router, one.address, 80) == ROUTER
    await let_go(networks, A, C)
    run_each("ip link del iv0123456789")
    await networks.remove("lan")
    await networks.stop()
    assert host.links() == ["lan0"]
    assert os.listdir(host.exec_root) == []
    store.close()


def have(kind: str) -> bool:
    """This kernel makes such links."""
    words = {"dummy": "", "vlan": "link wire", "ipvlan": "link wire"}[kind]
    command = f"ip link add {words} name probe0 type {kind} {'id 5' if kind == 'vlan' else ''}"
    if subprocess.run(command.split(), capture_output=True, check=False).returncode:
        return False
    run_each("ip link del probe0")
    return True


async def test_a_network_without_a_parent_is_an_island(networks: Networks, wire: Wire) -> None:
    plain = NetworkRequest(name="island", driver="macvlan", subnet="198.18.7.0/24")
    if not have("dummy"):
        with pytest.raises(Unavailable, match=r"no dummy links.*modprobe dummy"):
            await networks.create(plain)
        assert [network.name for network in networks.list()] == ["bridge", "host", "none"]
        return
    made = await networks.create(plain)
    assert find(f"dm-{made.id[:12]}").kind == "dummy"
    one, two = await join(networks, A, "island"), await join(networks, B, "island")
    assert (one.gateway, "default" in shown(one.netns, "route")) == ("", False)
    with serve(two.netns, 80) as listener:
        assert source_seen(listener, one.netns, two.address, 80) == one.address
    await let_go(networks, A, B)
    await networks.remove("island")
    with links.open_route() as route:
        assert links.find_link(route, f"dm-{made.id[:12]}") is None


async def test_a_sub_interface_goes_with_its_last_network_if_we_made_it(
    networks: Networks, wire: Wire
) -> None:
    if not have("vlan"):
        with pytest.raises(Unavailable, match=r"no vlan links.*modprobe 8021q"):
            await networks.create(request(parent="lan0.10"))
        return
    run_each("ip link add link lan0 name lan0.20 type vlan id 20")
    for n, parent in enumerate(("lan0.10", "lan0.10", "lan0.20")):
        await networks.create(request(f"n{n}", subnet=f"198.18.{n}.0/24", parent=parent))
    await networks.remove("n0")
    assert find("lan0.10").up
    run_each("ip link del lan0.10")
    assert (await join(networks, A, "n1")).mtu == 1500  # made again
    await let_go(networks, A)
    for name in ("n1", "n2"):
        await networks.remove(name)
    with links.open_route() as route:
        assert links.find_link(route, "lan0.10") is None
        assert links.find_link(route, "lan0.20") is not None


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
async def test_ipvlan_has_its_parents_mac(networks: Networks, wire: Wire, mode: str) -> None:
    made = await networks.create(request(driver="ipvlan", ipvlan_mode=mode))
    assert (made.mode, made.flag) == (mode, "bridge")
    if not have("ipvlan"):
        with pytest.raises(Unavailable, match=r"no ipvlan links.*modprobe ipvlan"):
            await join(networks, A)
        assert networks.endpoints(A) == ()
        await networks._plumbing.settled()
        return
    with pytest.raises(Conflict, match="already using parent interface lan0 in mode"):
        await networks.create(request("other", "ipvlan", subnet="198.18.5.0/24", ipvlan_flag="vepa"))
    one, two = await join(networks, A, "lan", "one"), await join(networks, B, "lan", "two")
    assert (one.mac, find("lan0").mac in shown(one.netns, "link", "show", "eth0")) == ("", True)
    with serve(two.netns, 80) as listener:
        assert source_seen(listener, one.netns, two.address, 80) == one.address
        if mode == "l2":
            assert source_seen(listener, wire.router, two.address, 80) == ROUTER
    assert (0, [two.address]) == await asked(one.netns, STUB, "two")
    with pytest.raises(InvalidRequest, match="custom mac address"):
        await join(networks, C, mac="02:00:00:00:00:07")
    with pytest.raises(InvalidRequest, match="use a macvlan network"):
        await join(networks, C, kind=LinkKind.TAP)
    await networks.create(request("macvlan", subnet="198.18.5.0/24"))
    with pytest.raises(Failure, match="lan0 is taken"):
        await join(networks, C, "macvlan")
    await let_go(networks, A, B)
    await join(networks, C, "macvlan")
    await let_go(networks, C)


async def test_a_named_bridge_and_ports_go_on_beside_it(networks: Networks, lan: Network, host: Host) -> None:
    """On both, the one whose name comes first leads out, as in Docker; ports are the bridge's."""
    both = await networks.connect(A, "bridge", LinkKind.VETH)
    binding = PortBinding(container_port=80, host_port=8080)
    await networks.publish(A, [binding])
    await join(networks, A)
    assert "default via 172.29.0.1 dev eth0" in shown(both.netns, "route")
    with serve(both.netns, 80) as listener:
        assert source_seen(listener, HERE, "127.0.0.1", 8080)
        assert source_seen(listener, host.outside, HOST, 8080)
    await networks.leave(A, networks.find("bridge").id)
    assert networks.ports(A) == ()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("0.0.0.0", 8080))
    assert "8080" not in nft("list", "table", "inet", "insulat0")
    assert f"default via {ROUTER} dev eth1" in shown(both.netns, "route")
    await let_go(networks, A)
