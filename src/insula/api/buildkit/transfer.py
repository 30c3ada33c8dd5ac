"""Directories over a session: fsutil's DiffCopy, as a tar on our side.  Async.

The sender first tells of everything in the directory, in order; then the receiver asks for the files that it
wants, by their number in that list: those that are not here from an earlier build (`build.contexts`).
"""

from __future__ import annotations

import asyncio
import os
import stat
import tarfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.streams import Packets
from insula.errors import InvalidRequest
from insula.model.go_mode import go_mode, unix_mode
from insula.system import tar

_MOST_ENTRIES = 2_000_000
_WINDOW = 4 << 20  # bytes asked for and not here yet
_MOST_ASKED = 1024
_MOST_HELD = 4 * _WINDOW  # bytes that came and cannot go on yet
_SMALL = 1 << 20  # a file up to this may change its size while it is read
_PIECE = 256 * 1024
_LONGEST_CHAIN = 40  # of links
_STAT, _REQ, _DATA = wire.Packet.STAT, wire.Packet.REQ, wire.Packet.DATA
_FIN, _ERR = wire.Packet.FIN, wire.Packet.ERR
_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFIFO: tar.FIFO,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
}


@dataclass(slots=True, eq=False)
class _Wanted:
    """A file that was asked for, or will be."""

    number: int
    member: tar.Member
    held: bytearray = field(default_factory=bytearray)
    ended: bool = False


class _Receiver:
    def __init__(self, stream: Packets, tell: Callable[[int], None]) -> None:
        self._stream = stream
        self._tell = tell
        self._received = 0
        self._asked: dict[int, _Wanted] = {}
        self._held = 0

    async def packet(self) -> Any:
        packet = await self._stream.recv_message()
        if packet is None:
            raise InvalidRequest("the client's directory ended before it was complete")
        self._received += len(packet.data) + packet.stat.ByteSize()
        self._tell(self._received)
        if packet.type == _ERR:
            raise InvalidRequest(
                f"the client could not read its directory: {packet.data.decode('utf-8', 'replace')}"
            )
        return packet

    async def listing(self) -> list[Any]:
        found: list[Any] = []
        while (packet := await self.packet()).type == _STAT:
            if not packet.HasField("stat"):
                return found
            found.append(packet.stat)
            if len(found) > _MOST_ENTRIES:
                raise InvalidRequest(
                    f"the build context has more than {_MOST_ENTRIES} files", hint=".dockerignore"
                )
        raise InvalidRequest("the client sent a file before it told of all")

    async def ask(self, batch: Sequence[_Wanted]) -> None:
        self._asked.update((wanted.number, wanted) for wanted in batch)
        await self._stream.send_messages([wire.Packet(type=_REQ, id=wanted.number) for wanted in batch])

    async def data(self) -> None:
        """The next piece of any file that was asked for."""
        packet = await self.packet()
        wanted = self._asked.get(packet.id) if packet.type == _DATA else None
        if wanted is None:
            raise InvalidRequest("the client sent a file that was not asked for")
        if packet.data:
            wanted.held += packet.data
            self._held += len(packet.data)
            most = max(_WINDOW, _SMALL + wanted.member.size) + (1 << 20)
            if len(wanted.held) > most or self._held > _MOST_HELD:
                raise InvalidRequest(f"{_shown(wanted.member)} grew while it was sent")
        else:
            wanted.ended = True
            del self._asked[packet.id]

    def take(self, wanted: _Wanted) -> bytes:
        """What has come of it by now."""
        taken = bytes(wanted.held)
        wanted.held.clear()
        self._held -= len(taken)
        return taken

    async def finish(self) -> None:
        await self._stream.send_message(wire.Packet(type=_FIN), end=True)
        while (await self.packet()).type != _FIN:
            pass


Have = Callable[[Sequence[tar.Member | None]], Awaitable[Container[int]]]
"""Of which members, by their number, nothing is to be sent."""


