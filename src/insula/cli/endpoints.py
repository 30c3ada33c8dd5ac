"""`--network` and what goes with it, as the endpoints of a create request.  Pure.

The words of the long form are the docker client's; flags such as `--ip` belong to the first network.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from insula.errors import InvalidRequest

ON_DEFAULT = ("default", "bridge", "host", "none")
_WORDS = ("name", "alias", "driver-opt", "ip", "ip6", "link-local-ip", "mac-address")
_SEVERAL = ("alias", "driver-opt", "link-local-ip")

Endpoint = dict[str, Any]


def finalize_endpoints(
    networks: Sequence[str],
    *,
    aliases: Sequence[str] = (),
    links: Sequence[str] = (),
    ip: str | None = None,
    ip6: str | None = None,
    link_local: Sequence[str] = (),
    mac: str | None = None,
) -> tuple[str, dict[str, Endpoint]]:
    """(NetworkMode, EndpointsConfig).  Links of the default bridge are not an endpoint's: the caller's.
    Raises InvalidRequest."""
    parsed = [parse_network(text) for text in networks] or [("default", {})]
    names = [name for name, _ in parsed]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InvalidRequest(f"--network: {twice} is named twice")
    main, first = parsed[0]
    flags = make_endpoint(aliases=aliases, ip=ip, ip6=ip6, link_local=link_local, mac=mac)
    if links and main not in ON_DEFAULT:
        flags["Links"] = list(links)
    for key, value in flags.items():
        if key in first and (key != "IPAMConfig" or set(first[key]) & set(value)):
            raise InvalidRequest(f"--network: {key} is given both with and beside it")
        first[key] = {**first.get(key, {}), **value} if key == "IPAMConfig" else value
    if len(parsed) == 1 and not first:
        return main, {}
    return main, dict(parsed)


def parse_network(text: str) -> tuple[str, Endpoint]:
    """`NETWORK`, or `name=NETWORK,alias=…`.  Raises InvalidRequest."""
    if "=" not in text:
        return text, {}
    found: dict[str, Any] = {word: [] for word in _SEVERAL}
    for part in next(csv.reader([text])):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if not equals or not value or key not in _WORDS:
            hint = "gw-priority needs API 1.48" if key == "gw-priority" else f"known: {', '.join(_WORDS)}"
            raise InvalidRequest(f"--network: {part!r} is not understood", hint=hint)
        if key in _SEVERAL:
            found[key].append(value)
        elif key in found:
            raise InvalidRequest(f"--network: {key} is given twice")
        else:
            found[key] = value
    if "name" not in found:
        raise InvalidRequest(f"--network: {text!r} has no name=")
    endpoint = make_endpoint(
        aliases=found["alias"],
        ip=found.get("ip"),
        ip6=found.get("ip6"),
        link_local=found["link-local-ip"],
        mac=found.get("mac-address"),
        driver_opts=found["driver-opt"],
    )
    return str(found["name"]), endpoint


def make_endpoint(
    *,
    aliases: Sequence[str] = (),
    links: Sequence[str] = (),
    ip: str | None = None,
    ip6: str | None = None,
    link_local: Sequence[str] = (),
    mac: str | None = None,
    driver_opts: Sequence[str] = (),
) -> Endpoint:
    """An EndpointSettings with what was given, and nothing else."""
    ipam = {"IPv4Address": ip, "IPv6Address": ip6, "LinkLocalIPs": list(link_local)}
    endpoint: Endpoint = {
        "MacAddress": mac,
        "IPAMConfig": {key: value for key, value in ipam.items() if value},
        "Aliases": list(aliases),
        "Links": list(links),
        "DriverOpts": dict(option.partition("=")[::2] for option in driver_opts),
    }
    return {key: value for key, value in endpoint.items() if value}
