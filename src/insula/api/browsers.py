"""Web pages are no clients.  Pure, but for the host's name.

A browser sends what any page asks for to any address that its user's machine can reach, the loopback too.
On TCP without client certificates that would make every page that is looked at root on this host: many
requests need no body, and a page may send those unasked (cross-site request forgery).  One whose own name
leads to this host (DNS rebinding) could even read the answers.  What other clients send is not looked at.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from insula.errors import Forbidden

_HINT = "other clients send no such header; a proxy that lets its own pages in here has to take it away"


def refuse_web_pages(headers: Mapping[str, str]) -> None:
    """Raises Forbidden for a request that a page of another site makes in a browser.  `headers`: by their
    names in any case."""
    host = headers.get("Host", "")
    origin = headers.get("Origin")
    if origin is not None and (not host or urlsplit(origin).netloc.lower() != host.lower()):
        raise Forbidden(f"the header Origin says that a web page of {origin[:200]!r} asks", hint=_HINT)
    if headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
        raise Forbidden("the header Sec-Fetch-Site says that a web page of another site asks", hint=_HINT)
    if _is_browser(headers) and not is_own_name(host):
        raise Forbidden(
            f"a browser asks for {host[:200]!r}, and any web page's name may lead here",
            hint="use the address, localhost, or this host's own name",
        )


def _is_browser(headers: Mapping[str, str]) -> bool:
    """Node's and Deno's `fetch` send `Accept-Language: *`, and Node's a `Sec-Fetch-Mode`, but none are."""
    return (
        headers.get("User-Agent", "").startswith("Mozilla/")
        or headers.get("Accept-Language", "*") != "*"
        or "Sec-Fetch-Site" in headers
    )


def is_own_name(host: str) -> bool:
    """Whether it can be the name of this host only: `name`, `name:port`, `address`, `[address]:port`."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # half an address
        return False
    own = socket.gethostname().lower()
    if name in ("localhost", own, own.partition(".")[0]) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