async def receive(
    stream: Packets, tell: Callable[[int], None], have: Have | None = None
) -> AsyncGenerator[bytes, None]:
    """The directory, as a tar, without what is here already.  `tell` gets the bytes that have come.  Raises
    InvalidRequest."""
    receiver = _Receiver(stream, tell)
    members = [_member(entry) for entry in await receiver.listing()]
    there = await have(members) if have is not None else ()
    ahead: deque[_Wanted] = deque()
    at = size = 0

    async def ask_ahead() -> None:
        nonlocal at, size
        if len(ahead) > _MOST_ASKED // 2 or size > _WINDOW // 2:
            return
        batch: list[_Wanted] = []
        while at < len(members) and len(ahead) < _MOST_ASKED and (size < _WINDOW or not ahead):
            member = members[at]
            if member is not None and member.kind == tar.FILE and member.size and at not in there:
                if ahead and member.size > _WINDOW:
                    break  # it comes alone, as it is not held
                batch.append(_Wanted(at, member))
                ahead.append(batch[-1])
                size += member.size
            at += 1
        if batch:
            await receiver.ask(batch)

    made = bytearray()
    for number, member in enumerate(members):
        if member is None or number in there:
            continue
        await ask_ahead()
        if not ahead or ahead[0].number != number:
            made += tar.header(member)
        else:
            wanted = ahead.popleft()
            size -= member.size
            async for piece in _file(receiver, wanted):
                made += piece
                if len(made) >= _PIECE:
                    yield bytes(made)
                    made.clear()
        if len(made) >= _PIECE:
            yield bytes(made)
            made.clear()
    if made:
        yield bytes(made)
    yield tar.END
    await receiver.finish()


async def receive_files(
    stream: Packets, tell: Callable[[int], None], names: Sequence[str], *, most: int
) -> dict[str, bytes]:
    """What those files have that are there, their links followed inside the directory.  Raises InvalidRequest
    for one of more than `most` bytes."""
    receiver = _Receiver(stream, tell)
    members = [_member(entry) for entry in await receiver.listing()]
    numbers = {member.name.rstrip(b"/"): n for n, member in enumerate(members) if member is not None}
    found: dict[str, _Wanted] = {}
    for name in names:
        number = _resolved(members, numbers, name.encode("utf-8", "surrogateescape"))
        member = members[number] if number is not None else None
        if number is None or member is None:
            continue
        if member.size > most:
            raise InvalidRequest(f"{name} is larger than {most >> 20} MiB")
        same = (wanted for wanted in found.values() if wanted.number == number)
        found[name] = next(same, None) or _Wanted(number, member, ended=not member.size)
    await receiver.ask([wanted for wanted in dict.fromkeys(found.values()) if not wanted.ended])
    for wanted in found.values():
        while not wanted.ended:
            await receiver.data()
    await receiver.finish()
    return {name: bytes(wanted.held) for name, wanted in found.items()}


def _resolved(members: Sequence[tar.Member | None], numbers: Mapping[bytes, int], name: bytes) -> int | None:
    """Which member a name is in the end; None when it is no file, or out of the directory."""
    for _ in range(_LONGEST_CHAIN):
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        for depth in range(1, len(parts) + 1):
            number = numbers.get(b"/".join(parts[:depth]))
            member = members[number] if number is not None else None
            if member is None:
                return None
            if member.kind in (tar.SYMLINK, tar.LINK):
                above = parts[: depth - 1] if member.kind == tar.SYMLINK else []
                above = [] if member.link.startswith(b"/") else above
                name = b"/".join((*above, member.link, *parts[depth:]))
                break
        else:
            return number if parts and member is not None and member.kind == tar.FILE else None
    return None


async def _file(receiver: _Receiver, wanted: _Wanted) -> AsyncGenerator[bytes, None]:
    member = wanted.member
    if member.size <= _SMALL:
        while not wanted.ended:
            await receiver.data()
        content = receiver.take(wanted)
        member.size = len(content)
        yield tar.header(member) + content + tar.padding(member.size)
        return
    yield tar.header(member)
    left = member.size
    while left:
        while not wanted.held and not wanted.ended:
            await receiver.data()
        if not wanted.held:
            raise InvalidRequest(f"{_shown(member)} became shorter while it was sent")
        piece = receiver.take(wanted)[:left]
        left -= len(piece)
        yield piece
    while not wanted.ended:  # what was written behind its end meanwhile is none of the context's
        await receiver.data()
        receiver.take(wanted)
    yield tar.padding(member.size)


