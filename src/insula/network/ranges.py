"""Ranges of addresses: what a user asks for, checked, or chosen where the user says nothing.  Pure.

Of both families alike.  The wording is moby's where clients may look at it (libnetwork/ipams,
api/types/network).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator

from insula.errors import Forbidden, InvalidRequest
from insula.model.network import AddressRange

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Docker's default-address-pools (daemon/config, libnetwork/ipamutils): what of it the host does not use
_POOLS = (
    *((f"172.{n}.0.0/16", 16) for n in (17, 18, 19)),
    *((f"172.{n}.0.0/14", 16) for n in (20, 24, 28)),
    ("192.168.0.0/16", 20),
)
_SMALLEST_PREFIX = {4: 30, 6: 126}
_ULA_PREFIX, _LAN_PREFIX = 48, 64
_MOST_TRIED = 4096


def choose_range(
    asked: AddressRange,
    version: int,
    taken: Collection[IPNetwork],
    routes: Collection[IPNetwork],
    host_key: str,
) -> AddressRange:
    """`taken` by other networks, `routes` of the host; of both families.  `host_key`: what is this host's
    own, so that two hosts choose different IPv6 subnets.  Raises InvalidRequest, Forbidden."""
    subnet = _choose_subnet(asked, version, taken, routes, host_key)
    ip_range = _check_range(asked.ip_range, subnet)
    gateway = _choose_gateway(asked, subnet, ip_range)
    return AddressRange(
        subnet=str(subnet),
        gateway=gateway,
        ip_range=ip_range,
        aux_addresses=_check_aux(asked.aux_addresses, subnet, gateway),
        chosen_subnet=bool(asked.subnet),
    )


def contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    """Also when they are the same."""
    return outer.version == inner.version and outer.overlaps(inner) and outer.prefixlen <= inner.prefixlen


def make_ula_prefix(host_key: str) -> ipaddress.IPv6Network:
    """A /48 of RFC 4193, whose 40 bits come from `host_key` as Docker's do from its host's identity."""
    bits = hashlib.sha256(b"insula " + host_key.encode()).digest()[:5]
    return ipaddress.IPv6Network((b"\xfd" + bits + bytes(10), _ULA_PREFIX))


def _choose_subnet(
    asked: AddressRange,
    version: int,
    taken: Collection[IPNetwork],
    routes: Collection[IPNetwork],
    host_key: str,
) -> IPNetwork:
    if asked.subnet:
        wanted = _parse_network(asked.subnet, "subnet", version)
        if wanted.prefixlen > _SMALLEST_PREFIX[version]:
            raise _config(f"invalid subnet {asked.subnet}: smaller than /{_SMALLEST_PREFIX[version]}")
        if version == 6 and (wanted.is_multicast or wanted.is_link_local or wanted.is_loopback):
            raise _config(f"invalid subnet {asked.subnet}: instances cannot have addresses of this kind")
        if any(wanted.overlaps(other) for other in taken):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        if other := next((route for route in routes if contains(wanted, route)), None):
            raise Forbidden(
                f"invalid pool request: the subnet {wanted} is in use on this host: "
                f"there is a route to {other}",
                hint="choose another --subnet",
            )
        return wanted
    if asked.gateway or asked.ip_range or asked.aux_addresses:
        raise _config("invalid IPAM config: a gateway, ip-range or auxiliary address needs a subnet")
    for candidate in _candidates(version, host_key):
        # a wider route (a VPN's 10.0.0.0/8) is left alone too: the user did not choose to shadow it
        if not any(candidate.overlaps(other) for other in (*taken, *routes)):
            return candidate
    raise InvalidRequest(
        "all predefined address pools have been fully subnetted",
        hint="remove networks that nothing uses, or choose a --subnet",
    )


def _candidates(version: int, host_key: str) -> Iterator[IPNetwork]:
    if version == 4:
        for pool, prefix in _POOLS:
            yield from ipaddress.IPv4Network(pool).subnets(new_prefix=prefix)
        return
    lans = make_ula_prefix(host_key).subnets(new_prefix=_LAN_PREFIX)
    yield from (lan for lan, _ in zip(lans, range(_MOST_TRIED), strict=False))


def _choose_gateway(asked: AddressRange, subnet: IPNetwork, ip_range: str) -> str:
    if asked.gateway:
        return _parse_address(asked.gateway, "gateway", subnet)
    kept = set(asked.aux_addresses.values())
    first = ipaddress.ip_network(ip_range) if ip_range else subnet
    hosts: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address] = first.hosts()
    for host in hosts:
        if str(host) not in kept and host != subnet.network_address:
            return str(host)
    raise _config(f"no address of {first} is left for the gateway")


def _check_range(text: str, subnet: IPNetwork) -> str:
    if not text:
        return ""
    part = _parse_network(text, "ip-range", subnet.version)
    if not contains(subnet, part):
        raise _config(f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return str(part)


def _check_aux(given: dict[str, str], subnet: IPNetwork, gateway: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in given.items():
        address = _parse_address(text, "auxiliary address", subnet)
        if address == gateway or address in found.values():
            raise Forbidden(
                f"failed to allocate secondary ip address ({name}:{address}): Address already in use"
            )
        found[name] = address
    return found


def _parse_network(text: str, what: str, version: int) -> IPNetwork:
    """Of an address in it the network is meant, as in Docker up to 24; later ones refuse it."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        interface = None
    if interface is None or "/" not in text or "%" in text:
        raise _config(f"invalid {what} {text[:64]}: invalid CIDR block notation")
    if interface.version != version:
        raise _config(f"invalid {what} {text}: it is not an IPv{version} network")
    return interface.network


def _parse_address(text: str, what: str, subnet: IPNetwork) -> str:
    try:
        address = ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        raise _config(f"invalid {what} {text[:64]}: invalid address") from None
    if address not in subnet:
        raise _config(f"invalid {what} {text}: parent subnet {subnet} doesn't contain this address")
    if address == subnet.network_address or (subnet.version == 4 and address == subnet.broadcast_address):
        raise _config(f"invalid {what} {text}: it is the first or the last address of {subnet}")
    return str(address)


def _config(problem: str) -> InvalidRequest:
    return InvalidRequest(f"invalid network config:\n{problem}")
