"""Networks in requests, and the networking fields of `create`: mode, endpoints, ports, names.  Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from insula.api.versions import NEWEST, Version
from insula.api.wire.container_config import EndpointIPAMConfig, EndpointSettings
from insula.api.wire.host_config import PortBinding as WireBinding
from insula.api.wire.network import IPAMConfig, NetworkCreateRequest
from insula.engine.checks import check_predefined
from insula.errors import InvalidRequest, NotFound, UnsupportedField
from insula.model.network import (
    ANY_INTERFACE,
    SYSCTLS_OPTION,
    AddressRange,
    Network,
    NetworkRequest,
    NetworkSpec,
    PortBinding,
)

_BEYOND_ONE = (1, 44)  # network per create request
_OWN_OPTIONS = "com.docker.network."
_SYSCTL = re.compile(rf"net\.(ipv4|ipv6|mpls)\.[a-z0-9_]+\.{ANY_INTERFACE}\.[a-z0-9_]+")
_MOST_NAME = 253  # of a name in DNS
_MOST_LINK_LOCAL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an instance is attached, and as what.  `networks` None: what the mode says, no more.  `links` are
    those of the default bridge."""

    network_mode: str
    mac_address: str = ""
    networks: tuple[NetworkSpec, ...] | None = None
    links: tuple[str, ...] = ()


def parse_place(
    mode: str,
    endpoints: Mapping[str, EndpointSettings],
    container_mac: str,
    version: Version = NEWEST,
    links: tuple[str, ...] = (),
) -> Place:
    """`default` and "" are the bridge.  `links` of HostConfig are the first network's, if that is one of the
    user's.  Raises InvalidRequest, UnsupportedField."""
    mode = "bridge" if mode in ("", "default") else mode
    known = {"bridge" if name == "default" else name: e for name, e in endpoints.items()}
    if len(known) > 1 and version < _BEYOND_ONE:
        raise InvalidRequest(
            "Container cannot be created with multiple network endpoints: " + ", ".join(sorted(known))
        )
    if mode in ("host", "none") or mode.startswith("container:"):
        if others := [name for name in known if name != mode]:
            raise InvalidRequest(
                f"conflicting options: NetworkMode {mode} and EndpointsConfig for network {others[0]}"
            )
        settings = known.get(mode, EndpointSettings())
        endpoint = parse_endpoint(mode, settings, f"NetworkingConfig.EndpointsConfig.{mode}.")
        check_predefined(dataclasses.replace(endpoint, links=()), mode)  # the client repeats HostConfig's
        mac = parse_mac(container_mac)
        if mode != "none" and version >= _BEYOND_ONE:  # which has no link that could have it
            mac = mac or endpoint.mac_address
        return Place(network_mode=mode, mac_address=mac, links=links)
    if known and mode == "bridge" and mode not in known:
        mode = next(iter(known))  # docker-py names the network here only
    order = [mode, *sorted(name for name in known if name != mode)]
    wanted = [
        parse_endpoint(name, known.get(name, EndpointSettings()), f"NetworkingConfig.EndpointsConfig.{name}.")
        for name in order
    ]
    if version < _BEYOND_ONE:  # endpoints had no MAC address of their own
        wanted = [dataclasses.replace(each, mac_address="") for each in wanted]
    mac = parse_mac(container_mac)
    main = wanted[0]
    if mac and main.mac_address not in ("", mac):
        raise InvalidRequest(
            "the container-wide MAC address must match the endpoint-specific MAC address "
            "for the main network, or be left empty"
        )
    own = mode != "bridge"
    wanted[0] = dataclasses.replace(
        main,
        mac_address=main.mac_address or mac,
        links=tuple(dict.fromkeys((*main.links, *links))) if own else main.links,
    )
    return Place(
        network_mode=mode,
        mac_address=wanted[0].mac_address,
        networks=tuple(wanted),
        links=() if own else links,
    )


