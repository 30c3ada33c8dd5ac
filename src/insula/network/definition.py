"""What a network is to be, decided from a request, the networks that exist and the host's routes.  Pure.

The wording is moby's where clients may look at it (libnetwork, daemon/network.go).
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Collection, Iterable

from insula.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable, UnsupportedField
from insula.model.ids import make_id
from insula.model.network import (
    BRIDGE_OPTION,
    HOST_IP_OPTION,
    ICC_OPTION,
    MASQUERADE_OPTION,
    MTU_OPTION,
    PREDEFINED,
    Network,
    NetworkRequest,
    is_bool,
)

BRIDGE_PREFIX = "br-"
_ID_DIGITS = 12  # with the prefix, what the kernel allows for a link's name

# Docker's default-address-pools (daemon/config, libnetwork/ipamutils): what of it the host does not use
_POOLS = (
    *((f"172.{n}.0.0/16", 16) for n in (17, 18, 19)),
    *((f"172.{n}.0.0/14", 16) for n in (20, 24, 28)),
    ("192.168.0.0/16", 20),
)
_LEAST_MTU, _MOST_MTU = 68, 65535
_SMALLEST_PREFIX = 30
_LINK = re.compile(r"[^\s/:\x00-\x1f]{1,15}")
_NAME = re.compile(r"[^\x00-\x1f/]{1,255}")
_OPTIONS = (BRIDGE_OPTION, ICC_OPTION, MASQUERADE_OPTION, HOST_IP_OPTION, MTU_OPTION)


def define_network(
    request: NetworkRequest,
    existing: Collection[Network],
    routes: Collection[ipaddress.IPv4Network],
    *,
    links: Collection[str] = (),
) -> Network:
    """`routes` are the host's, `links` the names of its links.  Raises InvalidRequest, UnsupportedField,
    Forbidden, Conflict, NotFound, Unavailable."""
    _check_name(request.name, existing)
    _check_driver(request.driver)
    network_id = make_id()
    options = check_options(request.options)
    subnet = _choose_subnet(request, existing, routes)
    ip_range = _check_range(request.ip_range, subnet)
    gateway = _choose_gateway(request, subnet, ip_range)
    return Network(
        id=network_id,
        name=request.name,
        driver="bridge",
        bridge=_choose_bridge(options, network_id, existing, links),
        subnet=str(subnet),
        gateway=gateway,
        internal=request.internal,
        attachable=request.attachable,
        labels=request.labels,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        ip_range=ip_range,
        aux_addresses=_check_aux(request.aux_addresses, subnet, gateway),
        options=options,
        chosen_subnet=bool(request.subnet),
    )


def _check_name(name: str, existing: Collection[Network]) -> None:
    if not name.strip():
        raise InvalidRequest("invalid network name: name is empty")
    if name in PREDEFINED or name == "default":
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"invalid network name: {name[:64]!r}", hint="no slashes or control characters")
    if any(network.name == name for network in existing):
        raise Conflict(f"network with name {name} already exists")


def _check_driver(driver: str) -> None:
    if driver in ("", "bridge", "default"):
        return
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver == "overlay":
        raise Unavailable("This node is not a swarm manager: an overlay network needs a swarm")
    if driver in ("macvlan", "ipvlan"):
        raise UnsupportedField("Driver", f"{driver} networks are not supported", hint="use bridge")
    raise NotFound(f"could not find plugin {driver} in v1 plugin registry: plugin not found")


def check_options(options: dict[str, str]) -> dict[str, str]:
    """Raises InvalidRequest, UnsupportedField."""
    for name, value in options.items():
        if name not in _OPTIONS:
            raise UnsupportedField(
                f"Options.{name}", "no option of the bridge driver here", hint=f"known: {', '.join(_OPTIONS)}"
            )
        if name in (ICC_OPTION, MASQUERADE_OPTION) and not is_bool(value):
            raise InvalidRequest(f'Options.{name}: invalid value "{value}": must be true or false')
        if name == MTU_OPTION and not (
            value.isascii() and value.isdecimal() and _LEAST_MTU <= int(value[:6]) <= _MOST_MTU
        ):
            raise InvalidRequest(f'Options.{name}: invalid MTU "{value}": {_LEAST_MTU} to {_MOST_MTU}')
        if name == HOST_IP_OPTION:
            try:
                ipaddress.IPv4Address(value)
            except ValueError:
                raise InvalidRequest(f'Options.{name}: invalid IPv4 address "{value}"') from None
        if name == BRIDGE_OPTION and (not _LINK.fullmatch(value) or value in (".", "..")):
            raise InvalidRequest(f'Options.{name}: "{value}" is not a link name of 1 to 15 characters')
    return options


def _choose_bridge(
    options: dict[str, str], network_id: str, existing: Collection[Network], links: Collection[str]
) -> str:
    name = options.get(BRIDGE_OPTION, "")
    if not name:
        return BRIDGE_PREFIX + network_id[:_ID_DIGITS]
    if holder := next((network for network in existing if network.bridge == name), None):
        raise Conflict(
            f"bridge {name} is in use by network {holder.name}: conflicts with network {holder.id}"
        )
    if name in links:
        raise Forbidden(
            f"the host already has a link {name}, which is not ours",
            hint=f"choose another name for {BRIDGE_OPTION}",
        )
    return name


def _subnets(existing: Iterable[Network]) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(network.subnet) for network in existing if network.subnet]


def _choose_subnet(
    request: NetworkRequest, existing: Collection[Network], routes: Collection[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network:
    taken = _subnets(existing)
    if request.subnet:
        wanted = _parse_network(request.subnet, "subnet")
        if wanted.prefixlen > _SMALLEST_PREFIX:
            raise _config(f"invalid subnet {request.subnet}: smaller than /{_SMALLEST_PREFIX}")
        if any(wanted.overlaps(other) for other in taken):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        if other := next((route for route in routes if route.subnet_of(wanted)), None):
            raise Forbidden(
                f"invalid pool request: the subnet {wanted} is in use on this host: "
                f"there is a route to {other}",
                hint="choose another --subnet",
            )
        return wanted
    if request.gateway or request.ip_range or request.aux_addresses:
        raise _config("invalid IPAM config: a gateway, ip-range or auxiliary address needs a subnet")
    for pool, prefix in _POOLS:
        for candidate in ipaddress.IPv4Network(pool).subnets(new_prefix=prefix):
            # a wider route (a VPN's 10.0.0.0/8) is left alone too: the user did not choose to shadow it
            if not any(candidate.overlaps(other) for other in (*taken, *routes)):
                return candidate
    raise InvalidRequest(
        "all predefined address pools have been fully subnetted",
        hint="remove networks that nothing uses, or choose a --subnet",
    )


def _choose_gateway(request: NetworkRequest, subnet: ipaddress.IPv4Network, ip_range: str) -> str:
    if request.gateway:
        return _parse_address(request.gateway, "gateway", subnet)
    kept = set(request.aux_addresses.values())
    first = ipaddress.IPv4Network(ip_range) if ip_range else subnet
    for host in first.hosts():
        if str(host) not in kept:
            return str(host)
    raise _config(f"no address of {first} is left for the gateway")


def _check_range(text: str, subnet: ipaddress.IPv4Network) -> str:
    if not text:
        return ""
    part = _parse_network(text, "ip-range")
    if not part.subnet_of(subnet):
        raise _config(f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return str(part)


def _check_aux(given: dict[str, str], subnet: ipaddress.IPv4Network, gateway: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in given.items():
        address = _parse_address(text, "auxiliary address", subnet)
        if address == gateway or address in found.values():
            raise Forbidden(
                f"failed to allocate secondary ip address ({name}:{address}): Address already in use"
            )
        found[name] = address
    return found


def _parse_network(text: str, what: str) -> ipaddress.IPv4Network:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        interface = None
    if interface is None or "/" not in text:
        raise _config(f"invalid {what} {text[:64]}: invalid CIDR block notation")
    if not isinstance(interface, ipaddress.IPv4Interface):
        raise _config(f"invalid {what} {text}: IPv6 has not been enabled for this network")
    if interface.ip != interface.network.network_address:
        raise _config(f"invalid {what} {text}: it should be {interface.network}")
    return interface.network


def _parse_address(text: str, what: str, subnet: ipaddress.IPv4Network) -> str:
    try:
        address = ipaddress.IPv4Address(text.partition("/")[0])
    except ValueError:
        raise _config(f"invalid {what} {text[:64]}: invalid address") from None
    if address not in subnet:
        raise _config(f"invalid {what} {text}: parent subnet {subnet} doesn't contain this address")
    if address in (subnet.network_address, subnet.broadcast_address):
        raise _config(f"invalid {what} {text}: it is the first or the last address of {subnet}")
    return str(address)


def _config(problem: str) -> InvalidRequest:
    return InvalidRequest(f"invalid network config:\n{problem}")
