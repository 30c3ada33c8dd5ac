"""Messages of DNS, and who gets which answer."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.network import Endpoint, LinkKind
from insula.network import dns
from insula.network.directory import Directory


def query(name: str, kind: int = dns.A, *, number: int = 7, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".") if part)
    return struct.pack(">HHHHHH", number, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def test_a_question_is_read_and_answered() -> None:
    asked = dns.parse_query(query("Web.LAN", number=0x1234))
    assert isinstance(asked, dns.Query)
    assert (asked.number, asked.name, asked.kind, asked.wants_recursion) == (0x1234, "web.lan", dns.A, True)
    said = dns.make_answer(asked, [dns.address_record("10.0.0.2"), dns.address_record("10.0.0.3")], most=512)
    assert struct.unpack_from(">HHHHHH", said) == (0x1234, 0x8180, 1, 2, 0, 0)
    assert b"\3Web\3LAN\0" in said  # as it was asked: some clients mix cases against forgers
    assert said.endswith(bytes.fromhex("c00c 0001 0001 00000258 0004 0a000003"))
    assert dns.is_answer_to(said, query("web.lan", number=0x1234), query("web.lan")[12:])
    assert not dns.is_answer_to(said, query("web.lan", number=0x1235), query("web.lan")[12:])
    assert not dns.is_answer_to(said, query("web.lan", number=0x1234), query("bad.lan")[12:])


def test_what_does_not_fit_is_left_out_and_said_to_be() -> None:
    asked = dns.parse_query(query("web"))
    assert isinstance(asked, dns.Query)
    records = [dns.address_record(f"10.0.0.{n}") for n in range(1, 100)]
    said = dns.make_answer(asked, records, most=512)
    assert len(said) <= 512
    assert struct.unpack_from(">H", said, 2)[0] & 0x0200
    assert struct.unpack_from(">H", dns.make_answer(asked, records, most=65535), 6) == (99,)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", None),
        (query("a", flags=0x8180), None),  # an answer
        (query("a", flags=0x2800), dns.NOT_IMPLEMENTED),  # an update
        (query("a")[:-1], dns.FORMAT_ERROR),
        (query("a")[:4] + b"\0\2" + query("a")[6:], dns.FORMAT_ERROR),  # two questions
        (query("")[:12] + b"\xc0\x0c\0\1\0\1", dns.FORMAT_ERROR),  # a pointer to itself
        (query("a")[:-1] + b"\3", dns.REFUSED),  # class CHAOS
    ],
)
def test_what_is_no_question(message: bytes, expected: int | None) -> None:
    assert dns.parse_query(message) == expected


@given(st.binary(max_size=600))
def test_no_bytes_break_it(message: bytes) -> None:
    found = dns.parse_query(message)
    if isinstance(found, int):
        assert dns.make_error(message, found)[:2] == message[:2]
    elif found is not None:
        assert len(dns.make_error(message, dns.SERVER_FAILURE, found)) <= len(message)


def test_reverse_names() -> None:
    assert dns.reverse_address("4.3.2.1.in-addr.arpa") == "1.2.3.4"
    for name in ("3.2.1.in-addr.arpa", "x.3.2.1.in-addr.arpa", "4.3.2.1.ip6.arpa"):
        assert dns.reverse_address(name) == ""
    reverse = "2." + "0." * 27 + "0.0.d.f.ip6.arpa"
    assert dns.reverse_address(reverse) == "fd00::2"
    assert dns.reverse_address(reverse.replace("2.0.", "20.", 1)) == ""
    assert dns.name_record("a.b").endswith(b"\0\5\1a\1b\0")


def endpoint(network: str, address: str, *names: str, gateway: str = "10.0.0.1", **more: str) -> Endpoint:
    return Endpoint(
        network_id=network * 64,
        network_name=f"net{network}",
        kind=LinkKind.VETH,
        link="l",
        interface="eth0",
        mac="",
        address=address,
        prefix_len=24,
        gateway=gateway,
        names=names,
        resolver="10.0.0.1",
        **more,  # type: ignore[arg-type]
    )


def test_names_are_those_of_networks_that_are_shared() -> None:
    directory = Directory()
    directory.replace([
        (endpoint("a", "10.0.0.2", "one", "web"), endpoint("b", "10.1.0.2", "one", "db")),
        (endpoint("a", "10.0.0.3", "two", "Web"),),
        (endpoint("c", "10.2.0.2", "three", gateway=""),),
    ])  # fmt: skip
    one, two, three = (directory.asker(address) for address in ("10.1.0.2", "10.0.0.3", "10.2.0.2"))
    assert one is not None
    assert two is not None
    assert three is not None
    assert directory.find(two, "one") == ["10.0.0.2"]
    assert directory.find(two, "one.neta") == ["10.0.0.2"]
    assert sorted(directory.find(one, "one")) == ["10.0.0.2", "10.1.0.2"]
    assert directory.find(two, "db") == directory.find(two, "one.netb") == directory.find(three, "one") == []
    turns = [directory.find(two, "web") for _ in range(4)]
    assert {turn[0] for turn in turns} == {"10.0.0.2", "10.0.0.3"}
    assert {frozenset(turn) for turn in turns} == {frozenset(("10.0.0.2", "10.0.0.3"))}
    assert directory.name_of(two, "10.0.0.2") == "one.neta"
    assert directory.name_of(two, "10.1.0.2") == ""
    assert (two.forwards, three.forwards) == (True, False)
    assert directory.asker("10.9.9.9") is None


def test_a_link_is_a_name_that_one_alone_uses_and_addresses_of_both_families_are_known() -> None:
    directory = Directory()
    linking = replace(endpoint("a", "10.0.0.2", "one"), links=(("Friend", "two"),))
    directory.replace([
        (linking,),
        (endpoint("a", "10.0.0.3", "two", address6="fd00::3"),),
    ])  # fmt: skip
    one, two = directory.asker("10.0.0.2"), directory.asker("fd00::3")
    assert one is not None
    assert two is not None
    for name in ("friend", "friend.neta", "two"):
        assert sorted(directory.find(one, name)) == ["10.0.0.3", "fd00::3"]
    assert directory.find(two, "friend") == []
    assert directory.name_of(one, "fd00::3") == "two.neta"
