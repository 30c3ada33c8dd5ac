"""Log driver `journald`: what an instance writes also goes to the host's journal.  Async.

The instance's own file stays the source of `logs` (Docker reads the journal back), so nothing has to wait
for the journal, and nothing is lost while it restarts: what it has not taken yet is sent again, and where
sending is to go on is kept beside the file, so that the next daemon knows too.  A daemon that is killed may
send its last block twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import re
import time
from typing import TYPE_CHECKING

from insula.engine.instances import Entry
from insula.engine.log_options import log_attributes
from insula.engine.records import LONGEST_LINE, Record, parse_record
from insula.errors import Failure
from insula.model.ids import short_id
from insula.model.instance import Instance
from insula.model.stream import Channel
from insula.system.holes import find_data
from insula.system.journal import (
    PRIORITY_ERR,
    PRIORITY_INFO,
    encode_message,
    journal_answers,
    open_journal,
)

if TYPE_CHECKING:
    from insula.engine.kit import Kit

log = logging.getLogger(__name__)

_LONGEST = 48 * 1024
"""Of one message; the rest of a longer piece is a message of its own.  A datagram has to hold it."""
_PATIENCE_S, _LAST_PATIENCE_S = 5.0, 1.0
_PAUSE_S = 1.0
"""Before an attempt that follows one that failed."""
_POSITION = "journal.position"


class JournalFeed:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def check(self, entry: Entry) -> None:
        """Before a start.  Raises Failure in moby's words."""
        if _wanted(entry.record) and not journal_answers(self._kit.settings.journal_socket):
            raise Failure(
                "failed to initialize logging driver: journald is not enabled on this host",
                hint=f"nobody listens at {self._kit.settings.journal_socket}",
            )

    def watch(self, entry: Entry) -> None:
        """Send what it has written and will write."""
        self.stop(entry)
        if _wanted(entry.record):
            entry.feeder = asyncio.create_task(self._watch(entry), name=f"journal of {entry.id}")

    def stop(self, entry: Entry) -> None:
        if entry.feeder is not None:
            entry.feeder.cancel()
            entry.feeder = None

    async def finish(self, entry: Entry) -> None:
        """Its last output is written: send what is left of it, unless the journal does not take it."""
        if not _wanted(entry.record):
            return
        if entry.feeder is not None:
            feeder, entry.feeder = entry.feeder, None
            feeder.cancel()
            await asyncio.wait([feeder])
        try:
            await self._send_new(entry, _LAST_PATIENCE_S)
        except OSError as error:
            log.error("instance %s: the end of its log is not in the journal: %s", entry.id, error)

    async def _watch(self, entry: Entry) -> None:
        with contextlib.suppress(FileNotFoundError):  # the instance was removed
            with self._kit.growth.watch(self._kit.log_path(entry.id)) as grown:
                while True:
                    grown.clear()
                    try:
                        grown.offset = await self._send_new(entry, _PATIENCE_S)
                    except OSError as error:
                        log.warning("instance %s: the journal does not answer: %s", entry.id, error)
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    await grown.wait()

    async def _send_new(self, entry: Entry, patience_s: float) -> int:
        fields = message_fields(entry.record)
        path, socket = self._kit.log_path(entry.id), self._kit.settings.journal_socket
        position = os.path.join(self._kit.state_dir(entry.id), _POSITION)
        # a thread cannot be cancelled: what it has sent is written down before anything else begins
        work = asyncio.ensure_future(asyncio.to_thread(send_new, path, position, socket, fields, patience_s))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await work
            raise


def _wanted(record: Instance) -> bool:
    return record.spec.log.driver == "journald"


def message_fields(record: Instance) -> dict[str, bytes]:
    """Those of every message; moby's (daemon/logger/journald).  Pure."""
    attributes = log_attributes(record)
    tag = attributes.pop("tag", short_id(record.id))
    fields = {
        "CONTAINER_ID": short_id(record.id),
        "CONTAINER_ID_FULL": record.id,
        "CONTAINER_NAME": record.name,
        "CONTAINER_TAG": tag,
        "IMAGE_NAME": record.spec.image,
        "SYSLOG_IDENTIFIER": tag,
    }
    for name, value in attributes.items():
        clean = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_")
        if clean:
            fields.setdefault(clean, value)
    return {name: value.encode() for name, value in fields.items()}


def send_new(path: str, position_path: str, socket: str, fields: dict[str, bytes], patience_s: float) -> int:
    """Whole records from where the last call came to; returns where the next begins.  Synchronous.

    Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        log_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, log_fd)
        position = os.open(position_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, position)
        text = os.pread(position, 32, 0)
        offset = int(text) if text.isdigit() else 0
        journal = stack.enter_context(open_journal(socket, patience_s))
        while True:
            start = find_data(log_fd, offset)
            block = os.pread(log_fd, LONGEST_LINE, start)
            lines = io.BytesIO(block).readlines()
            if lines and not lines[-1].endswith(b"\n") and len(block) < LONGEST_LINE:
                del lines[-1]  # it is not whole yet
            if not lines:
                return offset
            try:
                for number, line in enumerate(lines):
                    # what was cut off before it was sent ends in the middle of a record
                    record = parse_record(line.removesuffix(b"\n")) if number or start == offset else None
                    for message in _messages(record, fields) if record is not None else ():
                        journal.send(message)
                    start += len(line)
            finally:
                os.pwrite(position, b"%020d" % start, 0)
                offset = start


def _messages(record: Record, fields: dict[str, bytes]) -> list[bytes]:
    pieces = [record.data[at : at + _LONGEST] for at in range(0, len(record.data), _LONGEST)] or [b""]
    priority = PRIORITY_ERR if record.channel is Channel.STDERR else PRIORITY_INFO
    found = []
    for piece in pieces:
        message = {**fields, "MESSAGE": piece, "PRIORITY": b"%d" % priority}
        seconds, ns = divmod(record.time_ns, 10**9)
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        message["SYSLOG_TIMESTAMP"] = f"{clock}.{ns:09d}Z".encode()
        if record.partial or piece is not pieces[-1]:
            message["CONTAINER_PARTIAL_MESSAGE"] = b"true"
        found.append(encode_message(message))
    return found
