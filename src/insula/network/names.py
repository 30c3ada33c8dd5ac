"""/etc/hosts and /etc/resolv.conf of an instance, in Docker's form.  Pure, but for `read_resolv_conf`.

Formats after moby: libnetwork/etchosts and libnetwork/resolvconf.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence

from insula.errors import InvalidRequest

_HOSTS = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::0", "ip6-localnet"),
    ("ff00::0", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)

HOST_GATEWAY = "host-gateway"

# Where nothing else is left, as in Docker: an instance that cannot look up names surprises more people
# than one that asks Google.  `--dns` or the daemon's `dns` setting come first.
FALLBACK_DNS = ("8.8.8.8", "8.8.4.4")

_RESOLV_CONF = "/etc/resolv.conf"
_RESOLVED = "/run/systemd/resolve/resolv.conf"


def finalize_hosts(
    hostname: str,
    addresses: Sequence[str],
    extra_hosts: Sequence[str] = (),
    *,
    domainname: str = "",
    host_gateway: str = "",
    linked: Sequence[tuple[str, str]] = (),
) -> str:
    """`extra_hosts` are `name:address`, or `name:host-gateway` for the host as the instance sees it; `linked`
    are others' addresses, and names.  Raises InvalidRequest for what is neither."""
    lines = [f"{address}\t{names}" for address, names in _HOSTS]
    lines += [_extra_line(entry, host_gateway) for entry in extra_hosts]
    lines += [f"{address}\t{names}" for address, names in linked]
    full = f"{hostname}.{domainname}" if domainname else hostname
    short = full.partition(".")[0]
    names = full if short == full else f"{full} {short}"
    lines += [f"{address}\t{names}" for address in addresses]
    return "\n".join(lines) + "\n"


def _extra_line(entry: str, host_gateway: str) -> str:
    # docker's clients send `name:address`; the `=` of their command line may come through as it is
    at = min((i for i in (entry.find(":"), entry.find("=")) if i >= 0), default=len(entry))
    name, address = entry[:at], entry[at + 1 :]
    if address == HOST_GATEWAY:
        if not host_gateway:
            raise InvalidRequest(
                f'unable to derive the IP value for host-gateway (extra host "{entry}")',
                hint="it needs a network with a gateway",
            )
        address = host_gateway
    try:
        parsed = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InvalidRequest(f'bad format for add-host: "{entry}"', hint="write name:address") from None
    if not name:
        raise InvalidRequest(f'bad format for add-host: "{entry}"', hint="write name:address")
    return f"{parsed}\t{name}"


def finalize_resolv_conf(
    host_text: str, dns: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    """What is given replaces what the host has, kind by kind; `search .` means none.

    Of the host's servers those on loopback are left out (there is nothing behind them in an instance's
    network) and IPv6 ones too (its network has no IPv6); `FALLBACK_DNS` if that leaves none.
    """
    host = _parse(host_text)
    servers = list(dns) or [each for each in host["nameserver"] if _reachable(each)] or list(FALLBACK_DNS)
    domains = list(search) or host["search"]
    flags = list(options) or host["options"]
    lines = [f"nameserver {server}" for server in servers]
    if domains and domains != ["."]:
        lines.append("search " + " ".join(domains))
    if flags:
        lines.append("options " + " ".join(flags))
    return "\n".join(lines) + "\n"


def finalize_stub_resolv_conf(
    host_text: str, resolver: str, search: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    """Of an instance on a user-defined network: `resolver` answers everything, single words first (Docker's
    ndots:0)."""
    host = _parse(host_text)
    lines = [f"nameserver {resolver}"]
    domains = list(search) or host["search"]
    if domains and domains != ["."]:
        lines.append("search " + " ".join(domains))
    flags = list(options) or host["options"]
    if not any(flag.startswith("ndots:") for flag in flags):
        flags.append("ndots:0")
    lines.append("options " + " ".join(flags))
    return "\n".join(lines) + "\n"


def parse_servers(text: str) -> tuple[str, ...]:
    """Whom a resolv.conf names, loopback included: for who asks from the host's own network."""
    return tuple(server for server in _parse(text)["nameserver"] if _is_address(server)) or FALLBACK_DNS


def has_reachable_server(text: str) -> bool:
    return any(_reachable(server) for server in _parse(text)["nameserver"])


def read_resolv_conf() -> str:
    """The host's resolv.conf; where it names only loopback servers (systemd-resolved's stub), the list
    that systemd-resolved itself uses, if there is one.  Synchronous."""
    text = _read(_RESOLV_CONF)
    if not has_reachable_server(text) and has_reachable_server(behind := _read(_RESOLVED)):
        return behind
    return text


def _read(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _parse(text: str) -> dict[str, list[str]]:
    """Servers add up; of `search` (or the older `domain`) and `options` the last line counts."""
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        key, *values = line.split("#")[0].split(";")[0].split() or [""]
        if key == "nameserver":
            found[key] += values[:1]
        elif key in ("search", "domain"):
            found["search"] = values
        elif key == "options":
            found[key] = values
    return found


def _is_address(server: str) -> bool:
    try:
        ipaddress.ip_address(server)
    except ValueError:
        return False
    return True


def _reachable(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback and not address.is_unspecified
