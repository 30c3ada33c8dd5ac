"""`--network` in both its forms, and subnets with what is of them."""

from __future__ import annotations

from typing import Any

import pytest

from insula.cli.endpoints import finalize_endpoints, parse_network
from insula.cli.networks import finalize_ipam
from insula.errors import InvalidRequest


def test_nothing_asked_is_the_default_and_no_endpoint() -> None:
    assert finalize_endpoints(()) == ("default", {})
    assert finalize_endpoints(("host",)) == ("host", {})


def test_flags_are_of_the_first_network() -> None:
    main, endpoints = finalize_endpoints(
        ("lan", "other"), aliases=("web",), links=("db:d",), ip="10.0.0.2", ip6="fd00::2", mac="02::"
    )
    assert main == "lan"
    assert list(endpoints) == ["lan", "other"]
    assert endpoints["other"] == {}
    assert endpoints["lan"] == {
        "Aliases": ["web"],
        "Links": ["db:d"],
        "IPAMConfig": {"IPv4Address": "10.0.0.2", "IPv6Address": "fd00::2"},
        "MacAddress": "02::",
    }


def test_the_long_form_has_all_of_it() -> None:
    text = (
        "name=lan,alias=a,alias=b,ip=10.0.0.2,ip6=fd00::2,link-local-ip=169.254.1.1,mac-address=02:42:0a:00:00:02,"
        '"driver-opt=a=b"'
    )
    assert parse_network(text) == (
        "lan",
        {
            "Aliases": ["a", "b"],
            "IPAMConfig": {
                "IPv4Address": "10.0.0.2",
                "IPv6Address": "fd00::2",
                "LinkLocalIPs": ["169.254.1.1"],
            },
            "MacAddress": "02:42:0a:00:00:02",
            "DriverOpts": {"a": "b"},
        },
    )


def test_a_flag_adds_to_the_long_form_but_does_not_contradict_it() -> None:
    _, endpoints = finalize_endpoints(("name=lan,ip=10.0.0.2",), ip6="fd00::2")
    assert endpoints["lan"]["IPAMConfig"] == {"IPv4Address": "10.0.0.2", "IPv6Address": "fd00::2"}
    with pytest.raises(InvalidRequest, match="both"):
        finalize_endpoints(("name=lan,ip=10.0.0.2",), ip="10.0.0.3")


def test_links_of_the_default_bridge_are_no_endpoints() -> None:
    assert finalize_endpoints(("bridge",), links=("db",)) == ("bridge", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alias=a", "has no name="),
        ("name=lan,colour=red", "is not understood"),
        ("name=lan,gw-priority=3", "is not understood"),
        ("name=lan,ip=", "is not understood"),
        ("name=lan,name=x", "given twice"),
    ],
)
def test_what_is_no_network(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_network(text)


def test_a_network_is_named_once() -> None:
    with pytest.raises(InvalidRequest, match="lan is named twice"):
        finalize_endpoints(("lan", "name=lan"))


def test_what_belongs_to_a_subnet_is_found_by_its_address() -> None:
    expected: list[dict[str, Any]] = [
        {"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.9", "AuxiliaryAddresses": {"a": "10.0.0.3"}},
        {"Subnet": "fd00::/64", "Gateway": "fd00::9", "IPRange": "fd00::8000/113"},
    ]
    found = finalize_ipam(
        ("10.0.0.0/24", "fd00::/64"), ("fd00::9", "10.0.0.9"), ("fd00::8000/113",), ("a=10.0.0.3",)
    )
    assert found == expected
    with pytest.raises(InvalidRequest, match=r"no --subnet has 10\.1\.0\.1"):
        finalize_ipam(("10.0.0.0/24",), ("10.1.0.1",), (), ())
    with pytest.raises(InvalidRequest, match="two of"):
        finalize_ipam(("10.0.0.0/24",), ("10.0.0.1", "10.0.0.2"), (), ())
