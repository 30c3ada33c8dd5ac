"""The tap that a VM which was made ahead came with: it stands in for the one that the network room has made
for it, which stays beside it, unused.  Synchronous."""

from __future__ import annotations

from insula.errors import Failure
from insula.system import links


def plug_in_beside(spare: str, link: str) -> None:
    """To the bridge that `link` is on, as that is.  Nothing changes where it is there.  Raises Failure."""
    with links.open_route() as route:
        found, own = links.find_link(route, link), links.find_link(route, spare)
        if found is None or not found.master:
            raise Failure(f"the tap device {link} is on no bridge")
        if own is None or own.master != found.master or not own.up:
            route.send(*links.port_messages(spare, found.master, isolated=found.isolated, mtu=found.mtu))
