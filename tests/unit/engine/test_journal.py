"""Log driver `journald`, with a socket in the journal's place."""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from insula.engine.journal import send_new
from insula.engine.types import LogQuery, WaitCondition
from insula.errors import Failure
from insula.model.instance import LogConfig
from insula.system.holes import keep_end
from insula.system.journal import encode_message

from .rooms import World, shell


class Listener:
    """What has been sent to it, as fields."""

    def __init__(self, path: Path) -> None:
        self.end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.end.bind(str(path))
        self.end.settimeout(20)

    def take(self) -> dict[str, bytes]:
        return decode(self.end.recv(1 << 20))

    def taking(self, send: Callable[[], None]) -> list[dict[str, bytes]]:
        """What comes while `send` sends; a socket holds few datagrams."""
        with ThreadPoolExecutor(1) as thread:
            work, found = thread.submit(send), list[dict[str, bytes]]()
            while not (done := work.done()) or self.waiting():
                if done or self.waiting():
                    found.append(self.take())
            work.result()
            return found

    def waiting(self) -> bool:
        return bool(select.select([self.end], [], [], 0.01)[0])


def decode(datagram: bytes) -> dict[str, bytes]:
    """As journald does."""
    fields = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            length = struct.unpack("<Q", datagram[:8])[0]
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        fields[name.decode()] = value
    return fields


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    one = Listener(tmp_path / "journal.sock")
    yield one
    one.end.close()


def lines(first: int, last: int) -> bytes:
    return b"".join(b"1970-01-01T00:00:01.5Z stdout F %07d\n" % number for number in range(first, last))


def test_no_value_can_pass_for_a_field() -> None:
    fields = {"MESSAGE": b"a\nCONTAINER_ID=forged\n", "PRIORITY": b"6"}
    assert fields == decode(encode_message(fields))


def test_sending_goes_on_where_it_was_and_only_whole_records_are_sent(
    tmp_path: Path, listener: Listener
) -> None:
    log, position = tmp_path / "log", str(tmp_path / "position")

    def send() -> list[dict[str, bytes]]:
        return listener.taking(
            lambda: send_new(str(log), position, str(tmp_path / "journal.sock"), {"X": b"1"}, 5)
        )

    def numbers() -> list[int]:
        return [int(fields["MESSAGE"]) for fields in send()]

    log.write_bytes(lines(0, 3) + b"no record\n" + lines(3, 4)[:-4])
    assert [0, 1, 2] == numbers()
    with open(log, "ab") as file:
        file.write(lines(3, 4)[-4:])
    assert [3] == numbers()
    assert [] == send()
    log.write_bytes(log.read_bytes() + lines(4, 2000))
    keep_end(str(log), 8192)  # a part is gone before it was sent: it goes on with the first whole record
    kept = numbers()
    assert list(range(kept[0], 2000)) == kept
    log.write_bytes(log.read_bytes() + b"1970-01-01T00:00:01Z stderr P " + b"x" * 50_000 + b"\n")
    first, second = send()
    assert b"x" * 50_000 == first["MESSAGE"] + second["MESSAGE"]
    assert {"PRIORITY": b"3", "X": b"1", "CONTAINER_PARTIAL_MESSAGE": b"true"}.items() <= second.items()


async def test_an_instance_s_output_is_in_the_journal_and_in_its_log(
    world: World, listener: Listener
) -> None:
    engine = await world.engine()
    log = LogConfig(driver="journald", options={"tag": "{{.Name}}!", "labels": "my.tier,message"})
    wanted = shell(
        "echo one; echo two >&2; cat", log=log, labels={"my.tier": "db", "message": "forged"}, open_stdin=True
    )
    made = await engine.create(wanted, "it")
    await engine.start_instance(made.id)
    first = await asyncio.to_thread(listener.take)
    record = engine.describe(made.id).instance
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", first.pop("SYSLOG_TIMESTAMP"))
    assert first == {
        "MESSAGE": b"one",
        "PRIORITY": b"6",
        "CONTAINER_ID": made.id[:12].encode(),
        "CONTAINER_ID_FULL": made.id.encode(),
        "CONTAINER_NAME": b"it",
        "CONTAINER_TAG": b"it!",
        "IMAGE_NAME": record.spec.image.encode(),
        "SYSLOG_IDENTIFIER": b"it!",
        "MY_TIER": b"db",
    }
    second = await asyncio.to_thread(listener.take)
    assert (b"two", b"3") == (second["MESSAGE"], second["PRIORITY"])
    await engine.kill(made.id)
    found = [line.data async for batch in engine.logs(made.id, LogQuery()) for line in batch.records]
    assert sorted(found) == [b"one\n", b"two\n"]
    await engine.remove(made.id, force=True)
    await engine.stop()


async def test_without_a_journal_it_does_not_start(world: World, listener: Listener, tmp_path: Path) -> None:
    engine = await world.engine()
    made = await engine.create(shell("echo last", log=LogConfig(driver="journald")), None)
    os.rename(tmp_path / "journal.sock", tmp_path / "elsewhere")
    with pytest.raises(Failure, match="journald is not enabled on this host"):
        await engine.start_instance(made.id)
    os.rename(tmp_path / "elsewhere", tmp_path / "journal.sock")
    ended = engine.wait(made.id, WaitCondition.NEXT_EXIT)
    await engine.start_instance(made.id)
    await ended
    assert listener.waiting()  # what it wrote last is there by then
    assert b"last" == listener.take()["MESSAGE"]
    await engine.remove(made.id)
    await engine.stop()
