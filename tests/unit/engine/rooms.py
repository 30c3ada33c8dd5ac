"""An engine on the fake backend: no privilege, no kernel.

Roots, networks and backend are those of `fake_rooms` and `isolation.fake`, made to break or die where a test
says so.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_rooms import PlainNetworks, PlainRoots
from insula.config import Settings
from insula.engine.engine import Engine
from insula.errors import Conflict, Failure
from insula.events import Event, EventBus
from insula.images.images import Images
from insula.isolation.backend import Exec
from insula.isolation.fake import FakeBackend
from insula.model.image import Image, ImageConfig, Platform
from insula.model.instance import InstanceSpec
from insula.model.isolation import Isolation
from insula.model.root import DirectoryRoot
from insula.model.stream import Stream
from insula.store.store import Store
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


class MortalRoots(PlainRoots):
    """They die with their world; `broken` is the reason why none can be made."""

    def __init__(self, images_dir: str, instances_dir: str, exec_root: str) -> None:
        super().__init__(images_dir, instances_dir, exec_root)
        self.fate = Fate()
        self.broken: str = ""

    async def make_directory(
        self, image: Image, instance_id: str, *, volatile: bool = False
    ) -> DirectoryRoot:
        if self.broken:
            raise Failure(self.broken)
        return await super().make_directory(image, instance_id, volatile=volatile)

    async def mount(self, root: DirectoryRoot) -> None:
        await asyncio.sleep(0)
        self.fate.check()
        await super().mount(root)

    async def unmount(self, root: DirectoryRoot) -> None:
        self.fate.check()
        await super().unmount(root)

    async def remove(self, instance_id: str) -> None:
        self.fate.check()
        await super().remove(instance_id)


class MortalNetworks(PlainNetworks):
    def __init__(self, store: Store, *, subnet: str, exec_root: str, events: EventBus) -> None:
        super().__init__(store, subnet=subnet, exec_root=exec_root, events=events)
        self.fate = Fate()

    async def disconnect(self, instance_id: str) -> None:
        self.fate.check()
        await super().disconnect(instance_id)

    async def leave(self, instance_id: str, network_id: str) -> None:
        self.fate.check()
        await super().leave(instance_id, network_id)


class FaultyBackend(FakeBackend):
    """Breaks where it is told to, once; counts what is launched now."""

    def __init__(self, isolation: Isolation = Isolation.PROCESS) -> None:
        super().__init__(isolation)
        self.break_at = ""
        self.fate = Fate()
        self.answers = asyncio.Event()
        """Without it, a release is answered late, as a guest's."""
        self.answers.set()
        self.freezing_s = 0.0
        """How long it takes to freeze; no exec can begin meanwhile."""
        self._freezing = False

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
        await self.answers.wait()

    async def freeze(self, instance_id: str, frozen: bool) -> None:
        self._freezing = frozen
        try:
            await asyncio.sleep(self.freezing_s)
            self._break("freeze")
        finally:
            self._freezing = False
        await super().freeze(instance_id, frozen)

    async def exec(self, instance_id, plan) -> Exec:  # type: ignore[no-untyped-def]
        if self._freezing:
            raise Conflict("it is being frozen")
        return await super().exec(instance_id, plan)

    async def set_network(self, instance_id, endpoints, files) -> None:  # type: ignore[no-untyped-def]
        self.fate.check()
        self._break("set_network")
        await super().set_network(instance_id, endpoints, files)

    def networks_of(self, instance_id: str) -> set[str]:
        """What its workload sees."""
        return {endpoint.network_name for endpoint in self._instances[instance_id].plan.endpoints}

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
    roots: MortalRoots = field(init=False)
    networks: MortalNetworks = field(init=False)
    fate: Fate = field(default_factory=Fate)

    def __post_init__(self) -> None:
        self.settings = Settings(
            data_root=str(self.directory / "data"),
            exec_root=str(self.directory / "run"),
            journal_socket=str(self.directory / "journal.sock"),
        )
        for path in (self.settings.data_root, self.settings.exec_root):
            os.makedirs(f"{path}/instances")
        self.store = Store(f"{self.settings.data_root}/insula.db")
        self.events = EventBus()
        self.backends = {isolation: FaultyBackend(isolation) for isolation in Isolation}
        self.roots = MortalRoots(
            f"{self.settings.data_root}/images",
            f"{self.settings.data_root}/instances",
            self.settings.exec_root,
        )
        self.networks = MortalNetworks(
            self.store,
            subnet=self.settings.subnet,
            exec_root=self.settings.exec_root,
            events=self.events,
        )
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
