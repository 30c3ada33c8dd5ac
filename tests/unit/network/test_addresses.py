"""Addresses are unique, rest after use, and run out with a sentence."""

from __future__ import annotations

import pytest

from insula.errors import Failure, Forbidden, InvalidRequest
from insula.network.addresses import Addresses, make_mac


def test_addresses_are_handed_out_in_turn_and_rest_after_use() -> None:
    addresses = Addresses("10.0.0.0/29", reserved=["10.0.0.1"])
    assert addresses.capacity() == 5
    assert [addresses.take() for _ in range(3)] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    addresses.give_back("10.0.0.2")
    addresses.reserve("10.0.0.5")
    assert [addresses.take() for _ in range(2)] == ["10.0.0.6", "10.0.0.2"]


def test_the_last_one_is_followed_by_a_sentence() -> None:
    addresses = Addresses("10.0.0.0/30", reserved=["10.0.0.1"])
    assert addresses.take() == "10.0.0.2"
    with pytest.raises(Failure, match=r"no free address is left in 10\.0\.0\.0/30"):
        addresses.take()
    addresses.give_back("10.0.0.2")
    assert addresses.take() == "10.0.0.2"


def test_what_is_outside_the_subnet_is_not_counted() -> None:
    addresses = Addresses("10.0.0.0/29")
    addresses.reserve("192.0.2.1")
    assert addresses.capacity() == 6


def test_the_mac_is_made_from_the_address() -> None:
    assert make_mac("172.29.0.2") == "02:42:ac:1d:00:02"


def test_a_range_is_handed_out_from_and_others_may_be_chosen() -> None:
    addresses = Addresses("10.0.0.0/24", ["10.0.0.1", "10.0.0.129"], ip_range="10.0.0.128/30", remedy="grow")
    assert addresses.take_chosen("10.0.0.7") == "10.0.0.7"
    assert [addresses.take() for _ in range(3)] == ["10.0.0.128", "10.0.0.130", "10.0.0.131"]
    with pytest.raises(Failure, match="no free address"):
        addresses.take()
    for taken in ("10.0.0.7", "10.0.0.1", "10.0.0.130", "10.0.0.0", "10.0.0.255"):
        with pytest.raises(Forbidden, match="Address already in use"):
            addresses.take_chosen(taken)
    with pytest.raises(InvalidRequest, match=r"no configured subnet contains IP address 10\.0\.1\.7"):
        addresses.take_chosen("10.0.1.7")
