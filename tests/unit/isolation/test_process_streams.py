"""The streams of an exec on plain pipes: end, back-pressure, letting go."""

from __future__ import annotations

import asyncio
import os

from insula.isolation.process.attach import DescriptorStream
from insula.model.stream import Channel, Chunk


async def test_it_ends_when_the_program_has_ended_and_all_is_read() -> None:
    reader, writer = os.pipe()
    stream = DescriptorStream(stdin=-1, stdout=reader, stderr=-1)
    os.write(writer, b"rest")
    stream.finish(Chunk(Channel.STDERR, b"why"))  # a background process still holds the other end
    assert await stream.read() == Chunk(Channel.STDOUT, b"rest")
    assert await stream.read() == Chunk(Channel.STDERR, b"why")
    assert await stream.read() is None
    await stream.close()
    os.close(writer)


async def test_a_full_pipe_holds_the_writer_until_stdin_is_closed() -> None:
    reader, writer = os.pipe()
    stream = DescriptorStream(stdin=writer, stdout=-1, stderr=-1)
    writing = asyncio.create_task(stream.write(b"x" * 1_000_000))
    done, _ = await asyncio.wait({writing}, timeout=0.05)
    assert not done
    await stream.close_stdin()
    await asyncio.wait_for(writing, 5)
    assert len(os.read(reader, 1_000_000)) == 65536
    stream.finish()
    await stream.close()
    os.close(reader)


async def test_a_closed_stream_reads_on_so_that_the_program_can() -> None:
    reader, writer = os.pipe()
    stream = DescriptorStream(stdin=-1, stdout=reader, stderr=-1)
    await stream.close()
    os.set_blocking(writer, False)
    written = 0
    async with asyncio.timeout(5):
        while written < 1_000_000:
            try:
                written += os.write(writer, b"y" * 4096)
            except BlockingIOError:
                await asyncio.sleep(0)
    stream.finish()
    os.close(writer)


async def test_writing_to_a_program_that_stopped_reading_is_dropped() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = DescriptorStream(stdin=writer, stdout=-1, stderr=-1)
    await stream.write(b"nobody")
    stream.finish()
    assert await stream.read() is None
    await stream.close()
