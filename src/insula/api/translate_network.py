"""Networking fields of a create request: mode, ports, endpoint settings, names.  Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from insula.api.wire.container_config import EndpointSettings
from insula.api.wire.host_config import PortBinding as WireBinding
from insula.errors import InvalidRequest, UnsupportedField
from insula.model.network import PortBinding

_PREDEFINED = ("bridge", "host", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an instance is attached, and as what."""

    network_mode: str
    mac_address: str = ""
    aliases: tuple[str, ...] = ()
    ipv4_address: str = ""


def parse_place(mode: str, endpoints: Mapping[str, EndpointSettings], container_mac: str) -> Place:
    """`default` and "" are the bridge.  Raises InvalidRequest, UnsupportedField."""
    mode = "bridge" if mode in ("", "default") else mode
    known = {"bridge" if name == "default" else name: e for name, e in endpoints.items()}
    if len(known) > 1:
        raise UnsupportedField(
            "NetworkingConfig.EndpointsConfig",
            f"one network per container so far, not {len(known)}: {', '.join(sorted(known))}",
        )
    for name in known:
        if name != mode and mode in _PREDEFINED:
            if mode != "bridge":
                raise InvalidRequest(
                    f"conflicting options: NetworkMode {mode} and EndpointsConfig for network {name}"
                )
            mode = name  # docker-py names the network here only
    settings = known.get(mode)
    mac = container_mac
    if settings is None:
        return Place(network_mode=mode, mac_address=_mac(mac))
    prefix = f"NetworkingConfig.EndpointsConfig.{mode}."
    if settings.Links:
        raise UnsupportedField(prefix + "Links", "legacy links are not supported")
    if settings.DriverOpts:
        raise UnsupportedField(prefix + "DriverOpts", "the bridge driver has no options for an endpoint")
    if settings.MacAddress:
        if mac and mac != settings.MacAddress:
            raise InvalidRequest(
                "the container-wide MAC address must match the endpoint-specific MAC address "
                "for the main network, or be left empty"
            )
        mac = settings.MacAddress
    address = ""
    if settings.IPAMConfig:
        if settings.IPAMConfig.IPv6Address or settings.IPAMConfig.LinkLocalIPs:
            raise UnsupportedField(prefix + "IPAMConfig", "only IPv4Address can be chosen")
        address = settings.IPAMConfig.IPv4Address
    return Place(
        network_mode=mode,
        mac_address=_mac(mac),
        aliases=tuple(settings.Aliases or ()),
        ipv4_address=_address(address, prefix + "IPAMConfig.IPv4Address") if address else "",
    )


def parse_port(text: str) -> tuple[int, str]:
    """`80`, `80/tcp`, `53/udp`."""
    number, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidRequest(f"invalid proto: {protocol}")
    if protocol == "sctp":
        raise UnsupportedField(f"port {text}", "SCTP is not supported")
    return _number(number, f'invalid port specification: "{text}"', least=1), protocol


def parse_exposed(given: Iterable[str]) -> tuple[str, ...]:
    """`8000-8002/tcp` becomes three."""
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
            if "-" in binding.HostPort:
                raise UnsupportedField(
                    f"HostConfig.PortBindings.{port}",
                    "a range of host ports to choose one from is not supported",
                )
            host_port = 0
            if binding.HostPort:
                host_port = _number(binding.HostPort, f'invalid port specification: "{binding.HostPort}"')
            host_ip = binding.HostIp.strip("[]")
            if host_ip:
                host_ip = _address(host_ip, f"HostConfig.PortBindings.{port}.HostIp")
            found.append(
                PortBinding(
                    container_port=number,
                    protocol=protocol,
                    host_ip="" if host_ip == "0.0.0.0" else host_ip,
                    host_port=host_port,
                )
            )
    return tuple(found)


def check_extra_hosts(given: Sequence[str]) -> tuple[str, ...]:
    """`name:address`, `name=address`; `host-gateway` is resolved by the engine."""
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


def _number(text: str, message: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:6]) <= 65535 or len(text) > 5:
        raise InvalidRequest(message)
    return int(text)


def _mac(text: str) -> str:
    parts = text.replace("-", ":").lower().split(":")
    if text and (
        len(parts) != 6 or not all(len(p) == 2 and set(p) <= set("0123456789abcdef") for p in parts)
    ):
        raise InvalidRequest(f"invalid MAC address: {text[:64]!r}")
    return ":".join(parts)
