"""Who is called what: the names of instances on user-defined networks.  Pure; for one thread.

As in Docker, an instance finds those that share a network with it, by name, alias, short id and host name,
each also followed by `.` and the network's name.  Who asks is known by the address it asks from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from insula.model.network import Endpoint


@dataclass(frozen=True, slots=True)
class Asker:
    """`forwards`: names that are nobody's may be asked for elsewhere; `dns`: there, () for the host's.
    `links`: on a network, by what only this one calls somebody, that somebody's name."""

    networks: frozenset[str]
    forwards: bool
    dns: tuple[str, ...]
    links: Mapping[tuple[str, str], str] = field(default_factory=dict)


class Directory:
    def __init__(self) -> None:
        self._askers: dict[str, Asker] = {}
        self._names: dict[tuple[str, str], list[str]] = {}
        self._owners: dict[tuple[str, str], str] = {}
        self._called: dict[str, str] = {}
        self._turn = 0

    def replace(self, members: Iterable[tuple[Endpoint, ...]]) -> None:
        """All that is connected now: the endpoints of each instance."""
        self._askers, self._names, self._owners, self._called = {}, defaultdict(list), {}, {}
        for endpoints in members:
            named = [endpoint for endpoint in endpoints if endpoint.is_named]
            if not named:
                continue
            asker = Asker(
                networks=frozenset(endpoint.network_id for endpoint in named),
                forwards=any(endpoint.gateway for endpoint in endpoints),
                dns=named[0].dns,
                links={
                    (endpoint.network_id, called.lower()): name.lower()
                    for endpoint in named
                    for called, name in endpoint.links
                },
            )
            for endpoint in endpoints:
                for source in filter(None, (endpoint.address, endpoint.address6, endpoint.netns)):
                    self._askers[source] = asker
            for endpoint in named:
                self._called[endpoint.network_id] = endpoint.network_name.lower()
                for address in filter(None, (endpoint.address, endpoint.address6)):
                    self._owners[endpoint.network_id, address] = (
                        f"{endpoint.names[0]}.{endpoint.network_name}" if endpoint.names else ""
                    )
                    for name in {name.lower() for name in endpoint.names}:
                        self._names[endpoint.network_id, name].append(address)

    def asker(self, source: str) -> Asker | None:
        """By an address, or by the path of the namespace that it asks in."""
        return self._askers.get(source)

    def find(self, asker: Asker, name: str) -> list[str]:
        """Addresses, each time beginning with another one; [] when the name is nobody's."""
        found: list[str] = []
        for network in sorted(asker.networks):
            inside = name.removesuffix("." + self._called.get(network, ""))
            candidates = {asker.links.get((network, called), called) for called in (name, inside)}
            for candidate in candidates:
                found += self._names.get((network, candidate), ())
        if len(found) < 2:
            return found
        self._turn = (self._turn + 1) % len(found)
        return found[self._turn :] + found[: self._turn]

    def name_of(self, asker: Asker, address: str) -> str:
        """`name.network` of an instance that shares a network with who asks; "" for any other."""
        return next(filter(None, (self._owners.get((n, address)) for n in sorted(asker.networks))), "")
