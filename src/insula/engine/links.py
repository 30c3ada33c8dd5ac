"""Legacy links (`--link`) between instances on the default bridge.  Async where an instance is changed.

An instance that links to another finds it in /etc/hosts, by the alias, and what the other has exposed and was
given in its environment: the names are moby's (daemon/links).  Links know the other by its id.  On a
user-defined network a link is no more than a name that only one instance uses; that is the network room's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from insula.engine.instances import Entry, Instances
from insula.engine.operations import exclusive
from insula.engine.planner import Attachment, attachment, parse_exposed
from insula.errors import Conflict, Failure, InsulaError, InvalidRequest, NoSuchInstance
from insula.model.instance import InstanceSpec, State

if TYPE_CHECKING:
    from insula.engine.kit import Kit
    from insula.engine.preparation import Preparation

log = logging.getLogger(__name__)

_DEFAULT_BRIDGE = "bridge"
_NOT_PASSED_ON = ("HOME", "PATH")
_PATIENCE_S = 5.0

Find = Callable[[str], Entry]


def check_link_mode(spec: InstanceSpec) -> None:
    """moby's runconfig errors.  Raises InvalidRequest."""
    how, _ = attachment(spec)
    words = {Attachment.HOST: "host type networking", Attachment.JOIN: "container type network"}
    if spec.links and how in words:
        raise InvalidRequest(
            f"conflicting options: {words[how]} can't be used with links. "
            "This would result in undefined behavior"
        )
    if spec.links and how is Attachment.NONE:
        raise InvalidRequest("conflicting options: links need a network, and the network mode is none")


def settle_links(spec: InstanceSpec, find: Find) -> InstanceSpec:
    """With the ids of those it links to.  Raises InvalidRequest."""
    settled = []
    for link in spec.links:
        ref, _, alias = link.partition(":")
        try:
            other = find(ref)
        except NoSuchInstance as error:  # a 404 would have the docker client pull the image
            raise InvalidRequest(f"could not get container for {ref}: {error.message}") from None
        if attachment(other.record.spec)[0] is Attachment.HOST:
            check_link_mode(dataclasses.replace(spec, network_mode="host"))
        settled.append(f"{other.id}:{alias}")
    aliases = [link.partition(":")[2] for link in settled]
    if twice := next((alias for alias in aliases if aliases.count(alias) > 1), ""):
        raise Conflict(
            f'Conflict. The link name "{twice}" is already in use by another link of this container'
        )
    return dataclasses.replace(spec, links=tuple(settled))


def linked(entry: Entry, find: Find) -> Iterable[tuple[str, Entry]]:
    """(alias, the other) of those that still exist."""
    for link in entry.record.spec.links:
        instance_id, _, alias = link.partition(":")
        try:
            yield alias, find(instance_id)
        except NoSuchInstance:
            continue


def link_environment(
    parent: str, alias: str, address: str, env: Iterable[str], exposed: Iterable[str]
) -> tuple[str, ...]:
    """What the instance `parent` is told of the one that it calls `alias`.  Pure."""
    word = alias.upper().replace("-", "_")
    ports = sorted(
        {pair for text in exposed for pair in parse_exposed(text)},
        key=lambda pair: (pair[1] != "tcp", pair[1], pair[0]),
    )
    found: list[str] = []
    if ports:
        found.append(f"{word}_PORT={_url(*ports[0], address)}")
    for port, protocol in ports:
        prefix = f"{word}_PORT_{port}_{protocol.upper()}"
        found += [
            f"{prefix}={_url(port, protocol, address)}",
            f"{prefix}_ADDR={address}",
            f"{prefix}_PORT={port}",
            f"{prefix}_PROTO={protocol}",
        ]
    for first, last, protocol in _runs(ports):
        prefix = f"{word}_PORT_{first}_{protocol.upper()}"
        found += [
            f"{prefix}_START={_url(first, protocol, address)}",
            f"{prefix}_PORT_START={first}",
            f"{prefix}_END={_url(last, protocol, address)}",
            f"{prefix}_PORT_END={last}",
        ]
    found.append(f"{word}_NAME=/{parent}/{alias}")
    for entry in env:
        name, equals, value = entry.partition("=")
        if equals and name not in _NOT_PASSED_ON:
            found.append(f"{word}_ENV_{name}={value}")
    return tuple(found)


def _url(port: int, protocol: str, address: str) -> str:
    return f"{protocol}://{address}:{port}"