def parse_endpoint(network: str, settings: EndpointSettings, prefix: str) -> NetworkSpec:
    """`prefix` names the field in messages.  Raises InvalidRequest, UnsupportedField."""
    for option in settings.DriverOpts or ():
        if (
            option.startswith(_OWN_OPTIONS) and option != SYSCTLS_OPTION
        ):  # those that Docker's driver acts on; it keeps all others, too
            raise UnsupportedField(
                f"{prefix}DriverOpts.{option}", "the bridge driver has no such option here"
            )
    ipam = settings.IPAMConfig or EndpointIPAMConfig()
    for alias in settings.Aliases or ():
        if not alias or len(alias) > _MOST_NAME or set(alias) & set(" \t\n/"):
            raise InvalidRequest(f"{prefix}Aliases: {alias[:64]!r} is no name")
    wanted = NetworkSpec(
        name=network,
        mac_address=parse_mac(settings.MacAddress),
        aliases=tuple(dict.fromkeys(settings.Aliases or ())),
        ipv4_address=_address_of(4, ipam.IPv4Address, prefix + "IPAMConfig.IPv4Address"),
        ipv6_address=_address_of(6, ipam.IPv6Address, prefix + "IPAMConfig.IPv6Address"),
        link_local=_link_local(ipam.LinkLocalIPs or (), prefix + "IPAMConfig.LinkLocalIPs"),
        links=parse_links(settings.Links or ()),
        driver_opts=settings.DriverOpts or {},
    )
    for name, value in wanted.sysctls():
        if not _SYSCTL.fullmatch(name) or not value:
            raise InvalidRequest(  # moby's words
                f"{prefix}DriverOpts.{SYSCTLS_OPTION}: unrecognised network interface sysctl "
                f"'{name[:128]}={value[:64]}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' "
                "must be 'ipv4', 'ipv6' or 'mpls'"
            )
    return wanted


def parse_network(given: NetworkCreateRequest) -> NetworkRequest:
    """Raises InvalidRequest, UnsupportedField, NotFound."""
    if not given.EnableIPv4:
        raise UnsupportedField("EnableIPv4", "a network without IPv4 is not supported")
    if given.Scope not in ("", "local"):
        raise UnsupportedField("Scope", f"{given.Scope!r}: this engine is not part of a swarm")
    if given.Ingress:
        raise UnsupportedField("Ingress", "this engine is not part of a swarm")
    if given.ConfigOnly or given.ConfigFrom.Network:
        raise UnsupportedField("ConfigOnly", "networks that only hold configuration are not supported")
    if given.IPAM.Driver not in ("", "default"):
        raise NotFound(f"could not find plugin {given.IPAM.Driver} in v1 plugin registry: plugin not found")
    configs = [config for config in given.IPAM.Config if config != IPAMConfig()]
    configs4 = [config for config in configs if not _is_ipv6(config)]
    configs6 = [config for config in configs if _is_ipv6(config)]
    if len(configs4) > 1 or len(configs6) > 1:
        raise UnsupportedField("IPAM.Config", "a network has one subnet of IPv4 and one of IPv6")
    config = configs4[0] if configs4 else IPAMConfig()
    range6 = None
    if configs6:
        range6 = AddressRange(
            subnet=configs6[0].Subnet,
            gateway=configs6[0].Gateway,
            ip_range=configs6[0].IPRange,
            aux_addresses=configs6[0].AuxiliaryAddresses,
        )
    return NetworkRequest(
        name=given.Name,
        driver=given.Driver or "bridge",
        subnet=config.Subnet,
        gateway=config.Gateway,
        ip_range=config.IPRange,
        aux_addresses=config.AuxiliaryAddresses,
        internal=given.Internal,
        attachable=given.Attachable,
        options=given.Options,
        labels=given.Labels,
        ipv6=given.EnableIPv6,
        range6=range6,
        unique=given.CheckDuplicate,
        ipam_options=given.IPAM.Options,
    )


def warn_network(request: NetworkRequest, made: Network, others: Iterable[Network]) -> str:
    """What is not as it was asked for.  `others`: those that existed before."""
    same = [other for other in others if other.name == made.name]
    found = [f"Network with name {other.name} (id : {other.id}) already exists" for other in same]  # moby's
    if made.range6 is not None and not made.ipv6:
        found.append("The IPv6 configuration has no effect: EnableIPv6 is not set")
    if made.ipam_options:
        found.append("IPAM.Options have no effect: the default driver has none")
    range6, got6 = request.range6 or AddressRange(), made.range6 or AddressRange()
    for asked, got in (
        (request.subnet, made.subnet),
        (request.ip_range, made.ip_range),
        (range6.subnet, got6.subnet),
        (range6.ip_range, got6.ip_range),
    ):
        if asked and ipaddress.ip_interface(asked).ip != ipaddress.ip_network(got).network_address:
            found.append(f"{asked} is an address in {got}, which is used")
    return "\n".join(found)


def _is_ipv6(config: IPAMConfig) -> bool:
    said = (config.Subnet, config.IPRange, config.Gateway, *config.AuxiliaryAddresses.values())
    return ":" in next(filter(None, said), "")


