"""hosts and resolv.conf come out as Docker's."""

from __future__ import annotations

import pytest

from insula.errors import InvalidRequest
from insula.network.names import (
    finalize_hosts,
    finalize_resolv_conf,
    finalize_stub_resolv_conf,
    parse_servers,
)

DEFAULTS = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "ff00::0\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


def test_hosts_has_the_defaults_then_extra_hosts_then_the_own_name() -> None:
    text = finalize_hosts("web", ["172.29.0.2"], ["db:10.0.0.1", "h:host-gateway"], host_gateway="172.29.0.1")
    assert text == DEFAULTS + "10.0.0.1\tdb\n172.29.0.1\th\n172.29.0.2\tweb\n"


def test_a_domain_gives_the_full_and_the_short_name() -> None:
    expected = DEFAULTS + "172.29.0.2\tweb.example.org web\n"
    assert finalize_hosts("web", ["172.29.0.2"], domainname="example.org") == expected
    assert finalize_hosts("web.example.org", ["172.29.0.2"]) == expected


def test_without_a_network_there_is_no_own_line() -> None:
    assert finalize_hosts("web", []) == DEFAULTS


@pytest.mark.parametrize("entry", ["v6:2001:db8::1", "v6:[2001:db8::1]", "v6=2001:db8::1"])
def test_extra_hosts_with_ipv6(entry: str) -> None:
    assert finalize_hosts("w", [], [entry]).endswith("2001:db8::1\tv6\n")


@pytest.mark.parametrize("entry", ["name", "name:", ":1.2.3.4", "name:nonsense", "name:host-gateway"])
def test_bad_extra_hosts_are_refused(entry: str) -> None:
    with pytest.raises(InvalidRequest):
        finalize_hosts("w", [], [entry])


def test_resolv_conf_is_the_hosts_without_what_cannot_be_reached() -> None:
    host = "# made by dhcp\nnameserver 127.0.0.1\nnameserver 10.0.0.53\n"
    host += "nameserver fe80::1%eth0\nnameserver ::1\n"
    host += "domain old.example\nsearch a.example b.example ; c\noptions edns0 trust-ad\n"
    assert finalize_resolv_conf(host) == (
        "nameserver 10.0.0.53\nsearch a.example b.example\noptions edns0 trust-ad\n"
    )


def test_with_only_loopback_servers_the_public_default_is_used() -> None:
    assert finalize_resolv_conf("nameserver 127.0.0.53\n") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
    assert finalize_resolv_conf("") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_what_is_given_replaces_the_hosts_kind_by_kind() -> None:
    host = "nameserver 10.0.0.53\nsearch a.example\noptions edns0\n"
    assert finalize_resolv_conf(host, ["127.0.0.1", "2001:db8::53"]) == (
        "nameserver 127.0.0.1\nnameserver 2001:db8::53\nsearch a.example\noptions edns0\n"
    )
    assert finalize_resolv_conf(host, [], ["."], ["ndots:2"]) == "nameserver 10.0.0.53\noptions ndots:2\n"


def test_on_a_network_of_ones_own_the_gateway_answers() -> None:
    host = "nameserver 127.0.0.53\nsearch a.example\noptions edns0\n"
    assert finalize_stub_resolv_conf(host, "10.0.0.1") == (
        "nameserver 10.0.0.1\nsearch a.example\noptions edns0 ndots:0\n"
    )
    assert finalize_stub_resolv_conf(host, "10.0.0.1", ["."], ["ndots:2"]) == (
        "nameserver 10.0.0.1\noptions ndots:2\n"
    )


def test_the_resolver_asks_on_the_hosts_loopback_too() -> None:
    assert parse_servers("nameserver 127.0.0.53\nnameserver ::1\nnameserver x\n") == ("127.0.0.53", "::1")
    assert parse_servers("") == ("8.8.8.8", "8.8.4.4")
