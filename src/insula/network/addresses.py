"""Which addresses of a subnet are taken.  Pure; for one thread.

Handed out in turn, so that an address given back rests as long as possible: a neighbour's ARP table and
the host's connection tracking remember it for a while.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from insula.errors import Failure, Forbidden, InvalidRequest

_REMEDY = "remove instances, or start the daemon with a larger --subnet"


class Addresses:
    def __init__(
        self, subnet: str, reserved: Iterable[str] = (), *, ip_range: str = "", remedy: str = _REMEDY
    ) -> None:
        """`reserved` are never handed out (the gateway); nor are the first address and, of IPv4, the last.
        `ip_range`: the part of the subnet that is handed out from.  `remedy`: for who finds none left."""
        self._network = ipaddress.ip_network(subnet)
        self._make = type(self._network.network_address)
        self._low = int(self._network.network_address) + 1
        self._high = int(self._network.broadcast_address) + (self._network.version == 6)
        part = ipaddress.ip_network(ip_range) if ip_range else self._network
        self._first = max(self._low, int(part.network_address))
        self._end = min(self._high, int(part.broadcast_address) + 1)
        self._taken = {int(ipaddress.ip_address(address)) for address in reserved}
        self._next = self._first
        self._remedy = remedy

    def capacity(self) -> int:
        """How many are free to be handed out."""
        return self._end - self._first - sum(self._first <= taken < self._end for taken in self._taken)

    def take(self) -> str:
        """Raises Failure when none is left."""
        if self.capacity() <= 0:
            raise Failure(f"no free address is left in {self._network}", hint=self._remedy)
        candidate = self._next
        while candidate in self._taken:
            candidate = candidate + 1 if candidate + 1 < self._end else self._first
        self._taken.add(candidate)
        self._next = candidate + 1 if candidate + 1 < self._end else self._first
        return str(self._make(candidate))

    def take_chosen(self, address: str) -> str:
        """This one, which may be outside of the range.  Raises Forbidden, InvalidRequest, both in Docker's
        words."""
        number = int(ipaddress.ip_address(address))
        if ipaddress.ip_address(address) not in self._network:
            raise InvalidRequest(f"no configured subnet contains IP address {address}")
        if number in self._taken or not self._low <= number < self._high:
            raise Forbidden("Address already in use")
        self._taken.add(number)
        return address

    def reserve(self, address: str) -> None:
        """Taken from now on; fine if it was already.  Outside the subnet it means nothing."""
        number = int(ipaddress.ip_address(address))
        if self._low <= number < self._high:
            self._taken.add(number)

    def give_back(self, address: str) -> None:
        self._taken.discard(int(ipaddress.ip_address(address)))


def make_mac(address: str) -> str:
    """As Docker's bridge driver: 02:42 and the four bytes of the IPv4 address."""
    return (b"\x02\x42" + ipaddress.IPv4Address(address).packed).hex(":")
