"""Files of a VM, served by its agent.  Async.

The host never reads the upper disk itself: a guest has written it.  `AgentFiles` works on any open
channel; the backend opens a helper VM on the same disks when the instance is stopped.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator

from insula.errors import DiskFull, GuestFailed, InvalidRequest, NoSuchPath
from insula.isolation.vm.channel import AgentError, AgentStream, Channel, translate
from insula.isolation.vm.wire import ProtocolViolation, Type, number
from insula.model.files import Change, ChangeKind, PathStat
from insula.model.go_mode import go_mode
from insula.model.paths import clean_path

_KINDS = {"A": ChangeKind.ADDED, "C": ChangeKind.MODIFIED, "D": ChangeKind.DELETED}
# a disk of 10 GiB has 655,360 inodes; every change is some hundred bytes of the daemon's memory
_MOST_CHANGES = 1_000_000
_MOST_CHANGES_BYTES = 128 * 1024 * 1024


def _from_root(path: str, untrusted_link: str) -> str:
    """Where a link at `path` leads, from the root on, as Docker tells it; the agent tells the link's text."""
    if not untrusted_link:
        return ""
    return clean_path(os.path.join(os.path.dirname(path), untrusted_link))


class AgentFiles:
    """`Files` over a channel."""

    def __init__(self, channel: Channel, instance_id: str) -> None:
        self._channel = channel
        self._id = instance_id

    def _error(self, error: AgentError, path: str) -> Exception:
        if error.kind == "no-such-path":
            return NoSuchPath(path, self._id)
        if error.errno == errno.ENOTDIR:
            return InvalidRequest(f"{path}: not a directory")
        if error.kind == "conflict":
            return InvalidRequest(error.text)  # moby: 400 for a directory over a file
        return translate(error, path)

    async def stat(self, path: str) -> PathStat:
        try:
            answer = await self._channel.request(Type.STAT, ("path", path))
        except AgentError as error:
            raise self._error(error, path) from None

        def text(key: str) -> str:
            return (answer.get(key) or [""])[0]

        return PathStat(
            name=text("name"),
            size=number(answer, "size", 0, 1 << 62),
            mode=go_mode(number(answer, "st_mode", 0, 0o177777)),
            mtime_ns=number(answer, "mtime_ns", -(1 << 63), (1 << 63) - 1),
            link_target=_from_root(path, text("link")),
        )

    async def _receive(self, stream: AgentStream, path: str) -> AsyncIterator[bytes]:
        try:
            while (chunk := await stream.read()) is not None:
                yield chunk.data
            # the end of the stream is the end of the archive only when no ERROR came with it
            failure = stream.answer.exception() if stream.answer.done() else None
            if isinstance(failure, AgentError):
                raise self._error(failure, path)
            if isinstance(failure, DiskFull):  # it stands still meanwhile
                raise failure
            if self._channel.error is not None or self._channel.closed.is_set():
                raise GuestFailed(
                    f"the virtual machine {self._id[:12]} ended while {path or '/'} was being read"
                )
        finally:
            stream.let_go()

    def get(self, path: str) -> AsyncIterator[bytes]:
        return self._receive(self._channel.open_stream(Type.GET, [("path", path), ("form", "path")]), path)

    def export(self) -> AsyncIterator[bytes]:
        return self._receive(self._channel.open_stream(Type.GET, [("path", "/"), ("form", "root")]), "")

    def layer(self) -> AsyncIterator[bytes]:
        return self._receive(self._channel.open_stream(Type.GET, [("path", "/"), ("form", "layer")]), "")

    async def put(
        self, path: str, archive: AsyncIterator[bytes], *, no_overwrite_dir: bool, copy_owner: bool
    ) -> None:
        fields = [
            ("path", path),
            ("no_overwrite_dir", "1" if no_overwrite_dir else "0"),
            ("copy_owner", "1" if copy_owner else "0"),
        ]
        stream = self._channel.open_stream(Type.PUT, fields)
        try:
            async for piece in archive:
                if stream.answer.done():
                    break  # it has refused the rest
                await stream.write(piece)
            await stream.close_stdin()
            await stream.answer
        except AgentError as error:
            raise self._error(error, path) from None
        finally:
            stream.let_go()

    async def changes(self) -> tuple[Change, ...]:
        raw = bytearray()
        async for piece in self._receive(self._channel.open_stream(Type.CHANGES), ""):
            raw += piece
            if len(raw) > _MOST_CHANGES_BYTES:
                raise ProtocolViolation("the guest's list of changes does not end")
        return await asyncio.to_thread(parse_changes, bytes(raw))


def parse_changes(untrusted: bytes, *, most: int = _MOST_CHANGES) -> tuple[Change, ...]:
    """Records `kind path NUL`, sorted by path.  Raises ProtocolViolation."""
    if untrusted.count(b"\0") > most:
        raise ProtocolViolation(f"the guest's list of changes has more than {most}")
    changes = []
    for record in untrusted.split(b"\0"):
        if not record:
            continue
        kind, _, path = record.decode("utf-8", "surrogateescape").partition(" ")
        if kind not in _KINDS or not path.startswith("/"):
            raise ProtocolViolation("the guest sent a list of changes that is none")
        changes.append(Change(path, _KINDS[kind]))
    return tuple(sorted(changes, key=lambda change: change.path))
