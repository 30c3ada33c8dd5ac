"""What `RUN --mount` asks for, as mounts of the step's instance.  Async.

A bind shows the context, a stage or an image, read only or with writes that are thrown away; a cache is a
named volume; a secret is a file that is gone before the layer is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from insula.build.copying import Copying, Layers
from insula.build.options import Client
from insula.dockerfile.configuration import join_path
from insula.dockerfile.mounts import RunMount
from insula.errors import InvalidRequest
from insula.model.mounts import MountKind, MountSpec
from insula.system.files import remove_tree
from insula.system.mounts import mount_overlay, umount
from insula.volumes.copy_up import copy_up
from insula.volumes.volumes import Volumes

CACHE_LABEL = "com.insula.build-cache"
_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Of one build: `run` is for mount points and secrets, `state` for what may be large.  `mounts` is how
    the names of what an instance is to see begin: in a directory that the runtimes' namespace shares."""

    run: str
    state: str
    mounts: str


def cache_volume(ident: str) -> str:
    return f"build-cache-{hashlib.sha256(ident.encode()).hexdigest()[:32]}"


class RunMounts:
    """`find_root` gives the layers of a stage or image by name ("": the context)."""

    def __init__(
        self,
        places: Places,
        copying: Copying,
        volumes: Volumes,
        client: Client,
        find_root: Callable[[str], Awaitable[Layers]],
    ) -> None:
        self._places = places
        self._copying = copying
        self._volumes = volumes
        self._client = client
        self._find_root = find_root

    @asynccontextmanager
    async def made(
        self, mounts: Sequence[RunMount], working_dir: str
    ) -> AsyncIterator[tuple[tuple[MountSpec, ...], tuple[str, ...]]]:
        """Mounts, and environment entries; gone when the context is left.  Raises InvalidRequest."""
        async with AsyncExitStack() as stack:
            specs: list[MountSpec] = []
            env: list[str] = []
            for number, mount in enumerate(mounts):
                target = join_path(working_dir, mount.target) if mount.target else ""
                match mount.kind:
                    case "tmpfs":
                        options = (f"size={mount.size}",) if mount.size else ()
                        specs.append(MountSpec(kind=MountKind.TMPFS, target=target, options=options))
                    case "cache":
                        specs.append(await self._cache(mount, target, stack))
                    case "bind":
                        specs.append(await self._bind(number, mount, target, stack))
                    case "ssh":
                        if (agent := await self._agent(number, mount, target, stack)) is not None:
                            specs.append(agent)
                            env.append(f"SSH_AUTH_SOCK={target}")
                    case _:
                        if (secret := await self._secret(mount)) is None:
                            continue
                        if mount.env:
                            env.append(f"{mount.env}={secret.decode(errors='surrogateescape')}")
                        if target:
                            specs.append(self._file(number, mount, target, secret, stack))
            yield tuple(specs), tuple(env)

    async def _cache(self, mount: RunMount, target: str, stack: AsyncExitStack) -> MountSpec:
        name = cache_volume(mount.id)
        if mount.private:  # the first of its kind that nobody uses now
            numbered = (name if number == 0 else f"{name}-{number}" for number in itertools.count())
            name = next(n for n in numbered if n not in _locks or not _locks[n].locked())
        if mount.locked or mount.private:
            await stack.enter_async_context(_locks.setdefault(name, asyncio.Lock()))
        if not self._volumes.have(name):
            await self._make_cache(name, mount)
        return MountSpec(
            kind=MountKind.VOLUME, source=name, target=target, read_only=not mount.writable, no_copy=True
        )

    async def _make_cache(self, name: str, mount: RunMount) -> None:
        """Empty, or with what `from` has."""
        volume = await self._volumes.create(name, labels={CACHE_LABEL: mount.id})
        try:
            if mount.source_stage:
                layers = await self._find_root(mount.source_stage)
                path = "/" + mount.source.strip("/")
                if await copy_up(layers, path, volume.mountpoint, scratch=self._places.run):
                    return
            os.chown(volume.mountpoint, mount.uid, mount.gid)
            os.chmod(volume.mountpoint, 0o755 if mount.mode is None else mount.mode)
        except BaseException:
            await self._volumes.remove(name, force=True, users=lambda _: ())
            raise

    async def _bind(self, number: int, mount: RunMount, target: str, stack: AsyncExitStack) -> MountSpec:
        layers = await self._find_root(mount.source_stage)
        inner, _ = await self._copying.find(layers, mount.source or "/")
        place = f"{self._places.mounts}-{number}"
        os.mkdir(place, 0o755)
        stack.callback(os.rmdir, place)
        upper = work = ""
        if mount.writable:
            upper, work = f"{self._places.state}/upper{number}", f"{self._places.state}/work{number}"
            for directory in (upper, work):
                os.mkdir(directory, 0o755)
                stack.push_async_callback(asyncio.to_thread, remove_tree, directory)
        mount_overlay(place, layers, upper=upper, work=work)
        stack.callback(umount, place)
        source = f"{place}/{inner}" if inner else place
        return MountSpec(kind=MountKind.BIND, source=source, target=target, read_only=not mount.writable)

    async def _agent(
        self, number: int, mount: RunMount, target: str, stack: AsyncExitStack
    ) -> MountSpec | None:
        path = f"{self._places.run}/ssh{number}"
        if not await stack.enter_async_context(self._client.ssh_agent(mount.id, path)):
            if mount.required:
                raise InvalidRequest(f"no SSH key {mount.id} forwarded from the client", hint="--ssh")
            return None
        os.chown(path, mount.uid, mount.gid)
        os.chmod(path, 0o600 if mount.mode is None else mount.mode)
        return MountSpec(kind=MountKind.BIND, source=path, target=target)

    async def _secret(self, mount: RunMount) -> bytes | None:
        secret = await self._client.secret(mount.id)
        if secret is None and mount.required:
            raise InvalidRequest(
                f"secret {mount.id}: not found", hint=f"build --secret id={mount.id},src=FILE"
            )
        return secret

    def _file(
        self, number: int, mount: RunMount, target: str, secret: bytes, stack: AsyncExitStack
    ) -> MountSpec:
        path = f"{self._places.run}/secret{number}"
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secret)
        stack.callback(os.unlink, path)
        os.chown(path, mount.uid, mount.gid)
        os.chmod(path, 0o400 if mount.mode is None else mount.mode)
        return MountSpec(kind=MountKind.BIND, source=path, target=target, read_only=True)
