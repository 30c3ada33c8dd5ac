"""Which IPv4 addresses of a subnet are taken.  Pure; for one thread.

Handed out in turn, so that an address given back rests as long as possible: a neighbour's ARP table and
the host's connection tracking remember it for a while.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from insula.errors import Failure


class Addresses:
    def __init__(self, subnet: str, reserved: Iterable[str] = ()) -> None:
        """`reserved` are never handed out (the gateway); neither are the first and the last address."""
        self._network = ipaddress.IPv4Network(subnet)
        self._first = int(self._network.network_address) + 1
        self._end = int(self._network.broadcast_address)
        self._taken = {int(ipaddress.IPv4Address(address)) for address in reserved}
        self._next = self._first

    def capacity(self) -> int:
        """How many are free."""
        return self._end - self._first - len(self._taken)

    def take(self) -> str:
        """Raises Failure when none is left."""
        if self.capacity() <= 0:
            raise Failure(
                f"no free address is left in {self._network}",
                hint="remove instances, or start the daemon with a larger --subnet",
            )
        candidate = self._next
        while candidate in self._taken:
            candidate = candidate + 1 if candidate + 1 < self._end else self._first
        self._taken.add(candidate)
        self._next = candidate + 1 if candidate + 1 < self._end else self._first
        return str(ipaddress.IPv4Address(candidate))

    def reserve(self, address: str) -> None:
        """Taken from now on; fine if it was already.  Outside the subnet it means nothing."""
        number = int(ipaddress.IPv4Address(address))
        if self._first <= number < self._end:
            self._taken.add(number)

    def give_back(self, address: str) -> None:
        self._taken.discard(int(ipaddress.IPv4Address(address)))


def make_mac(address: str) -> str:
    """As Docker's bridge driver: 02:42 and the four bytes of the IPv4 address."""
    return (b"\x02\x42" + ipaddress.IPv4Address(address).packed).hex(":")
