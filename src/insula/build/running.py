"""RUN: an instance of the image so far, its output to the client, its changes as the next layer.  Async.

The instance has the isolation of the build, so an untrusted RUN can have a kernel of its own.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from insula.build.copying import Copying, Layers
from insula.build.mounting import Places, RunMounts
from insula.build.options import BuildOptions, Output
from insula.build.stage import StageState
from insula.dockerfile.instructions import Run
from insula.engine.types import BUILD_ANNOTATION, CommitSpec, WaitCondition
from insula.errors import BuildStepFailed, InvalidRequest, NotFound, UnsupportedField
from insula.model.health import HealthCheck
from insula.model.ids import short_id
from insula.model.image import Image
from insula.model.instance import ExitStatus, InstanceSpec, LogConfig
from insula.model.isolation import reaches_sockets
from insula.model.mounts import MountKind, MountSpec
from insula.model.stream import Channel, Stream
from insula.system.child import start_child

if TYPE_CHECKING:
    from insula.engine.engine import Engine

_SCRIPT = "/.build-script"


class Running:
    def __init__(
        self,
        engine: Engine,
        options: BuildOptions,
        output: Output,
        *,
        mounts: RunMounts,
        copying: Copying,
        places: Places,
        ident: str,
    ) -> None:
        self._ident = ident
        self._engine = engine
        self._options = options
        self._out = output
        self._mounts = mounts
        self._copying = copying
        self._places = places

    async def run(
        self,
        run: Run,
        command: Sequence[str],
        state: StageState,
        *,
        layers: Layers,
        env: Mapping[str, str],
        created_by: str,
        created: str,
        newest_ns: int | None,
    ) -> Image:
        """The image after the step.  Raises BuildStepFailed, and what keeps an instance from starting."""
        assert state.image is not None
        config = state.configuration.config
        engine, options = self._engine, self._options
        if not reaches_sockets(options.isolation) and any(mount.kind == "ssh" for mount in run.mounts):
            raise UnsupportedField(
                "RUN --mount=type=ssh",
                "a virtual machine cannot reach a socket of the host's",
                hint="a secret",
            )
        async with AsyncExitStack() as stack:
            mounts, more_env = await stack.enter_async_context(
                self._mounts.made(run.mounts, config.working_dir)
            )
            if run.words is None and run.script.startswith("#!"):  # a script that names its interpreter
                mounts = (*mounts, self._script(run.script, stack))
                command = (*_interpreter(run.script), _SCRIPT)
            spec = InstanceSpec(
                image=state.image.id,
                isolation=options.isolation,
                entrypoint=("",),
                command=tuple(command),
                env=(*(f"{name}={value}" for name, value in env.items()), *more_env),
                user=config.user,
                working_dir=config.working_dir,
                health=HealthCheck(test=("NONE",)),
                limits=options.limits,
                mounts=mounts,
                network_mode=run.network or options.network_mode or "default",
                extra_hosts=options.extra_hosts,
                cgroup_parent=options.cgroup_parent,
                security_opt=options.security_opt,
                log=LogConfig(driver="none"),
                annotations={BUILD_ANNOTATION: self._ident},
            )
            instance_id = (await engine.create(spec, None)).id
            kept = False
            try:
                self._out.note(f" ---> Running in {short_id(instance_id)}\n")
                status = await self._follow(instance_id)
                if status.code != 0 or status.error:
                    kept = not options.force_remove
                    raise BuildStepFailed(" ".join(command), status.code, status.error)
                drop = await self._missing(layers, mounts)
                image = await engine.commit(
                    instance_id,
                    CommitSpec(
                        author=state.author,
                        config=config,
                        whole=True,
                        created_by=created_by,
                        created=created,
                        through=self._filter(drop, newest_ns),
                    ),
                )
                kept = not options.remove
            finally:
                if not kept:
                    await asyncio.shield(self._remove(instance_id))
            if not kept:
                self._out.note(f"Removing intermediate container {short_id(instance_id)}\n")
            return image

    def _script(self, text: str, stack: AsyncExitStack) -> MountSpec:
        path = f"{self._places.run}/script"
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        stack.callback(os.unlink, path)
        os.chmod(path, 0o755)
        return MountSpec(kind=MountKind.BIND, source=path, target=_SCRIPT, read_only=True)

    async def _follow(self, instance_id: str) -> ExitStatus:
        """Start it, and tell its output until it has ended."""
        engine = self._engine
        stream = await engine.attach(
            instance_id, stdin=False, stdout=True, stderr=True, logs=False, stream=True
        )
        exited = asyncio.ensure_future(engine.wait(instance_id, WaitCondition.NEXT_EXIT))
        telling = asyncio.create_task(self._tell(stream))
        try:
            await engine.start_instance(instance_id)
            await telling
            return await exited
        finally:
            for task in (telling, exited):
                task.cancel()
            await asyncio.gather(telling, exited, return_exceptions=True)
            await stream.close()

    async def _tell(self, stream: Stream) -> None:
        decoders = {
            channel: codecs.getincrementaldecoder("utf-8")("replace")
            for channel in (Channel.STDOUT, Channel.STDERR)
        }
        while (chunk := await stream.read()) is not None:
            text = decoders[chunk.channel].decode(chunk.data) if chunk.channel in decoders else ""
            if text:
                self._out.log(text, error=chunk.channel is Channel.STDERR)
            await self._out.room()

    async def _remove(self, instance_id: str) -> None:
        with contextlib.suppress(NotFound):
            await self._engine.remove(instance_id, force=True, volumes=True)

    async def _missing(self, layers: Layers, mounts: Sequence[MountSpec]) -> list[str]:
        """What is in the root only to be mounted over: targets, and directories above them, that the image
        has not."""
        targets = [mount.target for mount in mounts]
        return await self._copying.missing(layers, targets) if targets else []

    def _filter(
        self, drop: Sequence[str], newest_ns: int | None
    ) -> Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]] | None:
        if not drop and newest_ns is None:
            return None
        directory = self._places.run

        async def through(layer: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            request = {"directory": directory, "drop": list(drop), "newest_ns": newest_ns}
            async with start_child(
                "insula.build.layer_child", request, stdin=asyncio.subprocess.PIPE
            ) as child:
                feeding = asyncio.create_task(child.feed(layer))
                try:
                    async for piece in child.frames():
                        yield piece
                    await feeding
                finally:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)

        return through


def _interpreter(script: str) -> list[str]:
    """As the kernel reads the first line: a program, and all that follows as one argument."""
    words = script.partition("\n")[0][2:].split(None, 1)
    if not words:
        raise InvalidRequest("RUN: the first line of the here-document names no interpreter")
    return [word.strip() for word in words]
