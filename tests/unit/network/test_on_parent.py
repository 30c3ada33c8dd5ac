"""Requests for links on a parent, as the kernel's headers have them; and who may be there."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from insula.errors import InsulaError, InvalidRequest, UnsupportedField
from insula.model.network import Endpoint, LinkKind, Network, PortBinding, Wanted
from insula.network.joining import check_place, mac_on, name_neighbours, resolver_on
from insula.network.parents import parse_vlan
from insula.network.segments import Member, Ways
from insula.network.stubs import make_rules
from insula.system import links, sublinks
from insula.system.netlink import Message, attributes


def parts(message: Message) -> tuple[dict[int, bytes], str, dict[int, bytes]]:
    """(attributes, kind, details)."""
    found = attributes(message.body[16:])
    info = attributes(found.pop(links.IFLA_LINKINFO))
    details = attributes(info.get(links.IFLA_INFO_DATA, b""))
    return found, info[links.IFLA_INFO_KIND].rstrip(b"\0").decode(), details


def word(value: int) -> bytes:
    return struct.pack("=I", value)


def short(value: int) -> bytes:
    return struct.pack("=H", value) + b""


@pytest.mark.parametrize(("mode", "number"), [("private", 1), ("vepa", 2), ("bridge", 4), ("passthru", 8)])
def test_a_macvlan_is_made_in_its_namespace_with_its_mac(mode: str, number: int) -> None:
    message = sublinks.macvlan_message("eth0", 7, mode=mode, mac="02:42:c0:00:02:02", netns_fd=9)
    found, kind, details = parts(message)
    assert found == {3: b"eth0\0", 5: word(7), 1: bytes.fromhex("0242c0000202"), 28: word(9)}
    assert (kind, details) == ("macvlan", {1: word(number)})


def test_a_macvtap_is_made_here() -> None:
    found, kind, _ = parts(
        sublinks.macvlan_message("iv0", 7, mode="bridge", mac="02:00:00:00:00:01", mtu=1400, tap=True)
    )
    assert (kind, found[4], 28 in found) == ("macvtap", word(1400), False)


def test_ipvlan_has_a_mode_and_a_flag_and_no_mac() -> None:
    found, kind, details = parts(sublinks.ipvlan_message("eth0", 7, mode="l3s", flag="vepa", netns_fd=9))
    assert (kind, details, 1 in found) == ("ipvlan", {1: short(2), 2: short(2)}, False)


def test_what_we_make_as_a_parent_says_so() -> None:
    made, alias, up = sublinks.vlan_messages("eth0.10", 3, 10, alias="insula insula0")
    found, kind, details = parts(made)
    assert (kind, details, found[5]) == ("vlan", {1: short(10)}, word(3))
    assert attributes(alias.body[16:])[20] == b"insula insula0\0"
    assert struct.unpack_from("=BxHiII", up.body)[3] == links.IFF_UP
    made, *_ = sublinks.dummy_messages("dm-0", alias="x")
    assert parts(made)[1:] == ("dummy", {})


def test_sub_interfaces_are_a_link_and_a_number() -> None:
    assert parse_vlan("eth0") is None
    assert parse_vlan("eth0.10") == ("eth0", 10)
    for name, words in (
        ("eth0.1.2", "required interface name format"),
        (".5", "required interface name format"),
        ("eth0.x", "unable to parse a valid vlan id"),
        ("eth0.", "unable to parse a valid vlan id"),
        ("eth0.0", "must be between 1-4094, received: 0"),
        ("eth0.4095", "received: 4095"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            parse_vlan(name)


def network(driver: str, **options: str) -> Network:
    return Network(id="e" * 64, name="lan", driver=driver, options=options)


def test_a_network_knows_its_parent_and_mode() -> None:
    plain, named = network("macvlan"), network("ipvlan", parent="eth0", ipvlan_mode="l3")
    assert (plain.parent, plain.mode, plain.flag, plain.leads_out) == ("dm-" + "e" * 12, "bridge", "", False)
    assert (named.parent, named.mode, named.flag, named.leads_out) == ("eth0", "l3", "bridge", True)
    assert (network("bridge").parent, network("bridge").mode) == ("", "")
    assert len(plain.parent) == 15


@pytest.mark.parametrize(
    ("driver", "kind", "wanted", "error", "words"),
    [
        ("host", LinkKind.VETH, Wanted(), InvalidRequest, "nothing is connected to it"),
        ("ipvlan", LinkKind.TAP, Wanted(), InvalidRequest, "use a macvlan network"),
        ("ipvlan", LinkKind.VETH, Wanted(mac="02:00:00:00:00:01"), UnsupportedField, "custom mac"),
    ],
)
def test_who_cannot_be_there(
    driver: str, kind: LinkKind, wanted: Wanted, error: type[InsulaError], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_place(network(driver), kind, wanted)
    check_place(network("macvlan"), kind, wanted)


def test_names_and_macs_follow_the_driver() -> None:
    wanted = Wanted(mac="02:00:00:00:00:01")
    assert mac_on(network("macvlan"), Wanted(), "192.0.2.2") == "02:42:c0:00:02:02"
    assert mac_on(network("macvlan"), wanted, "192.0.2.2") == wanted.mac
    assert mac_on(network("ipvlan"), Wanted(), "192.0.2.2") == ""
    assert resolver_on(network("macvlan"), LinkKind.VETH) == "127.0.0.11"
    assert resolver_on(network("macvlan"), LinkKind.TAP) == ""


def test_the_questions_inside_go_to_our_port() -> None:
    rules = make_rules(4711)
    assert rules.count("dnat to 127.0.0.11:4711") == 2
    assert rules.index("delete table ip insula_names") < rules.index("table ip insula_names {")


def endpoint(name: str, driver: str, address: str) -> Endpoint:
    return Endpoint(
        network_id=name,
        network_name=name,
        kind=LinkKind.VETH,
        link="",
        interface="eth0",
        mac="",
        address=address,
        prefix_len=24,
        gateway="192.0.2.1",
        gateway6="fd00::1",
        address6="fd00::2",
        driver=driver,
        netns="/n",
    )


def test_who_has_nobody_to_ask_is_told_its_neighbours() -> None:
    def on(name: str, network: str, driver: str, address: str, **more: str) -> Endpoint:
        names = (name, f"{name}-alias")
        return dataclasses.replace(endpoint(network, driver, address), address6="", names=names, **more)  # type: ignore[arg-type]

    members = {
        "vm": Member(endpoints={"a": on("vm", "a", "macvlan", "192.0.2.2")}),
        "c": Member(endpoints={"a": on("c", "a", "macvlan", "192.0.2.3", resolver="127.0.0.11")}),
        "far": Member(endpoints={"b": on("far", "b", "macvlan", "192.0.2.4")}),
        "two": Member(
            endpoints={
                "a": on("two", "a", "macvlan", "192.0.2.5"),
                "x": on("two", "x", "bridge", "10.0.0.2", resolver="10.0.0.1"),
            }
        ),
    }
    lines = (("192.0.2.3", "c c-alias c.a"), ("192.0.2.5", "two two-alias two.a"))
    assert name_neighbours(members, "vm") == lines
    for other in ("c", "far", "two", "nobody"):
        assert name_neighbours(members, other) == ()


def test_ports_are_published_at_a_bridge_only() -> None:
    lan, bridge = endpoint("a", "macvlan", "192.0.2.2"), endpoint("b", "bridge", "10.0.0.2")
    binding = PortBinding(container_port=80, host_port=80)
    member = Member(endpoints={"a": lan, "b": bridge})
    assert member.gateway() is lan
    assert member.publisher() is None
    assert member.ways_out().publications([binding]) == ()
    assert Ways(bridge, lan).target(PortBinding(container_port=80, host_ip="::")) == "10.0.0.2"
    assert Member(endpoints={"b": bridge}).publisher() is bridge
    assert (member.stub, Member(endpoints={"b": bridge}).stub) == ("/n", "")
