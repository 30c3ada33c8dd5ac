"""The whole engine behind a real API socket, with no privilege.

The fake backend, roots that are not mounted, networks that are only addresses.  For contract tests of
the API; nothing here decides what the engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from insula.api.server import Server, serve
from insula.config import Settings
from insula.engine.engine import Engine
from insula.events import EventBus
from insula.images.images import Images
from insula.images.roots import Roots
from insula.isolation.fake import FakeBackend
from insula.model.image import HistoryEntry, Image, ImageConfig, Platform
from insula.model.isolation import Isolation
from insula.model.network import Endpoint, LinkKind, Network, PortBinding
from insula.model.progress import Progress, no_progress
from insula.model.root import DirectoryRoot, DiskRoot
from insula.network.networks import Networks
from insula.store.store import Store
from insula.volumes.volumes import Volumes

IMAGE = "busybox:latest"
IMAGE_ID = "sha256:" + "ab" * 32


class PlainRoots(Roots):
    """Directories, not mounted."""

    def layer_directories(self, image: Image) -> tuple[str, ...]:
        return (self._images_dir,)

    async def make_directory(
        self, image: Image, instance_id: str, *, volatile: bool = False
    ) -> DirectoryRoot:
        state = f"{self._instances_dir}/{instance_id}"
        root = DirectoryRoot(
            merged=f"{state}/merged", lowers=(), upper=f"{state}/upper", work=f"{state}/work"
        )
        for path in (root.merged, root.upper, root.work):
            os.makedirs(path)
        return root

    async def make_disk(
        self, image: Image, instance_id: str, *, size_gib: int, progress: Progress = no_progress
    ) -> DiskRoot:
        return DiskRoot(image_disk="/nowhere/image.erofs", upper_disk="/nowhere/upper.ext4")

    async def mount(self, root: DirectoryRoot) -> None:
        pass

    async def unmount(self, root: DirectoryRoot) -> None:
        pass


class PlainNetworks(Networks):
    """Addresses and ports on paper."""

    async def start(self) -> None:
        self._paper: dict[str, Endpoint] = {}
        self._published: dict[str, tuple[PortBinding, ...]] = {}
        self._bridge_network = Network(
            id="cd" * 32, name="bridge", driver="bridge", bridge="insula0", subnet="172.29.0.0/16",
            gateway="172.29.0.1",
        )  # fmt: skip
        self._catalog = {
            n.id: n
            for n in (
                self._bridge_network,
                Network(id="ce" * 32, name="host", driver="host"),
                Network(id="cf" * 32, name="none", driver="null"),
            )
        }

    async def stop(self) -> None:
        pass

    async def recover(self, live: Set[str]) -> None:
        pass

    def endpoint(self, instance_id: str) -> Endpoint | None:
        return self._paper.get(instance_id)

    def ports(self, instance_id: str) -> tuple[PortBinding, ...]:
        return self._published.get(instance_id, ())

    async def connect(
        self, instance_id: str, network: str, kind: LinkKind, *, hostname: str = "", mac: str = ""
    ) -> Endpoint:
        target = self.find(network)
        endpoint = Endpoint(
            network_id=target.id, network_name=target.name, kind=kind, link="iv0", interface="eth0",
            mac=mac or "02:42:ac:1d:00:02", address=f"172.29.0.{2 + len(self._paper)}", prefix_len=16,
            gateway="172.29.0.1", netns="/nowhere", endpoint_id="ef" * 32,
        )  # fmt: skip
        self._paper[instance_id] = endpoint
        return endpoint

    async def empty_namespace(self, instance_id: str) -> str:
        return "/nowhere"

    async def publish(
        self, instance_id: str, endpoint: Endpoint, bindings: Sequence[PortBinding], *, name: str = ""
    ) -> tuple[PortBinding, ...]:
        decided = tuple(
            dataclasses.replace(b, host_port=b.host_port or 49153 + i) for i, b in enumerate(bindings)
        )
        self._published[instance_id] = decided
        return decided

    async def disconnect(self, instance_id: str) -> None:
        self._paper.pop(instance_id, None)
        self._published.pop(instance_id, None)


@dataclass(slots=True, kw_only=True)
class House:
    engine: Engine
    server: Server
    backend: FakeBackend
    socket: str

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    async def docker(self, *words: str, stdin: bytes | None = None, timeout_s: float = 60) -> Done:
        """The stock client, to its end."""
        directory = os.path.dirname(self.socket)
        child = await asyncio.create_subprocess_exec(
            "docker", "-H", self.host, *words,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "DOCKER_CONFIG": f"{directory}/docker"},
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await child.communicate(stdin)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert child.returncode is not None
        return Done(code=child.returncode, out=out, err=err.decode())

    async def ok(self, *words: str, stdin: bytes | None = None) -> str:
        """`docker` that must work: its output without the last newline."""
        done = await self.docker(*words, stdin=stdin)
        assert done.code == 0, f"docker {' '.join(words)}: {done.code}: {done.err}"
        return done.out.decode().removesuffix("\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    code: int
    out: bytes
    err: str


def make_image() -> Image:
    return Image(
        id=IMAGE_ID,
        config=ImageConfig(
            command=("sh",), env=("PATH=/bin",), labels={"from": "image"}, exposed_ports=("8080/tcp",)
        ),
        platform=Platform(),
        diff_ids=(),
        layers=(),
        created="2026-01-02T03:04:05Z",
        history=(HistoryEntry(created="2026-01-02T03:04:05Z", created_by="make", empty_layer=True),),
        size_bytes=4096,
    )


@contextlib.asynccontextmanager
async def start_house(directory: Path) -> AsyncIterator[House]:
    """An engine with one image, answering on a unix socket under `directory`."""
    data, run = str(directory / "data"), str(directory / "run")
    for path in (f"{data}/instances", f"{data}/images", f"{data}/volumes", f"{run}/instances"):
        os.makedirs(path)
    socket = str(directory / "api.sock")
    settings = Settings(data_root=data, exec_root=run, host=(f"unix://{socket}",))
    async with contextlib.AsyncExitStack() as stack:
        store = Store(f"{data}/insula.db")
        stack.callback(store.close)
        events = EventBus()
        store.put_image(make_image())
        store.set_tag(IMAGE, IMAGE_ID)
        images = Images(f"{data}/images", store, events)
        await images.start()
        roots = PlainRoots(f"{data}/images", f"{data}/instances", run)
        networks = PlainNetworks(
            store, bridge="insula0", subnet=settings.subnet, exec_root=run, events=events
        )
        await networks.start()
        volumes = Volumes(f"{data}/volumes", store, events)
        await volumes.start()
        backend = FakeBackend()
        vm = FakeBackend(Isolation.VM)
        engine = Engine(
            settings, store, events, images, roots, networks, volumes,
            {Isolation.PROCESS: backend, Isolation.VM: vm},
        )  # fmt: skip
        await engine.start()
        stack.push_async_callback(engine.stop)
        server = await stack.enter_async_context(serve(engine, settings))
        house = House(engine=engine, server=server, backend=backend, socket=socket)
        try:
            yield house
        finally:
            for instance in engine.list(all=True):
                await engine.remove(instance.id, force=True)
