"""Published ports of instances: held, translated by the firewall, carried by relays; and what else goes with
the endpoints that lead out.  Async.

Done in place, well under a millisecond, but for relays and flows of UDP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from insula.errors import Failure
from insula.model.ids import short_id
from insula.model.network import PortBinding
from insula.network import ports
from insula.network.firewall import ANY_ADDRESS
from insula.network.relays import Relays

if TYPE_CHECKING:
    from insula.network.fabric import Fabric
    from insula.network.segments import Member, Ways
    from insula.store.store import Store

log = logging.getLogger(__name__)

_HOLD_TRIES, _HOLD_PAUSE_S = 20, 0.05


class Publishing:
    def __init__(self, store: Store, fabric: Fabric) -> None:
        self._store = store
        self._fabric = fabric
        self._firewall = fabric.firewall
        self._plumbing = fabric.plumbing
        self.relays = Relays()

    async def stop(self) -> None:
        await self.relays.stop()

    async def publish(
        self, instance_id: str, member: Member, bindings: Sequence[PortBinding], *, host_ip: str, name: str
    ) -> tuple[PortBinding, ...]:
        """All of them or none.  `host_ip`: of those that name no address.  The member has a publisher.

        Raises Failure (port taken), InvalidRequest, UnsupportedField.
        """
        endpoint = member.publisher()
        assert endpoint is not None
        host_ip = "" if host_ip in ANY_ADDRESS else host_ip
        asked = [b if b.host_ip else dataclasses.replace(b, host_ip=host_ip) for b in bindings]
        try:
            held = ports.hold_all(asked)
        except Failure as error:
            raise Failure(
                "driver failed programming external connectivity on endpoint "
                f"{name or short_id(instance_id)} ({endpoint.endpoint_id}): {error.message}",
                hint=error.hint,
            ) from error
        decided = tuple(binding for binding, _ in held)
        before = member.ports
        member.ports = before + decided
        try:
            added = member.ways_out().publications(decided)
            if not self._firewall.change(add=added):
                await self._fabric.write_rules()
            self._store.put_endpoint(instance_id, endpoint, member.ports)
        except BaseException:
            member.ports = before
            self._firewall.change(delete=member.ways_out().publications(decided))
            for _, taken in held:
                taken.close()
            raise
        member.held += held
        self.relays.update(instance_id, member.relays())
        if lasting := {(b.protocol, b.host_port) for b in decided if b.protocol != "tcp"}:
            # flows seen before, which would go on to the host itself
            await self._plumbing.forget_flows(
                lambda flow: (flow.protocol, flow.port) in lasting and flow.answers_from == flow.destination
            )
        return decided

    async def follow(self, instance_id: str, member: Member, before: Ways, *, netns: str) -> None:
        """Default routes and published ports go with the endpoints that lead out; where those publish
        nothing, the ports are free.  `netns`: whose routes are to be set; "" for a new one, which has them,
        and for a VM's, which its backend sets."""
        now = member.ways_out()
        if now == before:
            return
        if netns:
            await self._plumbing.set_default_routes(netns, now.gateways)
        if not member.ports:
            return
        gone = before.publications(member.ports)
        if member.publisher() is None:
            self.relays.update(instance_id, {})
            member.let_go()
            member.ports = ()
        else:
            self.relays.update(instance_id, member.relays())
        if not self._firewall.change(add=member.publications(), delete=gone):
            await self._fabric.write_rules()
        for endpoint in member.endpoints.values():
            self._store.put_endpoint(instance_id, endpoint, member.ports_at(endpoint.network_id))

    async def hold_again(self, instance_id: str, member: Member) -> None:
        """After a restart of the daemon.  A port that another program has taken meanwhile is logged."""
        for binding in member.ports:
            try:
                member.held += await _hold_again(_settled(binding))
            except Failure as error:
                log.warning("instance %s keeps its port, but: %s", short_id(instance_id), error)
        self.relays.update(instance_id, member.relays())

    async def end(self, instance_id: str, member: Member, *, installed: bool) -> None:
        """`installed`: there are rules of the firewall.  New flows find nobody from now on; then
        `forget_flows`."""
        publications = member.publications()
        if publications and installed and not self._firewall.change(delete=publications):
            await self._fabric.write_rules()
        self.relays.update(instance_id, {})
        member.let_go()

    async def forget_flows(self, member: Member) -> None:
        """Those of protocols that have no end, which would lead on to its addresses."""
        if any(binding.protocol != "tcp" for binding in member.ports):
            addresses = {a for e in member.endpoints.values() for a in (e.address, e.address6)}
            await self._plumbing.forget_flows(lambda flow: flow.answers_from in addresses)


async def _hold_again(binding: PortBinding) -> list[ports.Held]:
    """The relay of a daemon that was killed has it until it notices, a moment later.  Raises Failure."""
    for _ in range(_HOLD_TRIES if binding.is_ipv6 else 0):
        with contextlib.suppress(Failure):
            return ports.hold(binding)
        await asyncio.sleep(_HOLD_PAUSE_S)
    return ports.hold(binding)


def _settled(binding: PortBinding) -> PortBinding:
    """As it was published: an older daemon wrote "" for IPv4 alone."""
    return dataclasses.replace(binding, host_ip=binding.host_ip or "0.0.0.0")