def _runs(ports: list[tuple[int, str]]) -> Iterable[tuple[int, int, str]]:
    """First and last of more than one port in a row."""
    at = 0
    while at < len(ports):
        end = at
        while end + 1 < len(ports) and ports[end + 1] == (ports[end][0] + 1, ports[at][1]):
            end += 1
        if end > at:
            yield ports[at][0], ports[end][0], ports[at][1]
        at = end + 1


class Links:
    def __init__(self, kit: Kit, instances: Instances) -> None:
        self._kit = kit
        self._instances = instances

    def environment(self, entry: Entry, *, starting: bool = False) -> tuple[str, ...]:
        """`starting`: those it links to must run.  Raises Failure, in Docker's words."""
        found: tuple[str, ...] = ()
        name = entry.record.name
        for alias, other in linked(entry, self._instances.find):
            address = self._address(other)
            if starting and not other.alive:
                raise Failure(
                    f"Cannot link to a non running container: /{other.record.name} AS /{name}/{alias}",
                    hint=f"start {other.record.name} first",
                )
            if starting and not address:
                raise Failure(f"container {other.id} not attached to default bridge network")
            if address:
                config = other.config
                found += link_environment(name, alias, address, config.env, _exposed(other))
        return found

    def hosts(self, entry: Entry) -> tuple[tuple[str, str], ...]:
        """(address, names) for /etc/hosts of those that run."""
        found = []
        for alias, other in linked(entry, self._instances.find):
            if address := self._address(other):
                names = dict.fromkeys((alias, other.config.hostname, other.record.name))
                found.append((address, " ".join(names)))
        return tuple(found)

    def _address(self, other: Entry) -> str:
        endpoints = self._kit.networks.endpoints(other.id) if other.alive else ()
        return next((e.address for e in endpoints if e.network_name == _DEFAULT_BRIDGE), "")

    def shown(self, entry: Entry) -> tuple[tuple[str, str], ...]:
        """(the other's name, alias)."""
        return tuple((other.record.name, alias) for alias, other in linked(entry, self._instances.find))

    def names_of(self, entry: Entry) -> tuple[str, ...]:
        """What others call it: `parent/alias`."""
        return tuple(
            f"{parent.record.name}/{alias}"
            for parent in self._instances.linking()
            for alias, other in linked(parent, self._instances.find)
            if other is entry
        )

    async def follow(self, entry: Entry, preparation: Preparation) -> None:
        """It has another address: those that link to it and run learn it.  Raises nothing: it runs, too."""
        for parent in self._instances.linking():
            if parent.alive and any(other is entry for _, other in linked(parent, self._instances.find)):
                try:
                    await self.refresh(parent, preparation)
                except InsulaError as error:
                    log.warning(
                        "%s keeps an old address of %s: %s", parent.record.name, entry.record.name, error
                    )

    async def refresh(self, entry: Entry, preparation: Preparation) -> None:
        """Write its /etc/hosts as it should be now.  Raises what a backend does."""
        async with exclusive(entry, "link"):
            plan = entry.plan
            if not entry.alive or plan is None:
                return
            endpoints = self._kit.networks.endpoints(entry.id)
            files = preparation.etc_files(entry, endpoints)
            if files != plan.etc_files:
                await self._kit.backend(plan.isolation).set_network(entry.id, endpoints, files)
                self._instances.put_plan(entry, dataclasses.replace(plan, etc_files=files))

    async def unlink(self, parent: Entry, alias: str, preparation: Preparation) -> None:
        """`rm --link parent/alias`.  Raises NoSuchInstance."""
        spec = parent.record.spec
        rest = tuple(link for link in spec.links if link.partition(":")[2] != alias)
        if rest == spec.links:
            raise NoSuchInstance(f"{parent.record.name}/{alias}")
        async with exclusive(parent, "link"):
            self._instances.put(parent, spec=dataclasses.replace(parent.record.spec, links=rest))
        await self.refresh(parent, preparation)

    async def await_restarts(self, entry: Entry) -> None:
        """Those that it links to may be about to be started by their policy, too; some seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                for _, other in linked(entry, self._instances.find):
                    if other.restart_timer is not None:
                        await asyncio.wait([other.restart_timer])
                    if other.record.state is State.RESTARTING:
                        async with other.lock:  # its start has it
                            pass


def _exposed(entry: Entry) -> tuple[str, ...]:
    """What is published is exposed, too, as inspect says."""
    published = (f"{port.container_port}/{port.protocol}" for port in entry.record.spec.ports)
    return (*entry.config.exposed_ports, *published)
