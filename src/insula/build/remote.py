"""Files from addresses: `ADD https://…`, and a context that is somewhere else.  Async; over HTTP only."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import os
import posixpath
from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from aiohttp import ClientResponse

from insula.errors import CorruptData, DiskFull, InvalidRequest, RegistryFailed
from insula.images.registry.transport import Transport, show
from insula.system.files import disk_errors

_SPARE_BYTES = 64 << 20
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


def is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def is_git(source: str) -> bool:
    path = source.partition("#")[0]
    return source.startswith(("git://", "git@", "ssh://")) or (is_address(source) and path.endswith(".git"))


def check_checksum(text: str) -> tuple[str, str]:
    """Algorithm and hex digits.  Raises InvalidRequest."""
    algorithm, _, digits = text.partition(":")
    if len(digits) != _DIGEST_LENGTHS.get(algorithm, -1) or not set(digits) <= set("0123456789abcdef"):
        raise InvalidRequest(f"--checksum: {text!r} is not a digest (sha256: and 64 hex digits)")
    return algorithm, digits


async def fetch(url: str, path: str, *, checksum: str = "") -> str:
    """The file at `url` into `path`, with the time that the server says, for root alone to read.

    Returns the name that the address has for it.  Raises RegistryFailed, CorruptData, DiskFull.
    """
    digest = hashlib.new(check_checksum(checksum)[0]) if checksum else None
    async with _asked(url) as (transport, response):
        free = os.statvfs(os.path.dirname(path))
        limit = free.f_bavail * free.f_frsize - _SPARE_BYTES
        size = 0
        with disk_errors(f"fetching {show(url)}"), open(path, "xb", opener=_private) as file:
            async for piece in transport.pieces(response):
                size += len(piece)
                if size > limit:
                    raise DiskFull(f"{show(url)} is larger than the {max(0, limit) >> 20} MiB that are free")
                await asyncio.to_thread(_write, file, piece, digest)
        modified = email.utils.parsedate_tz(response.headers.get("Last-Modified", ""))
        time_s = max(0, email.utils.mktime_tz(modified)) if modified else 0
    if digest is not None and digest.hexdigest() != checksum.partition(":")[2]:
        raise CorruptData(
            f"{show(url)}: digest is {digest.name}:{digest.hexdigest()}, --checksum says {checksum}"
        )
    os.utime(path, (time_s, time_s))
    return name_of(url)


@contextlib.asynccontextmanager
async def pieces_of(url: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """What is at `url`, as it comes.  Raises RegistryFailed."""
    async with _asked(url) as (transport, response):
        yield transport.pieces(response)


@contextlib.asynccontextmanager
async def _asked(url: str) -> AsyncIterator[tuple[Transport, ClientResponse]]:
    transport = Transport()
    async with transport.opened(), transport.send("GET", url, headers={}, verify=True) as response:
        if response.status != 200:
            raise RegistryFailed(f"failed to GET {show(url)} with status {response.status} {response.reason}")
        yield transport, response


def name_of(url: str) -> str:
    """What a file from there is called; "" when the address names a directory."""
    return unquote(posixpath.basename(urlsplit(url).path))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(file: BinaryIO, piece: bytes, digest: hashlib._Hash | None) -> None:
    file.write(piece)
    if digest is not None:
        digest.update(piece)
