"""Packing and unpacking netlink attributes, against what the kernel's headers say."""

from __future__ import annotations

import struct

from insula.system.links import address_message, default_route_message
from insula.system.netlink import attribute, attributes, nested, number, text


def test_attributes_are_padded_to_four_bytes_and_found_again() -> None:
    packed = text(3, "eth0") + number(4, 1500) + nested(18, attribute(1, b"x"))
    assert packed[:12] == struct.pack("=HH", 9, 3) + b"eth0\0" + b"\0" * 3
    found = attributes(packed)
    assert found[3] == b"eth0\0"
    assert found[4] == struct.pack("=I", 1500)
    assert attributes(found[18]) == {1: b"x"}


def test_truncated_and_nonsensical_attributes_end_the_list() -> None:
    assert attributes(b"\x01") == {}
    assert attributes(struct.pack("=HH", 0, 1) * 2) == {}
    assert attributes(struct.pack("=HH", 100, 1) + b"ab") == {1: b"ab"}


def test_an_address_carries_its_prefix_and_broadcast() -> None:
    body = address_message(7, "172.29.0.2", 16).body
    assert body[:8] == struct.pack("=BBBBi", 2, 16, 0, 0, 7)
    assert attributes(body[8:])[4] == bytes([172, 29, 255, 255])


def test_a_default_route_has_a_gateway_only() -> None:
    assert attributes(default_route_message("172.29.0.1").body[12:]) == {5: bytes([172, 29, 0, 1])}
