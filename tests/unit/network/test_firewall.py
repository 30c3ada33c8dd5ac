"""The rule set as text, and a published port as the kernel's element."""

from __future__ import annotations

from insula.model.network import PortBinding
from insula.network.firewall import Zone, make_elements, make_ruleset, table_name

ZONE = Zone(bridge="insula0", subnet="172.29.0.0/16", gateway="172.29.0.1")


def test_the_table_is_named_after_the_bridge() -> None:
    assert table_name("insula0") == "insula0"
    assert table_name("br-lan.5") == "insula_br_lan_5"


def test_an_element_is_what_nft_itself_sends() -> None:
    """As `nft --debug=netlink add element` shows it: words of four bytes, ports in network order."""
    at_loopback = PortBinding(container_port=80, host_port=8080, host_ip="127.0.0.1")
    (element,) = make_elements("172.29.0.2", at_loopback)
    assert element.map == "published_at"
    assert element.key == bytes.fromhex("7f000001 06000000 1f900000")
    assert element.value == bytes.fromhex("ac1d0002 00500000")
    (anywhere,) = make_elements("172.29.0.2", PortBinding(container_port=53, host_port=53, protocol="udp"))
    assert anywhere.map == "published"
    assert anywhere.key == bytes.fromhex("11000000 00350000")


def test_the_rule_set_replaces_the_table_and_carries_what_is_published() -> None:
    text = make_ruleset(
        "insula0",
        [ZONE],
        [
            ("172.29.0.2", PortBinding(container_port=80, host_port=8080)),
            ("172.29.0.2", PortBinding(container_port=80, host_port=81, protocol="sctp")),
            ("172.29.0.3", PortBinding(container_port=53, host_port=53, protocol="udp", host_ip="10.0.0.1")),
        ],
    )
    assert text.startswith("add table inet insula0\ndelete table inet insula0\ntable inet insula0 {")
    assert "elements = { 10.0.0.1 . udp . 53 : 172.29.0.3 . 53 }" in text
    assert "elements = { tcp . 8080 : 172.29.0.2 . 80, 132 . 81 : 172.29.0.2 . 80 }" in text
    assert 'oifname "insula0" drop' in text
    assert "elements" not in make_ruleset("insula0", [ZONE])


def test_a_network_of_its_own_has_names_and_an_internal_one_no_way_out() -> None:
    lan = Zone(bridge="br-1", subnet="10.1.0.0/24", gateway="10.1.0.1", resolver=5300, icc=False)
    island = Zone(bridge="br-2", subnet="10.2.0.0/24", gateway="10.2.0.1", internal=True, resolver=5301)
    quiet = Zone(bridge="br-3", subnet="10.3.0.0/24", gateway="10.3.0.1", masquerade=False)
    rules = make_ruleset("insula0", [ZONE, lan, island, quiet]).splitlines()
    lines = [line.strip() for line in rules]
    names = 'iifname "br-1" ip daddr 10.1.0.1 meta l4proto { tcp, udp } th dport 53 dnat ip to 10.1.0.1:5300'
    assert lines.index(names) < next(
        n for n, line in enumerate(lines) if line.startswith("dnat ip to ip daddr")
    )
    assert 'oifname "insula0" iifname "insula0" accept' in lines
    assert 'oifname "br-1" iifname "br-1" accept' not in lines
    masqueraded = [line.split()[5] for line in lines if line.startswith("oifname !=") and "saddr" in line]
    assert masqueraded == ["172.29.0.0/16", "10.1.0.0/24"]
    forward = lines[lines.index("chain forward {") :]
    island_rules = [n for n, line in enumerate(forward) if "leads nowhere" in line]
    assert len(island_rules) == 2
    assert max(island_rules) < next(n for n, line in enumerate(forward) if line.endswith("accept"))


def test_ports_of_ipv6_are_led_where_the_kernel_can_and_else_relayed() -> None:
    """As `nft --debug=netlink` shows them; none of ::1 alone, which nobody else reaches."""
    anywhere = PortBinding(container_port=80, host_port=8080, host_ip="::")
    relayed, led = make_elements("fd00::2", anywhere)
    assert (relayed.map, relayed.key, relayed.value) == ("relayed", bytes.fromhex("06000000 1f900000"), b"")
    assert (led.map, led.key) == ("published6", relayed.key)
    assert led.value == bytes.fromhex("fd00 0000 0000 0000 0000 0000 0000 0002 00500000")
    assert [element.map for element in make_elements("172.29.0.2", anywhere)] == ["relayed"]
    at = PortBinding(container_port=80, host_port=8080, host_ip="2001:db8::1")
    assert [element.map for element in make_elements("fd00::2", at)] == ["relayed_at", "published6_at"]
    assert make_elements("fd00::2", PortBinding(container_port=80, host_port=8080, host_ip="::1")) == ()
    text = make_ruleset("insula0", [ZONE], [("fd00::2", at), ("172.29.0.2", anywhere)])
    assert "elements = { 2001:db8::1 . tcp . 8080 : fd00::2 . 80 }" in text
    assert "elements = { tcp . 8080 }" in text


def test_a_zone_of_both_families_is_masqueraded_in_both_and_an_island_relays_nothing() -> None:
    dual = Zone(bridge="br-1", subnet="10.1.0.0/24", gateway="10.1.0.1", subnet6="fd00:1::/64")
    island = Zone(
        bridge="br-2", subnet="10.2.0.0/24", gateway="10.2.0.1", subnet6="fd00:2::/64", internal=True
    )
    text = make_ruleset("insula0", [dual, island])
    assert 'oifname != "br-1" ip6 saddr fd00:1::/64 masquerade' in text
    assert 'oifname != "br-2" ip6 saddr' not in text
    assert 'iifname "br-2" meta nfproto ipv6 meta l4proto . th dport @relayed drop' in text
    assert 'iifname "br-1" meta nfproto' not in text
