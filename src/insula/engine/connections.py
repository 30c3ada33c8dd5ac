"""Networks of an instance that exists: `network connect` and `disconnect`.  Async.

Of one that does not run only what it wants changes.  Of one that runs the network room makes or takes back
the link, and the backend lets the instance have it or not; a line in the journal says which network it is
about, so that after a crash in between the instance is without it, whichever of the two was cut.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from insula.engine.checks import check_predefined
from insula.engine.instances import Entry, Instances
from insula.engine.legality import Action, check, still_running
from insula.engine.operations import Journal, exclusive
from insula.engine.planner import Attachment, attachment, wanted_networks
from insula.engine.preparation import Preparation
from insula.errors import Failure, Forbidden, InvalidRequest, NoSuchNetwork, UnsupportedField
from insula.isolation.plan import LaunchPlan
from insula.model.instance import InstanceSpec
from insula.model.network import SYSCTLS_OPTION, Endpoint, Network, NetworkSpec

if TYPE_CHECKING:
    from insula.engine.kit import Kit

CONNECT, DISCONNECT = "connect", "disconnect"


class Connections:
    def __init__(self, kit: Kit, instances: Instances, preparation: Preparation) -> None:
        self._kit = kit
        self._instances = instances
        self._preparation = preparation

    async def connect(self, entry: Entry, ref: str, wanted: NetworkSpec) -> None:
        """Raises NoSuchNetwork, Forbidden, InvalidRequest, Conflict, Failure; then it is as it was."""
        kit = self._kit
        async with exclusive(entry, "connect") as undo:
            check(Action.CONNECT, entry.record, ref)
            spec = entry.record.spec
            network = kit.networks.find(wanted.name)
            check_predefined(wanted, network.name)
            _check_connectable(spec, network)
            if self._find(spec, network) is not None:
                if not entry.alive:  # moby leaves it as it was; vagrant connects before every start
                    return
                raise Forbidden(
                    f"endpoint with name {entry.record.name} already exists in network {network.name}"
                )
            wanted = dataclasses.replace(wanted, name=kit.networks.reference(network))
            changed = dataclasses.replace(spec, networks=(*wanted_networks(spec), wanted))
            if not entry.alive or entry.plan is None:
                self._instances.put(entry, spec=changed)
                return
            if wanted.sysctls():
                raise UnsupportedField(
                    f"EndpointConfig.DriverOpts.{SYSCTLS_OPTION}",
                    "an instance that runs has its sysctls",
                    hint="stop it, connect it, start it",
                )
            backend = kit.backend(spec.isolation)
            journal = Journal(kit.store, entry.id, CONNECT, network.id)
            undo.callback(journal.end)
            before = entry.plan
            undo.push_async_callback(self._publish_again, entry)
            undo.push_async_callback(kit.networks.leave, entry.id, network.id)
            await self._preparation.connect(entry, wanted)
            await self._preparation.publish(entry)  # if this is the first that leads out
            plan = self._with_network(entry, before, kit.networks.endpoints(entry.id))
            undo.push_async_callback(backend.set_network, entry.id, before.endpoints, before.etc_files)
            with still_running(entry):
                await backend.set_network(entry.id, plan.endpoints, plan.etc_files)
            with kit.store.transaction():
                self._instances.put_plan(entry, plan)
                self._instances.put(entry, spec=changed)
                journal.end()
        await self._preparation.links.follow(entry, self._preparation)

    async def disconnect(self, entry: Entry, ref: str, network_ref: str, *, force: bool) -> None:
        """Raises NoSuchNetwork unless `force`, InvalidRequest, Conflict, Failure when it is not on it."""
        kit = self._kit
        async with exclusive(entry, "disconnect") as undo:
            check(Action.CONNECT, entry.record, ref)
            spec = entry.record.spec
            try:
                network: Network | None = kit.networks.find(network_ref)
            except NoSuchNetwork:
                if not force and entry.alive:
                    raise
                network = None
            if network is not None:
                _check_connectable(spec, network)
            wanted = self._find(spec, network or network_ref)
            if wanted is None:
                raise Failure(
                    f"container {entry.id} is not connected to the network "
                    f"{network.name if network else network_ref}"
                )
            if network is None or not entry.alive or entry.plan is None:
                self._instances.put(entry, spec=_without(spec, wanted))
                return
            journal = Journal(kit.store, entry.id, DISCONNECT, network.id)
            undo.callback(journal.end)
            await self._take_away(entry, network.id)
            journal.end()
            await self._publish_again(entry)

    async def _publish_again(self, entry: Entry) -> None:
        """Its ports, where what leads out now publishes them and what led out before did not."""
        if entry.alive and self._kit.networks.endpoints(entry.id):
            await self._preparation.publish(entry)

    async def settle(self, entry: Entry, network_id: str) -> None:
        """After a crash in the middle of either: without it."""
        await self._take_away(entry, network_id)

    async def _take_away(self, entry: Entry, network_id: str) -> None:
        """Idempotent."""
        kit = self._kit
        spec, plan = entry.record.spec, entry.plan
        if entry.alive and plan is not None:
            rest = [each for each in kit.networks.endpoints(entry.id) if each.network_id != network_id]
            with still_running(entry):  # first: a link must not vanish under a hypervisor that has it open
                await kit.backend(spec.isolation).set_network(entry.id, rest, plan.etc_files)
            await kit.networks.leave(entry.id, network_id)
            # who leads out may be another now
            plan = self._with_network(entry, plan, kit.networks.endpoints(entry.id))
            with still_running(entry):
                await kit.backend(spec.isolation).set_network(entry.id, plan.endpoints, plan.etc_files)
        with kit.store.transaction():
            if plan is not None:
                self._instances.put_plan(entry, plan)
            try:
                wanted = self._find(spec, kit.networks.find(network_id))
            except NoSuchNetwork:
                wanted = None
            if wanted is not None:
                self._instances.put(entry, spec=_without(spec, wanted))

    def _with_network(self, entry: Entry, plan: LaunchPlan, endpoints: tuple[Endpoint, ...]) -> LaunchPlan:
        files = self._preparation.etc_files(entry, endpoints)
        return dataclasses.replace(plan, endpoints=endpoints, etc_files=files)

    def _find(self, spec: InstanceSpec, network: Network | str) -> NetworkSpec | None:
        """What it wants of a network, or of what is called so if there is no such network."""
        for wanted in wanted_networks(spec):
            try:
                known: Network | str = self._kit.networks.find(wanted.name)
            except NoSuchNetwork:
                known = wanted.name
            except InvalidRequest:  # another network has the name, too, since then
                known = network if isinstance(network, Network) and network.name == wanted.name else ""
            if known == network:
                return wanted
        return None


def _without(spec: InstanceSpec, wanted: NetworkSpec) -> InstanceSpec:
    rest = tuple(each for each in wanted_networks(spec) if each != wanted)
    return dataclasses.replace(spec, networks=rest)


def _check_connectable(spec: InstanceSpec, network: Network) -> None:
    """moby's runconfig errors."""
    how, _ = attachment(spec)
    if how is Attachment.JOIN:
        raise InvalidRequest(
            "container sharing network namespace with another container or host cannot be connected to any "
            "other network"
        )
    if how is Attachment.HOST or network.driver == "host":
        raise InvalidRequest(
            "container cannot be disconnected from host network or connected to host network"
        )
    if how is Attachment.NONE or network.driver == "null":
        raise InvalidRequest(
            "container cannot be connected to multiple networks with one of the networks in "
            "private (none) mode"
        )