def parse_links(given: Iterable[str]) -> tuple[str, ...]:
    """`name:alias` each, in order; the alias of `name` alone is the name.  Also in the form in which inspect
    shows them: `/name:/parent/alias`.  Raises InvalidRequest."""
    found = []
    for text in given:
        name, mark, alias = text.partition(":")
        name, alias = name.removeprefix("/"), (alias if mark else name).rpartition("/")[2]
        if not name or not alias or ":" in alias or set(text) & set(" \t\n") or len(text) > 2 * _MOST_NAME:
            raise InvalidRequest(f"bad format for links: {text[:64]}", hint="write name or name:alias")
        found.append(f"{name}:{alias}")
    return tuple(dict.fromkeys(found))


def parse_port(text: str) -> tuple[int, str]:
    """`80`, `80/tcp`, `53/udp`.  Raises InvalidRequest."""
    number, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidRequest(f"invalid proto: {protocol}")
    return _number(number, f'invalid port specification: "{text}"', least=1), protocol


def parse_exposed(given: Iterable[str]) -> tuple[str, ...]:
    """`8000-8002/tcp` becomes three.  Raises InvalidRequest."""
    found: list[str] = []
    for text in given:
        span, _, protocol = text.partition("/")
        first, dash, last = span.partition("-")
        low = parse_port(f"{first}/{protocol or 'tcp'}")[0]
        high = parse_port(f"{last}/{protocol or 'tcp'}")[0] if dash else low
        if high < low or high - low > 65535:
            raise InvalidRequest(f'invalid port specification: "{text}"')
        found += [f"{port}/{(protocol or 'tcp').lower()}" for port in range(low, high + 1)]
    return tuple(found)


def parse_bindings(given: Mapping[str, Sequence[WireBinding]]) -> tuple[PortBinding, ...]:
    """Raises InvalidRequest, UnsupportedField."""
    found = []
    for port, bindings in given.items():
        number, protocol = parse_port(port)
        for binding in bindings:
            first, dash, last = binding.HostPort.partition("-")
            refusal = f'invalid port specification: "{binding.HostPort[:64]}"'
            host_port = _number(first, refusal, least=1 if dash else 0) if binding.HostPort else 0
            host_port_end = _number(last, refusal, least=host_port) if dash else 0
            host_ip = binding.HostIp.strip("[]")
            if host_ip:
                host_ip = _address(host_ip, f"HostConfig.PortBindings.{port}.HostIp")
            found.append(
                PortBinding(
                    container_port=number,
                    protocol=protocol,
                    host_ip=host_ip,
                    host_port=host_port,
                    host_port_end=host_port_end if host_port_end > host_port else 0,
                )
            )
    return tuple(found)


def check_extra_hosts(given: Sequence[str]) -> tuple[str, ...]:
    """`name:address`, `name=address`; `host-gateway` is resolved by the engine.  Raises InvalidRequest."""
    found = []
    for text in given:
        name, mark, address = text.partition("=" if "=" in text else ":")
        if not name or not mark:
            raise InvalidRequest(f'bad format for add-host: "{text}"')
        if address != "host-gateway":
            try:
                ipaddress.ip_address(address.strip("[]"))
            except ValueError:
                raise InvalidRequest(f'invalid IP address in add-host: "{address}"') from None
        found.append(f"{name}:{address}")
    return tuple(found)


def check_dns(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(_address(text, "HostConfig.Dns") for text in given)


def _address(text: str, what: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidRequest(f"{what}: invalid IP address: {text[:64]!r}") from None


def _address_of(version: int, text: str, what: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    if address is None or address.version != version or mapped or "%" in text:
        raise InvalidRequest(f"{what}: invalid IPv{version} address: {text[:64]}")
    return str(address)


def _link_local(given: Sequence[str], what: str) -> tuple[str, ...]:
    if len(given) > _MOST_LINK_LOCAL:
        raise InvalidRequest(f"{what}: at most {_MOST_LINK_LOCAL} addresses")
    found = [_address(text, what) for text in given]
    for address in found:
        if "%" in address or not ipaddress.ip_address(address).is_link_local:
            raise InvalidRequest(f"{what}: invalid link-local IP address: {address}")
    return tuple(dict.fromkeys(found))


def _number(text: str, message: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:6]) <= 65535 or len(text) > 5:
        raise InvalidRequest(message)
    return int(text)


def parse_mac(text: str) -> str:
    parts = text.replace("-", ":").lower().split(":")
    if text and (
        len(parts) != 6 or not all(len(p) == 2 and set(p) <= set("0123456789abcdef") for p in parts)
    ):
        raise InvalidRequest(f"invalid MAC address: {text[:64]!r}")
    return ":".join(parts)
