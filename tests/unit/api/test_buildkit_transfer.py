"""Directories over a session: a client's as a tar, a tar as a client's, and lies."""

from __future__ import annotations

import asyncio
import io
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.transfer import receive, receive_files, send
from insula.errors import InvalidRequest

_GO_DIR, _GO_LINK, _GO_SETUID = 1 << 31, 1 << 27, 1 << 23


class Pipe:
    """One end of a stream of packets."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.outbox: asyncio.Queue[Any] = asyncio.Queue()

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        await self.outbox.put(message)

    async def send_messages(self, messages: Iterable[Any]) -> None:
        for message in messages:
            await self.send_message(message)

    async def recv_message(self) -> Any:
        return await self.inbox.get()

    async def end(self) -> None:
        return None

    def other(self) -> Pipe:
        other = Pipe()
        other.inbox, other.outbox = self.outbox, self.inbox
        return other


def told(*stats: Any) -> list[Any]:
    return [
        *(wire.Packet(type=wire.Packet.STAT, stat=one) for one in stats),
        wire.Packet(type=wire.Packet.STAT),
    ]


async def serve(pipe: Pipe, stats: list[Any], files: dict[str, bytes], *, order: Any = list) -> list[str]:
    """As fsutil sends: all that is there, then what is asked for, several at a time.  What was asked for."""
    for packet in told(*stats):
        await pipe.send_message(packet)
    asked: list[str] = []
    pending: list[int] = []
    while True:
        packet = await pipe.recv_message()
        if packet.type == wire.Packet.FIN:
            await pipe.send_message(wire.Packet(type=wire.Packet.FIN))
            return asked
        assert packet.type == wire.Packet.REQ
        asked.append(stats[packet.id].path)
        pending.append(packet.id)
        await asyncio.sleep(0)
        if pipe.inbox.empty():
            for number in order(pending):
                data = files[stats[number].path]
                for at in range(0, len(data), 30_000):
                    piece = data[at : at + 30_000]
                    await pipe.send_message(wire.Packet(type=wire.Packet.DATA, id=number, data=piece))
                await pipe.send_message(wire.Packet(type=wire.Packet.DATA, id=number))
            pending.clear()


async def received(
    stats: list[Any], files: dict[str, bytes], have: Any = None, **how: Any
) -> tuple[tarfile.TarFile, list[str]]:
    pipe = Pipe()
    serving = asyncio.create_task(serve(pipe.other(), stats, files, **how))
    counts: list[int] = []
    pieces = receive(pipe, counts.append, have)  # type: ignore[arg-type]
    data = b"".join([piece async for piece in pieces])
    assert counts == sorted(counts)
    return tarfile.open(fileobj=io.BytesIO(data)), await serving


def a_file(path: str, size: int, mode: int = 0o644, **more: Any) -> Any:
    return wire.Stat(path=path, mode=mode, size=size, mod_time=1_600_000_000_123_000_000, **more)


async def test_a_directory_arrives_whole() -> None:
    stats = [
        wire.Stat(path="d", mode=_GO_DIR | 0o750),
        a_file("d/empty", 0),
        a_file("d/f", 5, 0o755 | _GO_SETUID, uid=3, gid=4),
        a_file("d/hard", 5, linkname="d/f"),
        wire.Stat(path="d/link", mode=_GO_LINK | 0o777, linkname="../else"),
        wire.Stat(path="d/socket", mode=(1 << 24) | 0o777),
        a_file("große Datei", 3),
    ]
    archive, asked = await received(stats, {"d/f": b"hello", "große Datei": b"abc"})
    members = {member.name: member for member in archive}
    assert ["d", "d/empty", "d/f", "d/hard", "d/link", "große Datei"] == list(members)
    assert (True, 0o750) == (members["d"].isdir(), members["d"].mode)
    assert (0o4755, 3, 4, 1_600_000_000) == (
        members["d/f"].mode,
        members["d/f"].uid,
        members["d/f"].gid,
        int(members["d/f"].mtime),
    )
    assert (tarfile.LNKTYPE, "d/f") == (members["d/hard"].type, members["d/hard"].linkname)
    assert (True, "../else") == (members["d/link"].issym(), members["d/link"].linkname)
    assert b"hello" == archive.extractfile("d/f").read()  # type: ignore[union-attr]
    assert b"abc" == archive.extractfile("große Datei").read()  # type: ignore[union-attr]
    assert ["d/f", "große Datei"] == asked


@pytest.mark.parametrize("order", [list, lambda numbers: list(reversed(numbers))])
async def test_files_may_come_in_any_order_and_the_large_alone(order: Any) -> None:
    files = {f"f{number:03}": bytes([number]) * (number * 900) for number in range(150)}
    files["m-large"] = b"L" * (9 << 20)
    stats = [a_file(name, len(data)) for name, data in sorted(files.items())]
    archive, asked = await received(stats, files, order=order)
    for name, data in files.items():
        assert data == archive.extractfile(name).read()  # type: ignore[union-attr]
    assert "m-large" == asked[-1]


async def test_a_small_file_may_change_its_size_while_it_is_read() -> None:
    archive, _ = await received([a_file("log", 3), a_file("z", 1)], {"log": b"longer now", "z": b"z"})
    assert b"longer now" == archive.extractfile("log").read()  # type: ignore[union-attr]
    assert b"z" == archive.extractfile("z").read()  # type: ignore[union-attr]


async def test_a_large_one_that_shrinks_is_told_and_one_that_grows_is_cut() -> None:
    size = 2 << 20
    with pytest.raises(InvalidRequest, match="big became shorter"):
        await received([a_file("big", size)], {"big": b"x" * (size - 1)})
    archive, _ = await received([a_file("big", size), a_file("c", 1)], {"big": b"x" * (size + 9), "c": b"c"})
    assert size == archive.getmember("big").size
    assert b"c" == archive.extractfile("c").read()  # type: ignore[union-attr]


async def test_what_is_here_already_is_not_asked_for() -> None:
    stats = [wire.Stat(path="d", mode=_GO_DIR | 0o755), a_file("d/a", 3), a_file("d/b", 3), a_file("z", 1)]

    async def have(members: Any) -> set[int]:
        assert [b"d/", b"d/a", b"d/b", b"z"] == [member.name for member in members]
        return {0, 1, 3}

    archive, asked = await received(stats, {"d/b": b"new"}, have=have)
    assert ["d/b"] == archive.getnames() == asked


async def files_of(stats: list[Any], files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    pipe = Pipe()
    serving = asyncio.create_task(serve(pipe.other(), stats, files))
    found = await receive_files(pipe, lambda _: None, names, most=9)  # type: ignore[arg-type]
    await serving
    return found


async def test_files_by_name_with_links_inside_the_directory() -> None:
    link = _GO_LINK | 0o777
    stats = [
        wire.Stat(path="Dockerfile", mode=link, linkname="../d/../d/real"),
        wire.Stat(path="circle", mode=link, linkname="circle"),
        wire.Stat(path="d", mode=_GO_DIR | 0o755),
        a_file("d/hard", 0, linkname="d/real"),
        wire.Stat(path="d/link", mode=link, linkname="/way/real"),
        a_file("d/real", 5),
        a_file("empty", 0),
        wire.Stat(path="way", mode=link, linkname="d"),
    ]
    names = ["Dockerfile", "d/hard", "d/link", "d", "circle", "none", "empty", "../.."]
    found = await files_of(stats, {"d/real": b"hello"}, *names)
    assert {"Dockerfile": b"hello", "d/hard": b"hello", "d/link": b"hello", "empty": b""} == found


async def test_a_file_that_is_too_large_is_not_read() -> None:
    pipe = Pipe()
    for packet in told(a_file("f", 10)):
        pipe.inbox.put_nowait(packet)
    with pytest.raises(InvalidRequest, match="f is larger than"):
        await receive_files(pipe, lambda _: None, ["f"], most=9)  # type: ignore[arg-type]


_DATA, _ERR = wire.Packet.DATA, wire.Packet.ERR


@pytest.mark.parametrize(
    ("packets", "words"),
    [
        ([wire.Packet(type=_ERR, data=b"no permission")], "could not read its directory: no permission"),
        ([wire.Packet(type=_DATA, id=0, data=b"x")], "before it told of all"),
        ([*told(a_file("a", 2)), wire.Packet(type=_DATA, id=7, data=b"x")], "was not asked for"),
        ([*told(a_file("a", 2)), wire.Packet(type=_ERR, data=b"gone")], "gone"),
        ([*told(a_file("a", 2)), None], "ended before it was complete"),
        (
            [
                *told(a_file("a", 2)),
                *(wire.Packet(type=_DATA, id=0, data=b"x" * (1 << 20)) for _ in range(9)),
            ],
            "grew",
        ),
    ],
)
async def test_a_client_that_lies_is_refused(packets: Iterable[Any], words: str) -> None:
    pipe = Pipe()
    for packet in packets:
        pipe.inbox.put_nowait(packet)
    with pytest.raises(InvalidRequest, match=words):
        async for _ in receive(pipe, lambda _: None):  # type: ignore[arg-type]
            pass


def a_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, link, data, mode in (
            ("d/", tarfile.DIRTYPE, "", b"", 0o755),
            ("d/sub/", tarfile.DIRTYPE, "", b"", 0o700),
            ("z", tarfile.REGTYPE, "", b"contents", 0o4711),
            ("a", tarfile.LNKTYPE, "z", b"", 0o644),
            ("d-x", tarfile.REGTYPE, "", b"", 0o644),
            ("d/s", tarfile.SYMTYPE, "/etc/passwd", b"", 0o777),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size, member.mode, member.mtime = (
                kind,
                link,
                len(data),
                mode,
                7,
            )
            archive.addfile(member, io.BytesIO(data))


async def test_a_tree_is_sent_in_the_order_that_receivers_check(tmp_path: Path) -> None:
    a_tar(tmp_path / "t")
    pipe = Pipe()
    sending = asyncio.create_task(send(pipe, str(tmp_path / "t"), lambda _: None))  # type: ignore[arg-type]
    other, stats = pipe.other(), []
    while (packet := await other.recv_message()).HasField("stat"):
        stats.append(packet.stat)
    # by the parts of the names: "d/s" before "d-x"; the name that comes first has the contents
    assert ["a", "d", "d/s", "d/sub", "d-x", "z"] == [one.path for one in stats]
    by_path = {one.path: one for one in stats}
    assert (8, "", _GO_SETUID | 0o711) == (by_path["a"].size, by_path["a"].linkname, by_path["a"].mode)
    assert "a" == by_path["z"].linkname
    assert (_GO_LINK | 0o777, "/etc/passwd") == (by_path["d/s"].mode, by_path["d/s"].linkname)
    assert _GO_DIR | 0o755 == by_path["d"].mode
    await other.send_message(wire.Packet(type=wire.Packet.REQ, id=0))
    data = b""
    while (packet := await other.recv_message()).data:
        data += packet.data
    assert b"contents" == data
    await other.send_message(wire.Packet(type=wire.Packet.FIN))
    assert wire.Packet.FIN == (await other.recv_message()).type
    await sending


async def test_a_client_that_cannot_write_says_why(tmp_path: Path) -> None:
    a_tar(tmp_path / "t")
    pipe = Pipe()
    pipe.inbox.put_nowait(wire.Packet(type=wire.Packet.ERR, data=b"disk full"))
    with pytest.raises(InvalidRequest, match="could not write: disk full"):
        await send(pipe, str(tmp_path / "t"), lambda _: None)  # type: ignore[arg-type]


def test_modes_are_gos() -> None:
    assert (stat.S_ISUID, 1 << 23) == (0o4000, _GO_SETUID)
