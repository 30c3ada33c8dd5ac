"""Where a registry's API is: mirrors, `docker.io`'s real host, and when plain http is allowed.  Pure.

Plain http, and https with a certificate nobody signed, are for loopback addresses and for registries
named in `insecure-registry`; https is tried first for those too.  A mirror stands in for docker.io only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from insula.errors import InvalidRequest
from insula.model.reference import DEFAULT_DOMAIN, Reference

_HUB = "registry-1.docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`urls` are tried in order until one speaks; the first is https unless a mirror's own URL says http.
    `verify` False: any certificate does.  `is_mirror`: no credentials of the registry go there."""

    urls: tuple[str, ...]
    verify: bool = True
    is_mirror: bool = False

    @property
    def key(self) -> str:
        return self.urls[0]


def split_host(domain: str) -> tuple[str, int | None]:
    """`[::1]:5000` → (`::1`, 5000).  Raises InvalidRequest when that is no host."""
    try:
        parts = urlsplit(f"//{domain}")
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"{domain}: not a host: {error}") from None
    if not parts.hostname:
        raise InvalidRequest(f"{domain}: not a host")
    return parts.hostname, port


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_insecure(domain: str, insecure: Sequence[str]) -> bool:
    """May this registry be spoken to without a certificate that verifies?  `insecure` holds hosts, hosts
    with ports, and networks (`10.0.0.0/8`, matched against a domain that is an address)."""
    host, _ = split_host(domain)
    if is_loopback(host):
        return True
    for entry in insecure:
        if entry in (domain, host):
            return True
        if "/" in entry:
            try:
                if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                    return True
            except ValueError:
                continue
    return False


def _make_mirror(url: str, insecure: Sequence[str]) -> Endpoint:
    base = url if "://" in url else f"https://{url}"
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise InvalidRequest(f"registry-mirror: {url!r} is not a URL such as https://mirror.example")
    allowed = is_insecure(parts.netloc.rpartition("@")[2], insecure)
    if parts.scheme == "http" and not allowed:
        raise InvalidRequest(
            f"registry-mirror: {url} is plain http and not a loopback address",
            hint=f"add insecure-registry = [{parts.netloc!r}] if that is meant",
        )
    return Endpoint(urls=(base.rstrip("/"),), verify=not allowed, is_mirror=True)


def find_endpoints(
    reference: Reference, *, mirrors: Sequence[str] = (), insecure: Sequence[str] = ()
) -> tuple[Endpoint, ...]:
    """Endpoints to try in order.  Raises InvalidRequest for a mirror that is not an acceptable URL."""
    if reference.domain == DEFAULT_DOMAIN:
        hub = Endpoint(urls=(f"https://{_HUB}",))
        return (*(_make_mirror(mirror, insecure) for mirror in mirrors), hub)
    if is_insecure(reference.domain, insecure):
        urls = (f"https://{reference.domain}", f"http://{reference.domain}")
        return (Endpoint(urls=urls, verify=False),)
    return (Endpoint(urls=(f"https://{reference.domain}",)),)