def _shown(member: tar.Member) -> str:
    return os.fsdecode(member.name)


def _member(entry: Any) -> tar.Member | None:
    """What a tar has for it; None for what no image has (sockets)."""
    mode = unix_mode(entry.mode)
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is None:
        return None
    member = tar.Member(
        name=entry.path.encode("utf-8", "surrogateescape"),
        kind=kind,
        mode=stat.S_IMODE(mode),
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=max(0, entry.mod_time),
        xattrs={
            name.encode(): value
            for name, value in entry.xattrs.items()
            if name.startswith("security.capability")
        },
    )
    link = entry.linkname.encode("utf-8", "surrogateescape")
    if kind == tar.DIRECTORY:
        member.name += b"/"
    elif kind == tar.SYMLINK:
        member.link = link
    elif kind in (tar.CHAR, tar.BLOCK_DEVICE):
        member.major, member.minor = entry.devmajor, entry.devminor
    elif kind == tar.FILE and link:
        member.kind, member.link = tar.LINK, link
    elif kind == tar.FILE:
        member.size = max(0, entry.size)
    return member


# the other way


@dataclass(frozen=True, slots=True)
class _Entry:
    stat: Any
    offset: int


def _index(file: BinaryIO) -> list[_Entry]:
    """What a tar of ours has, in the order that a receiver wants: by the parts of the names."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        by_name = {member.name: member for member in archive}
    first: dict[str, str] = {}  # of each file with several names, the one that comes first in that order
    entries = []
    for name in sorted(by_name, key=lambda name: name.split("/")):
        member = by_name[name]
        origin, link = name, member.linkname if member.issym() else ""
        if member.islnk():
            origin = member.linkname
            member = by_name.get(origin, member)
        if member.isreg():
            known = first.setdefault(origin, name)
            link = known if known != name else ""
        entries.append(_Entry(_stat_of(name, member, link), member.offset_data if not link else 0))
    return entries


def _stat_of(name: str, member: tarfile.TarInfo, link: str) -> Any:
    kind = next((mode for mode, kind in _KINDS.items() if kind == member.type), stat.S_IFREG)
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return wire.Stat(
        path=name,
        mode=go_mode(kind | member.mode),
        uid=member.uid,
        gid=member.gid,
        size=member.size if member.isreg() else 0,
        mod_time=int(member.mtime * 1_000_000_000),
        linkname=link,
        devmajor=member.devmajor if is_device else 0,
        devminor=member.devminor if is_device else 0,
    )


async def send(stream: Packets, path: str, tell: Callable[[int], None]) -> None:
    """The tree that the tar at `path` (one of ours) has, into a directory of the client's.  Raises
    InvalidRequest when the client cannot write it."""
    with open(path, "rb") as file:
        entries = await asyncio.to_thread(_index, file)
        for entry in entries:
            await stream.send_message(wire.Packet(type=_STAT, stat=entry.stat))
        await stream.send_message(wire.Packet(type=_STAT))
        sent = 0
        while (packet := await stream.recv_message()) is not None:
            if packet.type == _ERR:
                raise InvalidRequest(f"the client could not write: {packet.data.decode('utf-8', 'replace')}")
            if packet.type == _FIN:
                await stream.send_message(wire.Packet(type=_FIN), end=True)
                return
            if packet.type != _REQ or not packet.id < len(entries):
                raise InvalidRequest("the client asked for what is not there")
            async for piece in _pieces(file, entries[packet.id]):
                sent += len(piece)
                tell(sent)
                await stream.send_message(wire.Packet(type=_DATA, id=packet.id, data=piece))
            await stream.send_message(wire.Packet(type=_DATA, id=packet.id))


async def _pieces(file: BinaryIO, entry: _Entry) -> AsyncIterator[bytes]:
    left, at = entry.stat.size, entry.offset
    while left:
        piece = await asyncio.to_thread(os.pread, file.fileno(), min(left, _PIECE), at)
        if not piece:
            raise InvalidRequest("the tree to be exported is cut off")
        left -= len(piece)
        at += len(piece)
        yield piece
