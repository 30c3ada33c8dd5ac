"""Reading an instance's log: from its end, between two times, and on as it grows.  Async.

Nothing is polled: a follower sleeps until inotify says that the file grew or the engine says that the
instance has ended, and ends when both the instance has and all of the file is read.  So there is no gap and
no record twice.  Blocks are read in a thread unless the file is small; readers take turns, and followers of
one file share what they read alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Container

from insula.engine.growth import Follower, Growth
from insula.engine.records import LONGEST_LINE, find_tail, parse_record
from insula.engine.types import LogBatch, LogQuery, LogRecord
from insula.model.stream import Channel
from insula.system.holes import find_data

_BLOCK = 32 * 1024
"""Some hundred lines, which take two or three milliseconds."""
_AT_ONCE = 64 * 1024
# moby's copier cuts a line without end into pieces of this size
_LONGEST_JOINED = 16 * 1024 * 16


async def read_log(
    path: str,
    query: LogQuery,
    *,
    growth: Growth,
    ended: Callable[[], bool],
    join: bool = True,
    limit: int | None = None,
) -> AsyncGenerator[LogRecord, None]:
    """As `read_batches`, one by one."""
    batches = read_batches(path, query, growth=growth, ended=ended, join=join, limit=limit)
    async with contextlib.aclosing(batches):
        async for batch in batches:
            for record in batch.records:
                yield record


async def read_batches(
    path: str,
    query: LogQuery,
    *,
    growth: Growth,
    ended: Callable[[], bool],
    join: bool = True,
    limit: int | None = None,
) -> AsyncGenerator[LogBatch, None]:
    """Records of the log at `path`, which need not exist yet.

    `ended` says whether nothing will be written any more.  `join`: pieces of a line as one record;
    otherwise each piece at once, for those who want output as it comes.  `limit` is a size in bytes
    behind which nothing is read.
    """
    channels = frozenset(
        channel
        for channel, wanted in ((Channel.STDOUT, query.stdout), (Channel.STDERR, query.stderr))
        if wanted
    )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing was ever written, or it was removed
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        offset = floor = find_data(fd, 0)
        if query.tail is not None and query.tail >= 0:
            size = os.fstat(fd).st_size if limit is None else limit
            offset = await asyncio.to_thread(find_tail, fd, size, query.tail, channels, floor)
        grown: Follower | None = None
        if query.follow:
            with contextlib.suppress(FileNotFoundError):  # removed just now: read what there is
                grown = stack.enter_context(growth.watch(path))
                grown.offset = offset
        lines = _Lines(channels, query, join=join)
        wanted = (channels, query.since_ns, query.until_ns, join)
        if offset == floor > 0:
            lines.restart()
        while True:
            if grown is not None:
                grown.clear()
            over = grown is None or ended()
            while not lines.past_end:
                await growth.turns.take()
                if (start := find_data(fd, offset)) > offset:  # cut off before it was read
                    offset = start
                    lines.restart()
                begin, file = offset, -1
                if grown is not None and lines.are_whole and growth.is_shared(grown):
                    file = grown.file
                if file >= 0 and (found := growth.batches.find(file, begin, wanted)) is not None:
                    offset, batch = found
                elif block := await _read(fd, offset, limit):
                    if whole := block.rfind(b"\n") + 1:  # the rest of it comes with the next
                        block = block[:whole]
                    offset += len(block)
                    batch = LogBatch(lines.feed(block))
                    if file >= 0 and lines.are_whole:
                        growth.batches.keep(file, begin, wanted, offset, batch)
                else:
                    break
                if grown is not None:
                    grown.offset = offset
                if batch.records:
                    yield batch
            if over or lines.past_end:
                if records := lines.finish():
                    yield LogBatch(records)
                return
            assert grown is not None
            if not await _wait(grown, query.until_ns):
                return


async def await_output(
    path: str, growth: Growth, *, since_ns: int, until_ns: int, ended: Callable[[], bool]
) -> None:
    """Until something was written at `since_ns` or later, nothing will be any more, or it is `until_ns`."""
    try:
        with growth.watch(path) as grown:
            while not ended() and os.stat(path).st_mtime_ns < since_ns:
                if not await _wait(grown, until_ns):
                    return
                grown.clear()
    except FileNotFoundError:
        return


async def _read(fd: int, offset: int, limit: int | None) -> bytes:
    """What is there of a block, the next if little is left of this one: so those who read a file from
    different places on come to the same."""
    size = os.fstat(fd).st_size if limit is None else limit
    length = _BLOCK - offset % _BLOCK
    length = min(length if length > _BLOCK // 2 else length + _BLOCK, size - offset)
    if length <= 0:
        return b""
    if size - offset > _AT_ONCE:
        return await asyncio.to_thread(os.pread, fd, length, offset)
    return os.pread(fd, length, offset)


async def _wait(grown: asyncio.Event, until_ns: int) -> bool:
    """False when `until_ns` has passed."""
    if not until_ns:
        await grown.wait()
        return True
    try:
        async with asyncio.timeout((until_ns - time.time_ns()) / 1e9):
            await grown.wait()
    except TimeoutError:
        return False
    return True


class _Lines:
    """Blocks in, records out: cuts lines, filters, joins pieces."""

    def __init__(self, channels: Container[Channel], query: LogQuery, *, join: bool) -> None:
        self._channels = channels
        self._since_ns = query.since_ns
        self._until_ns = query.until_ns
        self._join = join
        self._rest = b""
        self._in_middle = False
        self._pieces: dict[Channel, tuple[int, list[bytes], int]] = {}
        self.past_end = False

    @property
    def are_whole(self) -> bool:
        """Nothing of what came so far belongs to what comes next."""
        return not (self._rest or self._pieces or self._in_middle or self.past_end)

    def restart(self) -> None:
        """What comes next begins in the middle of a line."""
        self._rest = b""
        self._in_middle = True
        self._pieces.clear()

    def feed(self, block: bytes) -> list[LogRecord]:
        if self._in_middle:
            _, newline, block = block.partition(b"\n")
            self._in_middle = not newline
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            self._rest = b""  # no record is that long
        records: list[LogRecord] = []
        for line in lines:
            self._take(line, records)
            if self.past_end:
                break
        return records

    def finish(self) -> list[LogRecord]:
        """What is left when nothing follows: a torn last line, and lines that never got their end."""
        records: list[LogRecord] = []
        if self._rest and not self.past_end:
            self._take(self._rest, records, torn=True)
            self._rest = b""
        for channel, (time_ns, pieces, _) in sorted(self._pieces.items(), key=lambda item: item[1][0]):
            records.append(LogRecord(time_ns, channel, b"".join(pieces)))
        self._pieces.clear()
        return records

    def _take(self, line: bytes, records: list[LogRecord], *, torn: bool = False) -> None:
        record = parse_record(line)
        if record is None or record.channel not in self._channels or record.time_ns < self._since_ns:
            return
        if self._until_ns and record.time_ns >= self._until_ns:
            self.past_end = True
            return
        partial = record.partial or torn
        if not partial and record.channel not in self._pieces:  # as nearly all are
            records.append(LogRecord(record.time_ns, record.channel, record.data + b"\n"))
            return
        if not self._join:
            data = record.data if partial else record.data + b"\n"
            if data:
                records.append(LogRecord(record.time_ns, record.channel, data))
            return
        time_ns, pieces, length = self._pieces.pop(record.channel, (record.time_ns, [], 0))
        pieces.append(record.data)
        length += len(record.data)
        if partial and length < _LONGEST_JOINED:
            self._pieces[record.channel] = (time_ns, pieces, length)
            return
        if not partial:
            pieces.append(b"\n")
        records.append(LogRecord(time_ns, record.channel, b"".join(pieces)))
