"""The context: what the client sent, unpacked in a confined child, and the Dockerfile in it.  Async.

The tar is hostile.  It is unpacked as `docker cp` unpacks one (`system.tree`), everything root's, and read
with links followed inside it only.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from insula.build.git import fetch_repository, parse_git
from insula.build.remote import fetch, is_address, is_git
from insula.dockerfile.reader import MAX_BYTES
from insula.dockerfile.stages import Dockerfile
from insula.errors import CorruptData, InvalidRequest, NotFound
from insula.system import tree
from insula.system.child import run_child
from insula.system.decompress import detect
from insula.system.openat import open_beneath, open_in_root

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PIECE = 1 << 18
_MODULE = "insula.build.ignore_child"


@dataclass(frozen=True, slots=True)
class Context:
    """`directory` is on the host, and empty where there is nothing but the Dockerfile.  `named` are further
    directories, by the names that `--from` may give.  `parsed` is the Dockerfile, if it was read already.
    `digests` are, by directory, what a COPY has made of one that is as it was (`build.files`); added to."""

    directory: str
    dockerfile: bytes
    named: Mapping[str, str] = field(default_factory=dict)
    parsed: Dockerfile | None = None
    digests: Mapping[str, dict[str, str]] = field(default_factory=dict)


async def receive_context(
    pieces: AsyncIterator[bytes], place: str, *, dockerfile: str, remote: str, given: bytes | None = None
) -> Context:
    """`place` is an empty directory of the build's own.  `given` is a Dockerfile to take in the place of the
    context's.  Raises InvalidRequest, DiskFull, RegistryFailed."""

    async def done() -> Context:
        return Context(
            directory, given if given is not None else await _take_dockerfile(directory, dockerfile)
        )

    directory = f"{place}/context"
    os.mkdir(directory, 0o755)
    if not remote:
        await unpack_context(pieces, directory)
        return await done()
    if remote == "client-session":
        raise InvalidRequest(
            "remote: client-session is for BuildKit's way over /grpc, not for /build",
            hint="docker buildx build, or DOCKER_BUILDKIT=0",
        )
    if is_git(remote) or remote.startswith("github.com/"):
        await _clone(remote, f"{place}/git", directory)
        return await done()
    if not is_address(remote):
        raise InvalidRequest(f"remote: {remote!r} is not an address", hint="http:// or https://")
    fetched = f"{place}/remote"
    await fetch(remote, fetched)
    try:
        if not _is_tar(fetched):
            return Context(directory, _read_all(fetched))
        await unpack_context(_pieces(fetched), directory)
    finally:
        os.unlink(fetched)
    return await done()


async def _clone(remote: str, place: str, directory: str) -> None:
    """With its .git, as dockerd does it."""
    address = parse_git(remote)
    try:
        await fetch_repository(address, directory, place, keep_git=True)
    except NotFound:
        raise InvalidRequest(f"remote: {address.url} has no directory {address.directory}") from None


async def unpack_context(pieces: AsyncIterator[bytes], directory: str) -> None:
    """A tar of the client's, everything in it root's.  Raises InvalidRequest, DiskFull."""
    try:
        await tree.put(directory, "/", pieces, owner=(0, 0))
    except CorruptData as error:
        raise InvalidRequest(error.message, hint=error.hint) from None


def _is_tar(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(512)
    return bool(detect(start)) or start[257:262] == b"ustar"


def _read_all(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


async def _pieces(path: str) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece


async def _take_dockerfile(directory: str, name: str) -> bytes:
    """What the context has as `name`; it and .dockerignore are taken out of the context if that ignores them
    (the client sends both in any case)."""
    wanted = name.strip() or "Dockerfile"
    root = os.open(directory, _DIRECTORY)
    try:
        names = [wanted, "dockerfile"] if wanted == "Dockerfile" else [wanted]
        for one in names:
            text = _read(root, one)
            if text is not None:
                wanted = one
                break
        else:
            raise InvalidRequest(f"Cannot locate specified Dockerfile: {wanted}")
        if _read(root, ".dockerignore"):
            # patterns may be made to take for ever: that is a child's time, which ends with the build
            request = {"root_fd": root, "names": [".dockerignore", wanted]}
            for one in (await run_child(_MODULE, request, pass_fds=(root,)))["ignored"]:
                _remove(root, one)
        return text
    finally:
        os.close(root)


def _read(root: int, name: str) -> bytes | None:
    try:
        fd = open_in_root(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(MAX_BYTES + 1)


def _remove(root: int, name: str) -> None:
    """Of the context, where a link may stand on the way: that stays."""
    with contextlib.suppress(OSError):
        parent, _, last = name.strip("/").rpartition("/")
        fd = open_beneath(root, parent or ".", _DIRECTORY)
        try:
            os.unlink(last, dir_fd=fd)
        finally:
            os.close(fd)
