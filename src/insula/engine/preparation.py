"""What an instance needs before its backend can launch it: root, network, ports, files.  Async.

Independent steps run side by side; every step puts its undoing on the stack before it begins, because
the undoings are idempotent and a step may be cut in its middle.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from insula.engine.instances import Entry
from insula.engine.links import Links
from insula.engine.mounting import Mounting
from insula.engine.operations import together
from insula.engine.planner import (
    Attachment,
    Places,
    attachment,
    decide_ports,
    decide_security,
    make_plan,
    names_on,
    wanted_networks,
)
from insula.engine.sharing import network_donor, with_donors
from insula.errors import Failure
from insula.isolation.plan import LaunchPlan, Security
from insula.model.instance import InstanceSpec
from insula.model.isolation import link_kind
from insula.model.mounts import EtcFile, MountKind
from insula.model.network import Endpoint, LinkKind, NetworkSpec, Wanted
from insula.network.names import (
    finalize_hosts,
    finalize_resolv_conf,
    finalize_stub_resolv_conf,
    read_resolv_conf,
)
from insula.security.seccomp import read_default_profile
from insula.system.files import disk_errors
from insula.volumes.checks import prepare_bind

if TYPE_CHECKING:
    from insula.engine.kit import Kit

_RESOLV_CONF = "/etc/resolv.conf"


class Preparation:
    def __init__(self, kit: Kit, mounting: Mounting, links: Links, find: Callable[[str], Entry]) -> None:
        """`find`: an instance by what a user calls it."""
        self.links = links
        self._kit = kit
        self._find = find
        self._mounting = mounting
        self._profile: str | None = None

    def profile(self) -> str:
        """The seccomp profile's text, read once.  Raises Unavailable."""
        if self._profile is None:
            self._profile = read_default_profile()
        return self._profile

    def places(self, instance_id: str) -> Places:
        return Places(
            state_dir=self._kit.state_dir(instance_id),
            run_dir=self._kit.run_dir(instance_id),
            log_path=self._kit.log_path(instance_id),
        )

    async def prepare(self, entry: Entry, undo: AsyncExitStack) -> LaunchPlan:
        """The final plan, with everything that it names in place."""
        spec, draft = entry.record.spec, entry.plan
        if draft is None:
            raise Failure(f"instance {entry.id} has no readable plan", hint="remove it and create it anew")
        places = self.places(entry.id)
        link_env = self.links.environment(entry, starting=True)
        os.makedirs(places.run_dir, mode=0o700, exist_ok=True)
        for mount in entry.record.mounts:
            if mount.kind is MountKind.BIND:
                prepare_bind(mount)
        undo.push_async_callback(self._mounting.volumes.drop, entry)
        mounts = await self._mounting.volumes.hold(entry, draft.mounts)
        (endpoints, netns), _ = await together(self._connect(entry, undo), self._hold_root(entry, undo))
        root = draft.directory or draft.disk
        assert root is not None
        config, host = entry.config, self._joined(entry)
        if host is not None:
            config = dataclasses.replace(config, hostname=host.hostname)
        plan = make_plan(
            entry.id,
            spec,
            config,
            settings=self._kit.settings,
            places=places,
            root=root,
            security=self._with_sysctls(decide_security(spec, self.profile()), spec, endpoints),
            mounts=mounts,
            # of an instance whose network is another's they are the other's own, and change with them
            etc_files=self._not_covered(entry, host.etc_files)
            if host is not None
            else self._write_etc_files(entry, places.state_dir, endpoints),
            endpoints=endpoints,
            netns=netns,
            host_keys=draft.host_keys if not entry.record.started_ns else (),
            link_env=link_env,
        )
        plan = with_donors(plan, entry, self._find)
        return dataclasses.replace(plan, host_network=True) if host and host.host_network else plan

    def _with_sysctls(
        self, security: Security, spec: InstanceSpec, endpoints: tuple[Endpoint, ...]
    ) -> Security:
        """And those that its endpoints have of their own, by the names that their interfaces have got."""
        more: list[tuple[str, str]] = []
        interfaces = {endpoint.network_id: endpoint.interface for endpoint in endpoints}
        for wanted in wanted_networks(spec):
            if wanted.sysctls():
                more += wanted.sysctls(interfaces[self._kit.networks.find(wanted.name).id])
        return dataclasses.replace(security, sysctls=(*security.sysctls, *more)) if more else security

    def _joined(self, entry: Entry) -> LaunchPlan | None:
        """The plan of the instance whose network it is to share, if it is to.  Raises as `network_donor`."""
        how, ref = attachment(entry.record.spec)
        return network_donor(entry, ref, self._find) if how is Attachment.JOIN else None

    async def _hold_root(self, entry: Entry, undo: AsyncExitStack) -> None:
        await self._mounting.hold(entry)
        undo.push_async_callback(self._mounting.drop, entry)

    async def _connect(self, entry: Entry, undo: AsyncExitStack) -> tuple[tuple[Endpoint, ...], str]:
        """(endpoints, path of an empty namespace)."""
        spec, networks = entry.record.spec, self._kit.networks
        how, _ = attachment(spec)
        kind = link_kind(spec.isolation)
        if how is Attachment.HOST:
            return (), ""
        if (host := self._joined(entry)) is not None:
            return (), networks.namespace(host.id) or host.netns
        undo.push_async_callback(networks.disconnect, entry.id)
        wanted = wanted_networks(spec)
        if not wanted:
            # only what takes a namespace needs an empty one
            return (), (await networks.empty_namespace(entry.id) if kind is LinkKind.VETH else "")
        for each in wanted:
            await self.connect(entry, each)
        await self.publish(entry)
        return networks.endpoints(entry.id), ""

    async def publish(self, entry: Entry) -> None:
        """Its ports, unless they are already: the room has them follow the networks from then on.  None while
        no network leads out.  Raises what the network room does."""
        if self._kit.networks.ports(entry.id):
            return
        if ports := decide_ports(entry.record.spec, entry.config):
            await self._kit.networks.publish(entry.id, ports, name=entry.record.name)

    async def connect(self, entry: Entry, wanted: NetworkSpec) -> Endpoint:
        """A place on a network, as its spec wants it.  Raises what the network room does."""
        record = entry.record
        return await self._kit.networks.connect(
            entry.id,
            wanted.name,
            link_kind(record.spec.isolation),
            wanted=finalize_wanted(wanted),
            names=names_on(wanted, name=record.name, instance_id=entry.id, hostname=entry.config.hostname),
            dns=record.spec.dns or self._kit.settings.dns,
        )

    def _write_etc_files(
        self, entry: Entry, state_dir: str, endpoints: tuple[Endpoint, ...]
    ) -> tuple[EtcFile, ...]:
        """hosts, hostname and resolv.conf, unless a mount covers them."""
        files = self._decide_etc_files(entry, state_dir, endpoints)
        with disk_errors(f"writing the files of instance {entry.id}"):
            for each in files:
                # in place and not synced: a bind mount holds the inode, and every start writes it anew
                with open(each.host_path, "w", encoding="utf-8") as file:
                    file.write(each.text)
                os.chmod(each.host_path, 0o644)
        return self._not_covered(entry, files)

    def etc_files(self, entry: Entry, endpoints: tuple[Endpoint, ...]) -> tuple[EtcFile, ...]:
        """What they are to say now, unless a mount covers them; written nowhere."""
        state_dir = self._kit.state_dir(entry.id)
        return self._not_covered(entry, self._decide_etc_files(entry, state_dir, endpoints))

    def _not_covered(self, entry: Entry, files: tuple[EtcFile, ...]) -> tuple[EtcFile, ...]:
        covered = {mount.target for mount in (entry.plan.mounts if entry.plan else ())}
        return tuple(file for file in files if file.target not in covered)

    def _decide_etc_files(
        self, entry: Entry, state_dir: str, endpoints: tuple[Endpoint, ...]
    ) -> tuple[EtcFile, ...]:
        spec, config = entry.record.spec, entry.config
        full = f"{config.hostname}.{spec.domainname}" if spec.domainname else config.hostname
        texts = {
            "/etc/hosts": self._hosts(entry, endpoints),
            "/etc/hostname": f"{config.hostname if not spec.domainname else full}\n",
            _RESOLV_CONF: self._resolv_conf(entry, endpoints),
        }
        return tuple(
            EtcFile(target=target, text=text, host_path=os.path.join(state_dir, os.path.basename(target)))
            for target, text in texts.items()
        )

    def _hosts(self, entry: Entry, endpoints: tuple[Endpoint, ...]) -> str:
        spec = entry.record.spec
        if attachment(spec)[0] is Attachment.HOST and not spec.extra_hosts:
            return _read_host("/etc/hosts")
        addresses = tuple(
            address for endpoint in endpoints for address in (endpoint.address, endpoint.address6) if address
        )
        return finalize_hosts(
            entry.config.hostname,
            addresses,
            spec.extra_hosts,
            domainname=spec.domainname,
            host_gateway=self._host_gateway(entry, endpoints),
            linked=(*self.links.hosts(entry), *self._kit.networks.neighbours(entry.id)),
        )

    def _host_gateway(self, entry: Entry, endpoints: tuple[Endpoint, ...]) -> str:
        """The host as the instance sees it: its way out, else (an internal network, one beside the host, or
        none any more) the default bridge's address, which is Docker's answer always."""
        if gateway := next((e.gateway for e in endpoints if e.default_route and not e.on_parent), ""):
            return gateway
        bridged = attachment(entry.record.spec)[0] is Attachment.BRIDGE
        return self._kit.networks.find("bridge").gateway if bridged else ""

    def _resolv_conf(self, entry: Entry, endpoints: tuple[Endpoint, ...]) -> str:
        spec = entry.record.spec
        if resolver := next((each.resolver for each in endpoints if each.resolver), ""):
            return finalize_stub_resolv_conf(read_resolv_conf(), resolver, spec.dns_search, spec.dns_options)
        dns = spec.dns or self._kit.settings.dns
        if attachment(spec)[0] is Attachment.HOST and not (dns or spec.dns_search or spec.dns_options):
            return _read_host(_RESOLV_CONF)
        return finalize_resolv_conf(read_resolv_conf(), dns, spec.dns_search, spec.dns_options)


def finalize_wanted(spec: NetworkSpec) -> Wanted:
    """Link-local addresses get the whole of their range as their network, as in libnetwork.  Pure."""
    return Wanted(
        mac=spec.mac_address,
        address=spec.ipv4_address,
        address6=spec.ipv6_address,
        more=tuple(f"{address}/{64 if ':' in address else 16}" for address in spec.link_local),
        links=tuple((alias, name) for name, _, alias in (link.partition(":") for link in spec.links)),
    )


def _read_host(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
