"""Rooms that leave the kernel alone, for an engine without privilege.

Roots are plain directories and networks only hand out addresses.  Both subclass the real ones, so that a
verb that the engine calls wrongly fails here too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence, Set
from pathlib import Path

from insula.errors import Failure
from insula.events import EventBus
from insula.images.roots import Roots
from insula.model.ids import make_id
from insula.model.image import Image
from insula.model.network import (
    NOTHING_WANTED,
    Endpoint,
    LinkKind,
    Network,
    NetworkRequest,
    PortBinding,
    Wanted,
)
from insula.model.progress import Progress, no_progress
from insula.model.root import DirectoryRoot, DiskRoot
from insula.network.definition import define_network
from insula.network.networks import Networks
from insula.store.store import Store
from insula.system.files import remove_tree

FIRST_FREE_PORT = 49153


class PlainRoots(Roots):
    """Directories instead of mounts; `mounted` is what would be."""

    def __init__(self, images_dir: str, instances_dir: str, exec_root: str) -> None:
        super().__init__(images_dir, instances_dir, exec_root)
        self.base = instances_dir
        self.mounted: set[str] = set()

    def layer_directories(self, image: Image) -> tuple[str, ...]:
        return (os.path.dirname(self.base),)

    async def make_directory(
        self, image: Image, instance_id: str, *, volatile: bool = False
    ) -> DirectoryRoot:
        await asyncio.sleep(0)
        state = f"{self.base}/{instance_id}"
        root = DirectoryRoot(
            merged=f"{state}/merged",
            lowers=self.layer_directories(image),
            upper=f"{state}/upper",
            work=f"{state}/work",
        )
        for path in (root.merged, root.upper, root.work):
            os.makedirs(path)
        self.mounted.add(root.merged)
        return root

    async def make_disk(
        self,
        image: Image,
        instance_id: str,
        *,
        size_gib: int,
        volatile: bool = False,
        progress: Progress = no_progress,
    ) -> DiskRoot:
        upper = f"{self.base}/{instance_id}/upper.ext4"
        Path(upper).write_bytes(b"")
        return DiskRoot(image_disk="/nowhere/image.erofs", upper_disk=upper, volatile=volatile)

    async def mount(self, root: DirectoryRoot) -> None:
        self.mounted.add(root.merged)

    async def unmount(self, root: DirectoryRoot) -> None:
        self.mounted.discard(root.merged)

    async def remove(self, instance_id: str) -> None:
        self.mounted.discard(f"{self.base}/{instance_id}/merged")
        for name in ("merged", "upper", "work"):
            remove_tree(f"{self.base}/{instance_id}/{name}")
        Path(f"{self.base}/{instance_id}/upper.ext4").unlink(missing_ok=True)


async def _nothing(*_: object) -> None:
    pass


class PlainNetworks(Networks):
    """Addresses and port numbers, and nothing in the kernel."""

    def __init__(self, store: Store, *, subnet: str, exec_root: str, events: EventBus) -> None:
        super().__init__(store, bridge="insula0", subnet=subnet, exec_root=exec_root, events=events)
        self._fabric.load()
        self._fabric.plumbing.remove_bridge = _nothing  # type: ignore[method-assign]
        self.connected: dict[str, tuple[Endpoint, ...]] = {}
        self.published: dict[str, tuple[PortBinding, ...]] = {}
        self.recovered_with: set[str] | None = None
        self._last = 1

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def recover(self, live: Set[str]) -> None:
        self.recovered_with = set(live)
        for instance_id in [i for i in self.connected if i not in live]:
            await self.disconnect(instance_id)

    async def create(self, request: NetworkRequest) -> Network:
        """Only the record."""
        made = define_network(request, self.list(), ())
        self._store.put_network(made)
        self._fabric.load()
        return made

    async def remove(self, ref: str) -> None:
        self._store.delete_network(self.find(ref).id)
        self._fabric.load()

    def endpoints(self, instance_id: str) -> tuple[Endpoint, ...]:
        return self.connected.get(instance_id, ())

    def namespace(self, instance_id: str) -> str:
        return "/nowhere"

    def members(self, network_id: str) -> dict[str, Endpoint]:
        return {
            i: e for i, endpoints in self.connected.items() for e in endpoints if e.network_id == network_id
        }

    def ports(self, instance_id: str) -> tuple[PortBinding, ...]:
        return self.published.get(instance_id, ())

    async def connect(
        self,
        instance_id: str,
        network: str,
        kind: LinkKind,
        *,
        wanted: Wanted = NOTHING_WANTED,
        names: Sequence[str] = (),
        dns: Sequence[str] = (),
    ) -> Endpoint:
        target = self.find(network)
        before = self.connected.get(instance_id, ())
        assert target.id not in [endpoint.network_id for endpoint in before]
        await asyncio.sleep(0)
        self._last += 1
        endpoint = Endpoint(
            network_id=target.id,
            network_name=target.name,
            kind=kind,
            link=f"iv{instance_id[:10]}",
            interface=f"eth{len(before)}",
            mac=wanted.mac or "02:42:ac:1d:00:02",
            address=wanted.address or f"172.29.0.{self._last}",
            prefix_len=16,
            gateway="172.29.0.1",
            netns="/nowhere",
            endpoint_id=make_id(),
            names=tuple(names),
            more=wanted.more,
            links=wanted.links,
        )
        self.connected[instance_id] = (*before, endpoint)
        return endpoint

    async def leave(self, instance_id: str, network_id: str) -> None:
        before = self.connected.get(instance_id, ())
        self.connected[instance_id] = tuple(e for e in before if e.network_id != network_id)
        if not self.connected[instance_id]:
            self.published.pop(instance_id, None)

    def rename(self, instance_id: str, old: str, new: str) -> None:
        pass

    async def empty_namespace(self, instance_id: str) -> str:
        return "/nowhere"

    async def publish(
        self, instance_id: str, bindings: Sequence[PortBinding], *, name: str = ""
    ) -> tuple[PortBinding, ...]:
        taken = {binding.host_port for ports in self.published.values() for binding in ports}
        decided: list[PortBinding] = []
        for binding in bindings:
            port = binding.host_port or next(p for p in range(FIRST_FREE_PORT, 1 << 16) if p not in taken)
            if port in taken:
                raise Failure("Bind for 0.0.0.0 failed: port is already allocated")
            taken.add(port)
            decided.append(dataclasses.replace(binding, host_port=port))
        self.published[instance_id] = tuple(decided)
        return tuple(decided)

    async def disconnect(self, instance_id: str) -> None:
        self.connected.pop(instance_id, None)
        self.published.pop(instance_id, None)
