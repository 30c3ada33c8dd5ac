"""The control channel against a fake agent, honest and hostile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import struct
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import CommandNotFound, Conflict, DiskFull, GuestFailed, InvalidRequest
from insula.isolation.plan import Process
from insula.isolation.vm import channel as channel_module
from insula.isolation.vm.channel import AgentError, Channel, State
from insula.isolation.vm.files import AgentFiles
from insula.isolation.vm.prepare import command_error
from insula.isolation.vm.streams import VmExec, VmStream
from insula.isolation.vm.wire import (
    CREDIT,
    SYNC,
    Decoder,
    Encoder,
    ProtocolViolation,
    Type,
    decode_fields,
    encode_fields,
)
from insula.model.stream import Channel as Std
from insula.model.stream import Chunk
from unit.isolation.vm_agent import (
    CLOSED,
    ERROR,
    EXITED,
    GREETING,
    MARK,
    OK,
    STDERR,
    STDOUT,
    FakeAgent,
    connected,
    fields,
    frame,
    parse,
)
from unit.isolation.vm_agent import CREDIT as CREDIT_TYPE


@contextlib.asynccontextmanager
async def open_channel() -> AsyncIterator[tuple[FakeAgent, Channel]]:
    agent, (reader, writer) = await connected()
    channel = Channel()
    playing = asyncio.create_task(agent.synchronise())
    await channel.open(reader, writer, 5)
    await playing
    try:
        yield agent, channel
    finally:
        await channel.close()
        agent.writer.close()


# -- bytes ------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.text("abc_", min_size=1),
            st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))),
        )
    )
)
def test_fields_survive_the_way(pairs: list[tuple[str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for key, value in pairs:
        expected.setdefault(key, []).append(value)
    encoded = encode_fields(pairs)
    assert expected == decode_fields(encoded)


def test_a_nul_never_reaches_the_guest() -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        encode_fields([("arg", "a\0b")])
    with pytest.raises(InvalidRequest, match="not text"):
        encode_fields([("arg", "\ud800")])


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.integers(1, 15).map(lambda n: SYNC[:n]),
            st.tuples(st.binary(max_size=20), st.binary(max_size=20)).map(lambda p: p[0] + SYNC + p[1]),
            st.integers(1, 15).map(lambda n: SYNC[n:]),
            st.just(SYNC[:15] + b"x" * 0),
            st.just(b"x" * 10),
            st.just(b"y" * 2657),
        ),
        max_size=8,
    )
)
def test_the_mark_never_appears_by_chance_and_nothing_is_lost(payloads: list[bytes]) -> None:
    encoder = Encoder()
    sent = b"".join(encoder.encode(Type.STDIN, 1, payload) for payload in payloads)
    assert SYNC not in sent
    got, at = b"", 0
    while at < len(sent):
        length, kind, flags, stream = struct.unpack_from("<IBBH", sent, at)
        assert (14, 0, 1) == (kind, flags, stream)
        got += sent[at + 8 : at + 8 + length]
        at += 8 + length
    assert b"".join(payloads) == got


def test_a_long_message_goes_in_frames_that_say_so() -> None:
    sent = Encoder().encode(Type.WORKLOAD, 0, b"z" * 150_000)
    lengths, at = [], 0
    while at < len(sent):
        length, _, flags, _ = struct.unpack_from("<IBBH", sent, at)
        lengths.append((length, flags))
        at += 8 + length
    assert [(65536, 1), (65536, 1), (18928, 0)] == lengths


@settings(max_examples=300)
@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=20))
def test_any_bytes_of_a_guest_are_messages_or_a_violation(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder(b"n" * 16)
    list(decoder.feed(SYNC + b"n" * 16))
    at = 0
    try:
        for cut in [*cuts, len(data)]:
            for message in decoder.feed(data[at : at + cut]):
                decode_fields(message.payload)
            at += cut
    except ProtocolViolation:
        pass


def test_noise_before_the_mark_is_thrown_away() -> None:
    decoder = Decoder(b"n" * 16)
    noise = b"\x00" * 100_000 + SYNC + b"o" * 16  # an answer to somebody else's nonce
    assert [] == list(decoder.feed(noise))
    (message,) = decoder.feed(SYNC + b"n" * 16 + GREETING)
    assert (Type.HELLO, 0) == (message.type, message.stream)


# -- conversation -----------------------------------------------------------------------------


async def test_requests_are_answered_by_number_in_any_order() -> None:
    async with open_channel() as (agent, channel):
        first = channel.submit(Type.PING, [])
        second = channel.submit(Type.PING, [])
        numbers = [parse((await agent.take())[2])["seq"][0] for _ in range(2)]
        agent.put(frame(OK, 0, fields(("seq", numbers[1]), ("n", "2"))))
        agent.put(frame(OK, 0, fields(("seq", numbers[0]), ("n", "1"))))
        assert (["1"], ["2"]) == ((await first)["n"], (await second)["n"])


async def test_an_error_answer_is_an_exception_with_its_kind() -> None:
    async with open_channel() as (agent, channel):
        asked = asyncio.create_task(channel.request(Type.START))
        await agent.answer(("kind", "not-found"), ("errno", "2"), ("text", "gone"), kind=ERROR)
        with pytest.raises(AgentError) as caught:
            await asked
        assert ("not-found", 2, "gone") == (caught.value.kind, caught.value.errno, caught.value.text)
        assert isinstance(command_error(caught.value, Process(args=("gone",), env=())), CommandNotFound)


@pytest.mark.parametrize(
    ("number", "text", "code"),
    [
        (errno.ENOENT, 'chdir to cwd ("/here") set in config.json failed: no such file or directory', 127),
        (errno.ENOTDIR, 'chdir to cwd ("/here") set in config.json failed: not a directory', 127),
        (errno.EACCES, 'exec: "pwd": permission denied', 126),
    ],
)
def test_a_working_directory_that_cannot_be_entered(number: int, text: str, code: int) -> None:
    said = AgentError("not-executable", number, 'chdir to cwd ("/here"): whatever the guest says')
    error = command_error(said, Process(args=("pwd",), env=(), cwd="/here"))
    assert (f"{text}: unknown", code) == (str(error), error.exit_code)


async def test_an_error_without_a_number_fails_what_was_asked_after_it() -> None:
    async with open_channel() as (agent, channel):
        channel.send(Type.SECCOMP, 0, b"junk")
        asked = channel.submit(Type.WORKLOAD, [])
        agent.put(frame(ERROR, 0, fields(("kind", "invalid"), ("text", "no filter"))))
        with pytest.raises(AgentError, match="no filter"):
            await asked


async def test_an_exec_streams_both_ways_and_ends() -> None:
    async with open_channel() as (agent, channel):
        stream = channel.open_stream(Type.EXEC, [("arg", "cat")])
        assert (Type.EXEC, 1) == (await agent.take())[:2]
        agent.put(frame(OK, 1, fields(("pid", "9"))))
        one = VmExec(channel, stream, 9, tty=False)
        await one.stream.write(b"in")
        await one.stream.close_stdin()
        assert (Type.STDIN, 1, b"in") == await agent.take()
        assert (Type.STDIN_END, 1, b"") == await agent.take()
        agent.put(frame(STDOUT, 1, b"out"), frame(STDERR, 1, b"err"))
        agent.put(frame(EXITED, 1, fields(("code", "3"), ("oom", "0"), ("time_ns", "1"))), frame(CLOSED, 1))
        assert Chunk(Std.STDOUT, b"out") == await one.stream.read()
        assert Chunk(Std.STDERR, b"err") == await one.stream.read()
        assert await one.stream.read() is None
        assert 3 == await one.wait()


async def test_who_waits_for_a_guest_that_stands_still_is_told() -> None:
    """Requests, programs that have not started, and files; those that run wait with it."""
    async with open_channel() as (agent, channel):
        running = channel.open_stream(Type.EXEC)
        agent.put(frame(OK, running.number, fields(("pid", "9"))))
        await running.answer
        files = AgentFiles(channel, "0" * 64)

        async def archive() -> AsyncIterator[bytes]:
            yield bytes(CREDIT + 1)

        waiting = [
            asyncio.ensure_future(one)
            for one in (
                channel.request(Type.PING),
                channel.open_stream(Type.EXEC).answer,
                anext(aiter(files.get("/etc"))),
                files.put("/", archive(), no_overwrite_dir=False, copy_owner=False),
            )
        ]
        while agent.got[-1:] == [] or agent.got[-1][:2] != (Type.STDIN, 4):
            await agent.take()
        channel.give_up_waiting(DiskFull("no space"))
        for one in waiting:
            with pytest.raises(DiskFull):
                await one
        agent.put(*(frame(CLOSED, number) for number in (2, 3, 4)))
        agent.put(frame(OK, 0, fields(("seq", "1"))), frame(STDOUT, running.number, b"out"))
        assert Chunk(Std.STDOUT, b"out") == await running.read()  # and late answers harm nobody


async def test_input_stops_when_the_credit_is_used_up() -> None:
    async with open_channel() as (agent, channel):
        stream = VmStream(channel.open_stream(Type.ATTACH))
        writing = asyncio.create_task(stream.write(b"a" * (CREDIT + 10)))
        await agent.take()
        got = 0
        while got < CREDIT:
            got += len((await agent.take())[2])
        assert CREDIT == got
        assert not writing.done()
        agent.put(frame(CREDIT_TYPE, 1, struct.pack("<I", 1000)))
        await writing
        assert 10 == len((await agent.take())[2])


async def test_credit_is_given_back_only_for_what_was_read() -> None:
    async with open_channel() as (agent, channel):
        stream = VmStream(channel.open_stream(Type.ATTACH))
        await agent.take()
        for _ in range(4):
            agent.put(frame(STDOUT, 1, b"x" * 65_536))
        await stream.read()
        kind, number, payload = await agent.take()
        assert (CREDIT_TYPE, 1, 65_536) == (kind, number, struct.unpack("<I", payload)[0])


async def test_a_stream_let_go_tells_the_agent_and_frees_its_number_after_closed() -> None:
    async with open_channel() as (agent, channel):
        first = channel.open_stream(Type.ATTACH)
        await VmStream(first).close()
        await VmStream(first).close()
        assert [Type.ATTACH, Type.CLOSE] == [(await agent.take())[0] for _ in range(2)]
        agent.put(frame(STDOUT, 1, b"late"), frame(CLOSED, 1))
        assert 2 == channel.open_stream(Type.ATTACH).number
        asked = asyncio.create_task(channel.request(Type.PING))
        await agent.take()
        await agent.answer()
        await asked  # the channel is alive


async def test_an_exec_whose_client_went_still_tells_its_code() -> None:
    async with open_channel() as (agent, channel):
        one = VmExec(channel, channel.open_stream(Type.EXEC), 9, tty=False)
        agent.put(frame(STDOUT, 1, b"early"))
        assert await one.stream.read() == Chunk(Std.STDOUT, b"early")
        await one.stream.close()
        assert [Type.EXEC, Type.STDIN_END] == [(await agent.take())[0] for _ in range(2)]
        agent.put(*[frame(STDOUT, 1, b"x" * 65_536)] * 4)
        assert CREDIT_TYPE == (await agent.take())[0]  # it is not held up
        agent.put(frame(EXITED, 1, fields(("code", "4"))), frame(CLOSED, 1))
        assert 4 == await one.wait()
        assert await one.stream.read() is None


async def test_a_client_that_only_listened_does_not_end_stdin() -> None:
    async with open_channel() as (agent, channel):
        listener = VmStream(channel.open_stream(Type.ATTACH), stdin_once=True)
        talker = VmStream(channel.open_stream(Type.ATTACH), stdin_once=True)
        await listener.close()
        await talker.write(b"x")
        await talker.close()
        kinds = [(await agent.take())[:2] for _ in range(4)]
        assert [(Type.ATTACH, 1), (Type.ATTACH, 2), (Type.STDIN, 2), (Type.CLOSE, 2)] == kinds


async def test_the_end_of_the_connection_ends_everything_that_waits() -> None:
    async with open_channel() as (agent, channel):
        stream = channel.open_stream(Type.EXEC)
        asked = asyncio.create_task(channel.request(Type.PING))
        await agent.take()
        agent.writer.close()
        with pytest.raises(GuestFailed, match="ended"):
            await asked
        assert await stream.read() is None
        assert 137 == await VmExec(channel, stream, 1, tty=False).wait()
        assert State.CLOSED is channel.state
        with pytest.raises(GuestFailed, match="closed"):
            channel.open_stream(Type.ATTACH)


async def test_a_silent_guest_is_given_up() -> None:
    agent, (reader, writer) = await connected()
    channel = Channel()
    with pytest.raises(GuestFailed, match="did not answer"):
        await channel.open(reader, writer, 0.05)
    assert State.CLOSED is channel.state
    agent.writer.close()


HOSTILE = {
    "a type that only the host sends": frame(7, 0),
    "an unknown type": frame(99, 0),
    "a huge frame": struct.pack("<IBBH", 1 << 31, OK, 0, 0),
    "unknown flags": frame(OK, 0, flags=4),
    "half a field": frame(OK, 0, b"seq\0"),
    "output on the connection": frame(STDOUT, 0, b"x"),
    "two messages in each other": frame(OK, 0, b"a", 1) + frame(ERROR, 0, b"b"),
    "an exit code out of range": frame(EXITED, 0, fields(("code", "256"))),
    "an exit code that is no number": frame(EXITED, 0, fields(("code", "x" * 100_0))),
    "a message above four MiB": frame(OK, 0, b"x" * 65_536, 1) * 65,
    "credit of three bytes": frame(CREDIT_TYPE, 1, b"abc"),
    "more output than its credit": frame(STDOUT, 1, b"x" * 65_536) * 5,
    "hello in the middle of a stream": frame(1, 1),
    "credit for what it has not got": frame(CREDIT_TYPE, 1, b"\x01\0\0\0"),
    "more fields than anybody has": (
        frame(OK, 0, b"\0" * 65_536, 1) + frame(OK, 0, b"\0" * 65_536, 1) + frame(OK, 0, b"\0" * 8_930)
    ),
    "a piece without a byte": frame(OK, 0, b"", 1),
    "answers to nobody without end": frame(OK, 0, fields(("seq", "0"))) * 11_000,
    "output of nobody without end": frame(STDOUT, 9, b"x") * 11_000,
    "output without a byte without end": frame(STDOUT, 1) * 11_000,
    "credit of nothing without end": frame(CREDIT_TYPE, 1, b"\0\0\0\0") * 11_000,
    "ends of the workload without end": frame(EXITED, 0, fields(("code", "0"))) * 11_000,
    "answers on one stream without end": frame(OK, 1, fields(("pid", "1"))) * 11_000,
    "ends of one exec without end": frame(EXITED, 1, fields(("code", "0"))) * 11_000,
    "errors about nothing without end": frame(ERROR, 0, fields(("kind", "failed"))) * 11_000,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_guest_loses_its_connection(name: str) -> None:
    agent, (reader, writer) = await connected()
    violations: list[ProtocolViolation] = []
    channel = Channel(on_violation=violations.append)
    playing = asyncio.create_task(agent.synchronise())
    await channel.open(reader, writer, 5)
    await playing
    channel.open_stream(Type.ATTACH)
    agent.put(HOSTILE[name])
    await asyncio.wait_for(channel.closed.wait(), 5)
    assert 1 == len(violations)
    assert State.CLOSED is channel.state
    await channel.close()
    agent.writer.close()


async def test_output_is_counted_also_when_nobody_wants_it_any_more() -> None:
    async with open_channel() as (agent, channel):
        stream = channel.open_stream(Type.ATTACH)
        stream.let_go()
        agent.put(frame(STDOUT, stream.number, b"x" * 65_536) * 4)  # on its way: all of its credit
        asked = asyncio.create_task(channel.request(Type.PING))
        while (await agent.take())[0] != Type.PING:
            pass
        agent.put(frame(OK, 0, fields(("seq", "1"))))
        await asked
        agent.put(frame(STDOUT, stream.number, b"x"))
        await asyncio.wait_for(channel.closed.wait(), 5)


async def test_messages_that_took_long_are_followed_by_time_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(step=0.1)
    monkeypatch.setattr(channel_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    async with open_channel() as (agent, channel):
        await asyncio.gather(channel.request(Type.PING), agent.answer())
        began = asyncio.get_running_loop().time()
        await asyncio.gather(channel.request(Type.PING), agent.answer())
        assert asyncio.get_running_loop().time() - began > 0.05


async def test_a_guest_of_another_version_is_refused() -> None:
    agent, (reader, writer) = await connected()
    channel = Channel()
    greeting = frame(1, 0, fields(("version", "3"), ("state", "idle")))
    playing = asyncio.create_task(agent.synchronise(greeting=greeting))
    with pytest.raises(GuestFailed):
        await channel.open(reader, writer, 5)
    await playing
    agent.writer.close()


async def test_answers_and_output_that_nobody_asked_for_are_ignored() -> None:
    async with open_channel() as (agent, channel):
        agent.put(frame(OK, 0, fields(("seq", "12345"))), frame(STDOUT, 77, b"x"), frame(CLOSED, 78))
        asked = asyncio.create_task(channel.request(Type.PING))
        await agent.answer()
        await asked


async def test_a_channel_opens_once() -> None:
    async with open_channel() as (_, channel):
        reader = asyncio.StreamReader()
        with pytest.raises(GuestFailed, match="open"):
            await channel.open(reader, channel._writer, 1)  # type: ignore[arg-type]


def test_conflicts_stay_conflicts() -> None:
    from insula.isolation.vm.channel import translate

    assert isinstance(translate(AgentError("busy", 0, "later")), Conflict)
    assert MARK == SYNC
