"""Counters of network interfaces, from /proc.  Synchronous.

Not from /sys/class/net: a sysfs shows the network namespace in which it was mounted, which is not a daemon's
that was put into another afterwards (`nsenter --net`).
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.model.stream import NetworkSample

OWN = "/proc/thread-self/net/dev"
"""The namespace of whoever reads it."""

_FIELDS = 12  # up to the last that is used


@dataclass(frozen=True, slots=True)
class Traffic:
    """In one direction."""

    bytes: int = 0
    packets: int = 0
    errors: int = 0
    dropped: int = 0


def sample(interface: str, received: Traffic, sent: Traffic) -> NetworkSample:
    """As an instance sees its `interface`."""
    return NetworkSample(
        interface=interface,
        rx_bytes=received.bytes,
        rx_packets=received.packets,
        rx_errors=received.errors,
        rx_dropped=received.dropped,
        tx_bytes=sent.bytes,
        tx_packets=sent.packets,
        tx_errors=sent.errors,
        tx_dropped=sent.dropped,
    )


def read_counters(path: str) -> dict[str, tuple[Traffic, Traffic]]:
    """What each interface has received and sent, by its name; nothing when `path` is not there (any more)."""
    try:
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.rpartition(":")
        fields = [int(word) for word in rest.split()]
        if len(fields) >= _FIELDS:
            found[name.strip()] = (Traffic(*fields[:4]), Traffic(*fields[8:12]))
    return found
