"""The whole engine behind a real API socket, with no privilege.

The fake backend and the rooms of `fake_rooms`.  For contract tests of the API; nothing here decides what
the engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fake_rooms import PlainNetworks, PlainRoots
from insula.api.server import Server, serve
from insula.config import Settings
from insula.engine.engine import Engine
from insula.events import EventBus
from insula.images.images import Images
from insula.isolation.fake import FakeBackend
from insula.model.image import HistoryEntry, Image, ImageConfig, Platform
from insula.model.isolation import Isolation
from insula.store.store import Store
from insula.volumes.volumes import Volumes

IMAGE = "busybox:latest"
IMAGE_ID = "sha256:" + "ab" * 32


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
        networks = PlainNetworks(store, subnet=settings.subnet, exec_root=run, events=events)
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
