"""What is told to a link about an address, byte by byte."""

from __future__ import annotations

import struct

from insula.system.announce import frame

MAC = "02:42:ac:11:00:02"
RAW_MAC = bytes.fromhex("0242ac110002")


def test_an_ipv4_address_is_told_by_a_gratuitous_arp_request() -> None:
    address = bytes([172, 17, 0, 2])
    expected = b"\xff" * 6 + RAW_MAC + bytes.fromhex("0806 0001 0800 06 04 0001")
    assert expected + RAW_MAC + address + bytes(6) + address == frame(MAC, "172.17.0.2")


def test_an_ipv6_address_is_told_by_an_advertisement_that_overrides() -> None:
    made = frame(MAC, "fd00::2")
    address, all_nodes = bytes.fromhex("fd" + "00" * 14 + "02"), bytes.fromhex("ff02" + "00" * 13 + "01")
    assert bytes.fromhex("333300000001") + RAW_MAC + bytes.fromhex("86dd 60000000 0020 3a ff") == made[:22]
    assert address + all_nodes == made[22:54]
    advertisement = made[54:]
    assert (136, 0) == tuple(advertisement[:2])
    assert bytes.fromhex("20000000") + address + b"\x02\x01" + RAW_MAC == advertisement[4:]
    # a right checksum makes the sum over everything, itself included, all ones (RFC 1071)
    checked = address + all_nodes + struct.pack("!II", 32, 58) + advertisement
    total = sum(word for (word,) in struct.iter_unpack("!H", checked))
    assert 0xFFFF == (total & 0xFFFF) + (total >> 16)
