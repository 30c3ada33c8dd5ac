"""Interfaces that a running VM gets and loses.  Async.

The first is on the root bus, where nothing can be plugged: of that only the host's side goes, and the guest
forgets it.  All others are behind the PCI bridge, each in its slot; which link is in which is written down
before anything is done, so that the next daemon knows it too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence

from insula.errors import Conflict, GuestFailed, InsulaError
from insula.isolation.edits import make_edits
from insula.isolation.vm import messages
from insula.isolation.vm.channel import AgentError, translate
from insula.isolation.vm.machine import MOST_NICS
from insula.isolation.vm.record import write_record
from insula.isolation.vm.taps import plug_in_beside
from insula.isolation.vm.vm import Vm
from insula.isolation.vm.wire import Type
from insula.model.mounts import EtcFile
from insula.model.network import Endpoint
from insula.system.tap import open_link

log = logging.getLogger(__name__)

_FREE = ("", "")
_STUCK = ("stuck", "")  # the guest did not let go of the device: its slot is not used again

Slots = dict[int, tuple[str, str]]


def slots_of(vm: Vm) -> Slots:
    """(link, name in the guest) by slot, of those that are in use."""
    assert vm.record is not None
    nics = vm.record.nics
    if nics is None:
        nics = tuple((endpoint.link, endpoint.interface) for endpoint in vm.plan.endpoints)
    return {slot: nic for slot, nic in enumerate(nics) if nic != _FREE}


def choose_slot(slots: Slots) -> int:
    """Pure.  Slot 0 is taken, if only by what the template has.  Raises Conflict when all are."""
    for slot in range(1, MOST_NICS):
        if slot not in slots:
            return slot
    raise Conflict(
        f"a virtual machine has room for {MOST_NICS} network interfaces while it runs",
        hint="disconnect another network, or stop it first",
    )


async def set_network(vm: Vm, endpoints: Sequence[Endpoint], files: Sequence[EtcFile]) -> None:
    """Raises Conflict for a paused VM, or one with too many; Failure, GuestFailed, RuntimeFailed."""
    slots = slots_of(vm)
    _follow_bridge(vm, endpoints, slots)
    links = {endpoint.link for endpoint in endpoints}
    gone = [slot for slot, nic in slots.items() if nic != _STUCK and nic[0] not in links]
    had = {nic[0] for nic in slots.values()}
    fresh = [endpoint for endpoint in endpoints if endpoint.link not in had]
    gateways = _gateways(endpoints)
    edits = tuple(make_edits(vm.plan.etc_files, files))
    if not gone and not fresh and not edits and gateways == _gateways(vm.plan.endpoints):
        _note(vm, endpoints, slots)
        return
    channel = await vm.channel()
    plugged: list[int] = []
    try:
        for endpoint in fresh:
            slot = choose_slot(slots)
            slots[slot] = (endpoint.link, endpoint.interface)
            plugged.append(slot)
            _note(vm, vm.plan.endpoints, slots)
            fd = open_link(endpoint.link)
            try:
                await vm.monitor.plug_in_nic(slot, endpoint.mac, fd)
            finally:
                os.close(fd)
        said = messages.network(
            gone=[slots[slot][1] for slot in gone], plugged_in=fresh, gateways=gateways, edits=edits
        )
        try:
            await channel.request(Type.NETWORK, *said)
        except (AgentError, GuestFailed) as error:
            if fresh:
                reason = translate(error) if isinstance(error, AgentError) else error
                raise GuestFailed(f"the guest does not take its interfaces: {reason}") from error
            # what it is to lose it loses, whether or not it agrees
            log.warning("%s: %s", vm.plan.id[:12], error)
    except BaseException:
        for slot in plugged:
            with contextlib.suppress(InsulaError):
                await _pull_out(vm, slots, slot)
        _note(vm, vm.plan.endpoints, slots)
        raise
    for slot in gone:
        await _pull_out(vm, slots, slot)
    vm.plan = dataclasses.replace(vm.plan, etc_files=tuple(files))
    _note(vm, endpoints, slots)


def _follow_bridge(vm: Vm, endpoints: Sequence[Endpoint], slots: Slots) -> None:
    """The first interface of a VM that was made ahead has a tap of its own: where the bridge was lost and
    made anew, only the one that the network room knows is on it."""
    link = slots.get(0, _FREE)[0]
    if vm.record is not None and vm.record.link and link in {endpoint.link for endpoint in endpoints}:
        plug_in_beside(vm.record.link, link)


async def _pull_out(vm: Vm, slots: Slots, slot: int) -> None:
    released = await vm.monitor.pull_out_nic(slot)
    if slot == 0:
        vm.let_go_tap()
    if released:
        del slots[slot]
    else:
        slots[slot] = _STUCK


def _gateways(endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    return tuple(gateway for endpoint in endpoints for gateway in endpoint.gateways)


def _note(vm: Vm, endpoints: Sequence[Endpoint], slots: Slots) -> None:
    assert vm.record is not None
    nics = tuple(slots.get(slot, _FREE) for slot in range(max(slots, default=-1) + 1))
    vm.plan = dataclasses.replace(vm.plan, endpoints=tuple(endpoints))
    record = dataclasses.replace(vm.record, nics=nics)
    if record != vm.record:
        write_record(vm.plan.run_dir, record)
        vm.record = record
