"""An engine on the fake backend: no privilege, no kernel.

Roots are plain directories and networks give addresses only; both subclass the real ones, so that a verb
that the engine calls wrongly fails here too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.config import Settings
from insula.engine.engine import Engine
from insula.errors import Conflict, Failure
from insula.events import Event, EventBus
from insula.images.images import Images
from insula.images.roots import Roots
from insula.isolation.fake import FakeBackend
from insula.model.ids import make_id
from insula.model.image import Image, ImageConfig, Platform
from insula.model.instance import InstanceSpec
from insula.model.isolation import Isolation
from insula.model.network import Endpoint, LinkKind, PortBinding
from insula.model.progress import Progress, no_progress
from insula.model.root import DirectoryRoot, DiskRoot
from insula.model.stream import Stream
from insula.network.networks import Networks
from insula.store.store import Store
from insula.system.files import remove_tree
from insula.volumes.volumes import Volumes

IMAGE = "busybox:test"
IMAGE_ID = "sha256:" + "5" * 64


class Crash(BaseException):
    """kill -9, as far as one process can play it: whoever touches the world then gets this."""


@dataclass
class Fate:
    """`writes_left`: how many more writes the store takes before everything is dead; None: it lives."""

    writes_left: int | None = None
    death: asyncio.Event = field(default_factory=asyncio.Event)

    def spend(self) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                self.death.set()
        self.check()

    def check(self) -> None:
        if self.death.is_set():
            raise Crash


class PlainRoots(Roots):
    """Directories instead of mounts; `mounted` is what would be."""

    def __init__(self, images_dir: str, instances_dir: str, exec_root: str) -> None:
        super().__init__(images_dir, instances_dir, exec_root)
        self.base = instances_dir
        self.fate = Fate()
        self.mounted: set[str] = set()
        self.broken: str = ""

    def layer_directories(self, image: Image) -> tuple[str, ...]:
        return (os.path.dirname(self.base),)

    async def make_directory(
        self, image: Image, instance_id: str, *, volatile: bool = False
    ) -> DirectoryRoot:
        await asyncio.sleep(0)
        if self.broken:
            raise Failure(self.broken)
        merged = f"{self.base}/{instance_id}/merged"
        os.makedirs(merged)
        self.mounted.add(merged)
        upper = f"{self.base}/{instance_id}/upper"
        os.makedirs(upper)
        return DirectoryRoot(merged=merged, lowers=self.layer_directories(image), upper=upper, work=upper)

    async def make_disk(
        self, image: Image, instance_id: str, *, size_gib: int, progress: Progress = no_progress
    ) -> DiskRoot:
        upper = f"{self.base}/{instance_id}/upper.ext4"
        Path(upper).write_bytes(b"")
        return DiskRoot(image_disk="/image.erofs", upper_disk=upper)

    async def mount(self, root: DirectoryRoot) -> None:
        await asyncio.sleep(0)
        self.fate.check()
        self.mounted.add(root.merged)

    async def unmount(self, root: DirectoryRoot) -> None:
        self.fate.check()
        self.mounted.discard(root.merged)

    async def remove(self, instance_id: str) -> None:
        self.fate.check()
        self.mounted.discard(f"{self.base}/{instance_id}/merged")
        for name in ("merged", "upper"):
            remove_tree(f"{self.base}/{instance_id}/{name}")


class QuietNetworks(Networks):
    """Addresses and port numbers, and nothing in the kernel."""

    def __init__(self, store: Store, *, exec_root: str, events: EventBus) -> None:
        super().__init__(store, bridge="none0", subnet="172.29.0.0/16", exec_root=exec_root, events=events)
        self.fate = Fate()
        self.connected: dict[str, Endpoint] = {}
        self.published: dict[str, tuple[PortBinding, ...]] = {}
        self.empty: set[str] = set()
        self.recovered_with: set[str] | None = None
        self._last = 1

    async def connect(
        self, instance_id: str, network: str, kind: LinkKind, *, hostname: str = "", mac: str = ""
    ) -> Endpoint:
        assert instance_id not in self.connected
        await asyncio.sleep(0)
        self._last += 1
        endpoint = Endpoint(
            network_id="n" * 64,
            network_name=network,
            kind=kind,
            link=f"iv{instance_id[:10]}",
            interface="eth0",
            mac=mac or "02:42:ac:1d:00:02",
            address=f"172.29.0.{self._last}",
            prefix_len=16,
            gateway="172.29.0.1",
            netns="/run/netns/x",
            endpoint_id=make_id(),
        )
        self.connected[instance_id] = endpoint
        return endpoint

    async def empty_namespace(self, instance_id: str) -> str:
        self.empty.add(instance_id)
        return "/run/netns/empty"

    async def publish(
        self, instance_id: str, endpoint: Endpoint, bindings: Sequence[PortBinding], *, name: str = ""
    ) -> tuple[PortBinding, ...]:
        taken = {binding.host_port for ports in self.published.values() for binding in ports}
        if any(binding.host_port in taken for binding in bindings):
            raise Failure("Bind for 0.0.0.0 failed: port is already allocated")
        self.published[instance_id] = tuple(bindings)
        return tuple(bindings)

    async def disconnect(self, instance_id: str) -> None:
        self.fate.check()
        self.connected.pop(instance_id, None)
        self.published.pop(instance_id, None)
        self.empty.discard(instance_id)

    async def recover(self, live: set[str]) -> None:  # type: ignore[override]
        self.recovered_with = set(live)
        for instance_id in [i for i in self.connected if i not in live]:
            await self.disconnect(instance_id)

    def endpoint(self, instance_id: str) -> Endpoint | None:
        return self.connected.get(instance_id)

    def ports(self, instance_id: str) -> tuple[PortBinding, ...]:
        return self.published.get(instance_id, ())


class FaultyBackend(FakeBackend):
    """Breaks where it is told to, once; counts what is launched now."""

    def __init__(self, isolation: Isolation = Isolation.PROCESS) -> None:
        super().__init__(isolation)
        self.break_at = ""
        self.fate = Fate()

    def _break(self, where: str) -> None:
        if self.break_at == where:
            self.break_at = ""
            raise Conflict(f"broken at {where}")

    async def launch(self, plan) -> int:  # type: ignore[no-untyped-def]
        self._break("launch")
        return await super().launch(plan)

    async def release(self, instance_id: str) -> None:
        self._break("release")
        await super().release(instance_id)

    async def discard(self, plan) -> None:  # type: ignore[no-untyped-def]
        self.fate.check()
        await super().discard(plan)

    @property
    def launched(self) -> set[str]:
        return set(self._instances)


@dataclass
class World:
    """What outlives an engine; `engine()` is a daemon's start on it."""

    directory: Path
    settings: Settings = field(init=False)
    store: Store = field(init=False)
    events: EventBus = field(init=False)
    backends: dict[Isolation, FaultyBackend] = field(init=False)
    roots: PlainRoots = field(init=False)
    networks: QuietNetworks = field(init=False)
    fate: Fate = field(default_factory=Fate)

    def __post_init__(self) -> None:
        self.settings = Settings(
            data_root=str(self.directory / "data"), exec_root=str(self.directory / "run")
        )
        for path in (self.settings.data_root, self.settings.exec_root):
            os.makedirs(f"{path}/instances")
        self.store = Store(f"{self.settings.data_root}/insula.db")
        self.events = EventBus()
        self.backends = {isolation: FaultyBackend(isolation) for isolation in Isolation}
        self.roots = PlainRoots(
            f"{self.settings.data_root}/images",
            f"{self.settings.data_root}/instances",
            self.settings.exec_root,
        )
        self.networks = QuietNetworks(self.store, exec_root=self.settings.exec_root, events=self.events)
        self.put_image()
        for room in (self.roots, self.networks, *self.backends.values()):
            room.fate = self.fate
        execute = self.store._db.execute

        def mortal_execute(*args: Any) -> Any:
            self.fate.spend()
            return execute(*args)

        self.store._db.execute = mortal_execute  # type: ignore[method-assign]

    @property
    def backend(self) -> FaultyBackend:
        return self.backends[Isolation.PROCESS]

    def put_image(self, **config: object) -> None:
        image = Image(
            id=IMAGE_ID,
            config=ImageConfig(**{"command": ("sh",), **config}),  # type: ignore[arg-type]
            platform=Platform(),
            diff_ids=(),
            layers=(),
            size_bytes=1000,
        )
        self.store.put_image(image)
        self.store.set_tag(IMAGE, IMAGE_ID)

    async def engine(self) -> Engine:
        images = Images(f"{self.settings.data_root}/images", self.store, self.events)
        await images.start()
        volumes = Volumes(f"{self.settings.data_root}/volumes", self.store, self.events)
        await volumes.start()
        engine = Engine(
            self.settings,
            self.store,
            self.events,
            images,
            self.roots,
            self.networks,
            volumes,
            self.backends,
        )
        await engine.start()
        return engine

    def seen(self, kind: str = "container") -> list[str]:
        return [event.action for event in self.recent() if event.kind == kind]

    def recent(self) -> tuple[Event, ...]:
        return self.events.recent(0, 2**63)


def spec(*command: str, **fields: object) -> InstanceSpec:
    defaults: dict[str, object] = {"image": IMAGE, "isolation": Isolation.PROCESS, "command": command or None}
    return InstanceSpec(**{**defaults, **fields})  # type: ignore[arg-type]


def shell(script: str, **fields: object) -> InstanceSpec:
    return spec("sh", "-c", script, **fields)


async def read_all(stream: Stream) -> bytes:
    found = b""
    while (chunk := await stream.read()) is not None:
        found += chunk.data
    return found
