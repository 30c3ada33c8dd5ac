"""What a network becomes, and what is refused in Docker's words."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from insula.errors import (
    Conflict,
    Forbidden,
    InsulaError,
    InvalidRequest,
    NotFound,
    Unavailable,
    UnsupportedField,
)
from insula.model.network import AddressRange, Network, NetworkRequest
from insula.network.catalog import find_network, reference
from insula.network.definition import define_network

DEFAULT = Network(id="d" * 64, name="bridge", driver="bridge", bridge="insula0", subnet="172.29.0.0/16")
NETWORK = ipaddress.ip_network


def define(*routes: str, existing: tuple[Network, ...] = (DEFAULT,), **fields: Any) -> Network:
    request = NetworkRequest(**{"name": "net", **fields})
    return define_network(
        request, existing, [NETWORK(route) for route in routes], links=("eth0", "lo"), host_key="h"
    )


def test_a_free_subnet_is_chosen_with_its_first_address_as_the_gateway() -> None:
    made = define()
    assert (made.subnet, made.gateway, made.chosen_subnet) == ("172.17.0.0/16", "172.17.0.1", False)
    assert made.bridge == f"br-{made.id[:12]}"
    assert (made.mtu, made.icc, made.masquerade, made.host_ip) == (1500, True, True, "")


def test_the_hosts_routes_and_other_networks_are_avoided() -> None:
    first = define("172.17.0.0/24")
    assert first.subnet == "172.18.0.0/16"
    assert define("172.17.0.0/24", existing=(DEFAULT, first), name="second").subnet == "172.19.0.0/16"
    # a VPN that routes all of it here
    assert define("172.16.0.0/12").subnet == "192.168.0.0/20"
    with pytest.raises(InvalidRequest, match="all predefined address pools have been fully subnetted"):
        define("172.16.0.0/12", "192.168.0.0/16")


def test_what_is_given_is_kept() -> None:
    made = define(
        subnet="10.1.0.0/16",
        ip_range="10.1.4.0/24",
        aux_addresses={"a": "10.1.4.1"},
        options={
            "com.docker.network.bridge.name": "lan0",
            "com.docker.network.bridge.enable_icc": "0",
            "com.docker.network.bridge.enable_ip_masquerade": "f",
            "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
            "com.docker.network.driver.mtu": "9000",
        },
    )
    # as libnetwork: from the range, and not what is kept for others
    assert (made.gateway, made.ip_range, made.chosen_subnet) == ("10.1.4.2", "10.1.4.0/24", True)
    assert (made.bridge, made.icc, made.masquerade) == ("lan0", False, False)
    assert (made.host_ip, made.mtu) == ("127.0.0.1", 9000)
    # a wider route of the host's is no reason to refuse what somebody has chosen
    assert define("10.0.0.0/8", subnet="10.1.0.0/16", gateway="10.1.0.9").gateway == "10.1.0.9"


def test_on_a_parent_the_subnet_is_the_wires_own() -> None:
    options = {
        "parent": "eth0",
        "macvlan_mode": "vepa",
        "com.docker.network.driver.mtu": "1400",
        "odd": "kept",
    }
    made = define("192.0.2.0/24", driver="macvlan", subnet="192.0.2.0/24", options=options)
    assert (made.driver, made.bridge, made.parent, made.mode) == ("macvlan", "", "eth0", "vepa")
    assert (made.gateway, made.mtu, made.options) == ("192.0.2.1", 1400, options)
    # one that nobody named keeps clear of what the host uses, as ever
    assert define("172.17.0.0/24", driver="ipvlan").subnet == "172.18.0.0/16"


def test_networks_share_a_parent_unless_the_kernel_could_not() -> None:
    def on(name: str, driver: str, subnet: str, *existing: Network, **options: str) -> Network:
        options = {"parent": "eth0", **options}
        return define(name=name, driver=driver, subnet=subnet, options=options, existing=existing)

    first = on("a", "macvlan", "10.1.0.0/16")
    assert on("b", "macvlan", "10.2.0.0/16", first, macvlan_mode="private").parent == "eth0"
    with pytest.raises(Conflict, match="network a is already using parent interface eth0"):
        on("b", "macvlan", "10.2.0.0/16", first, macvlan_mode="passthru")
    routed = on(
        "c", "ipvlan", "10.3.0.0/16", first, ipvlan_mode="l3"
    )  # whether both are used at a time is seen then
    assert on("d", "ipvlan", "10.4.0.0/16", routed, ipvlan_mode="l3").mode == "l3"
    with pytest.raises(
        Conflict, match=r"network c is already using parent interface eth0 in mode l3 \(bridge\)"
    ):
        on("d", "ipvlan", "10.4.0.0/16", routed)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"name": "  "}, InvalidRequest, "name is empty"),
        ({"name": "a\x1fb"}, InvalidRequest, "invalid network name"),
        ({"name": "a" * 256}, InvalidRequest, "invalid network name"),
        ({"name": "default"}, Forbidden, "operation is not permitted on predefined default network"),
        ({"name": "none"}, Forbidden, "operation is not permitted on predefined none network"),
        ({"driver": "null"}, Forbidden, 'only one instance of "null" network is allowed'),
        ({"driver": "overlay"}, Unavailable, "needs a swarm"),
        (
            {"driver": "macvlan", "options": {"parent": "lo"}},
            InvalidRequest,
            "loopback interface is not a valid",
        ),
        ({"driver": "ipvlan", "options": {"parent": "a" * 16}}, InvalidRequest, "is not a link name"),
        (
            {"driver": "macvlan", "options": {"macvlan_mode": "l2"}},
            InvalidRequest,
            "macvlan mode 'l2' is not valid",
        ),
        (
            {"driver": "ipvlan", "options": {"ipvlan_mode": "vepa"}},
            InvalidRequest,
            "ipvlan mode 'vepa' is not",
        ),
        (
            {"driver": "ipvlan", "options": {"ipvlan_flag": "l2"}},
            InvalidRequest,
            "ipvlan flag 'l2' is not valid",
        ),
        ({"driver": "macvlan", "options": {"ipvlan_mode": "l2"}}, UnsupportedField, "Options.ipvlan_mode"),
        ({"driver": "ipvlan", "options": {"macvlan_mode": "vepa"}}, UnsupportedField, "Options.macvlan_mode"),
        ({"options": {"parent": "eth0"}}, UnsupportedField, "Options.parent: no option of the bridge driver"),
        (
            {"driver": "macvlan", "options": {"com.docker.network.bridge.name": "b"}},
            UnsupportedField,
            "no option of the macvlan driver",
        ),
        ({"driver": "macvlan", "subnet": "172.29.0.0/24"}, Forbidden, "Pool overlaps with other one"),
        ({"driver": "weave"}, NotFound, "could not find plugin weave"),
        ({"subnet": "10.0.0.0"}, InvalidRequest, "invalid CIDR"),
        ({"subnet": "10.0.0.0/31"}, InvalidRequest, "smaller than /30"),
        ({"subnet": "fd00::/64"}, InvalidRequest, "is not an IPv4 network"),
        ({"subnet": "172.0.0.0/8"}, Forbidden, "Pool overlaps with other one on this address space"),
        ({"subnet": "10.0.0.0/8", "gateway": "11.0.0.1"}, InvalidRequest, "doesn't contain this address"),
        ({"subnet": "10.0.0.0/8", "gateway": "10.0.0.0"}, InvalidRequest, "first or the last address"),
        ({"subnet": "10.0.0.0/8", "ip_range": "11.0.0.0/9"}, InvalidRequest, "invalid ip-range 11.0.0.0/9"),
        ({"gateway": "10.0.0.1"}, InvalidRequest, "needs a subnet"),
        (
            {"subnet": "10.0.0.0/8", "gateway": "10.0.0.9", "aux_addresses": {"x": "10.0.0.9"}},
            Forbidden,
            "Address already in use",
        ),
        ({"options": {"com.docker.network.driver.mtu": "67"}}, InvalidRequest, "invalid MTU"),
        ({"options": {"com.docker.network.bridge.enable_icc": "yes"}}, InvalidRequest, "true or false"),
        ({"options": {"com.docker.network.bridge.name": "a b"}}, InvalidRequest, "is not a link name"),
        ({"options": {"com.docker.network.bridge.name": "eth0"}}, Forbidden, "already has a link eth0"),
        ({"options": {"com.docker.network.bridge.name": "insula0"}}, Conflict, "in use by network bridge"),
        ({"ipv6": True, "range6": AddressRange(subnet="fd00::/127")}, InvalidRequest, "smaller than /126"),
        ({"ipv6": True, "range6": AddressRange(subnet="ff02::/64")}, InvalidRequest, "of this kind"),
        ({"ipv6": True, "range6": AddressRange(gateway="fd00::1")}, InvalidRequest, "needs a subnet"),
        (
            {"ipv6": True, "range6": AddressRange(subnet="fd00::/64", gateway="fd00::")},
            InvalidRequest,
            "first or the last",
        ),
        (
            {"ipv6": True, "options": {"com.docker.network.driver.mtu": "1279"}},
            InvalidRequest,
            "at least 1280",
        ),
        ({"options": {"com.docker.network.bridge.odd": ""}}, UnsupportedField, "bridge.odd"),
    ],
)
def test_refusals(fields: dict[str, Any], error: type[InsulaError], words: str) -> None:
    with pytest.raises(error) as caught:
        define(**fields)
    assert words in caught.value.message


def test_names_are_unique_unless_asked_otherwise() -> None:
    first = define()
    with pytest.raises(Conflict, match="network with name net already exists"):
        define(existing=(first,))
    assert define(existing=(first,), unique=False).name == "net"
    with pytest.raises(Forbidden, match="predefined bridge network"):
        define(name="bridge", unique=False)


def test_what_several_are_called_is_ambiguous_and_their_ids_are_not() -> None:
    one, two = define(), define(unique=False, subnet="10.9.0.0/16")
    catalog = {network.id: network for network in (DEFAULT, one, two)}
    with pytest.raises(InvalidRequest, match=r"network net is ambiguous \(2 matches found on name\)"):
        find_network(catalog, "net")
    assert [one, two] == [find_network(catalog, each.id[:12]) for each in (one, two)]
    assert [one.id, two.id, "bridge"] == [reference(catalog, each) for each in (one, two, DEFAULT)]


def test_of_an_address_the_network_it_is_in_is_meant() -> None:
    made = define(
        subnet="10.0.0.5/8",
        ip_range="10.1.2.3/16",
        ipv6=True,
        range6=AddressRange(subnet="2001:389::1/64", ip_range="2001:389::/96", gateway="2001:389::ffff"),
    )
    assert (made.subnet, made.ip_range, made.gateway) == ("10.0.0.0/8", "10.1.0.0/16", "10.1.0.1")
    assert made.range6 is not None
    assert (made.range6.subnet, made.range6.gateway) == ("2001:389::/64", "2001:389::ffff")


def test_a_subnet_that_the_host_routes_elsewhere_is_refused() -> None:
    with pytest.raises(Forbidden, match=r"there is a route to 10\.1\.2\.0/24"):
        define("10.1.2.0/24", subnet="10.1.0.0/16")


def test_an_ipv6_subnet_is_chosen_from_the_hosts_own_prefix() -> None:
    first = define(ipv6=True)
    assert first.carried6 is not None
    prefix = ipaddress.IPv6Network(first.carried6.subnet)
    assert (prefix.prefixlen, prefix.subnet_of(ipaddress.IPv6Network("fd00::/8"))) == (64, True)
    assert first.carried6.gateway == str(prefix.network_address + 1)
    second = define(existing=(DEFAULT, first), name="second", ipv6=True).carried6
    assert second is not None
    other = ipaddress.IPv6Network(second.subnet)
    assert other.network_address == prefix.network_address + (1 << 64)
    third = define(str(other), existing=(DEFAULT, first), name="third", ipv6=True).carried6
    assert third is not None
    assert ipaddress.IPv6Network(third.subnet).network_address == prefix.network_address + (2 << 64)


def test_two_hosts_choose_different_prefixes() -> None:
    requests = [define_network(NetworkRequest(name="x", ipv6=True), (), (), host_key=key) for key in "ab"]
    first, second = (made.carried6.subnet for made in requests if made.carried6 is not None)
    assert first != second


def test_a_chosen_ipv6_subnet_does_not_overlap_and_has_what_is_given() -> None:
    asked = AddressRange(subnet="fd00:7::/64", ip_range="fd00:7::100/120", aux_addresses={"a": "fd00:7::101"})
    made = define(ipv6=True, range6=asked)
    assert made.carried6 == AddressRange(
        subnet="fd00:7::/64",
        gateway="fd00:7::102",
        ip_range="fd00:7::100/120",
        aux_addresses={"a": "fd00:7::101"},
        chosen_subnet=True,
    )
    with pytest.raises(Forbidden, match="Pool overlaps"):
        define(existing=(DEFAULT, made), name="again", ipv6=True, range6=AddressRange(subnet="fd00:7::/80"))
    with pytest.raises(Forbidden, match="is in use on this host"):
        define("fd00:8::/64", ipv6=True, range6=AddressRange(subnet="fd00:8::/64"))


def test_an_ipv6_subnet_without_ipv6_is_only_kept() -> None:
    """As Docker does, and docker-py's own tests take for granted."""
    made = define("fd00:8::/64", range6=AddressRange(subnet="fd00:8::/64"))
    assert made.range6 == AddressRange(subnet="fd00:8::/64", gateway="fd00:8::1", chosen_subnet=True)
    assert made.carried6 is None
