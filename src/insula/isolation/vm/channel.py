"""The control port's host side: one connection to one agent.  Async.

States, in the open:

    IDLE ──open()──▶ SYNCING ──mark and HELLO──▶ OPEN ──close(), EOF or violation──▶ CLOSED

Every public call is guarded by the state and raises a sentence.  A violation by the guest closes the
channel with `error` set and calls `on_violation`, upon which the VM is ended.  Requests are matched
by `seq`; streams have numbers chosen here and credit both ways, enforced here.  What means nothing (an answer
to nobody, output without a byte) is let pass as often as we have spoken, and some; a guest that goes on with
it is a flood.  One whose messages take long gets half of the loop's time at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable

from insula.errors import Conflict, GuestFailed, InsulaError, InvalidRequest, NoSuchPath
from insula.isolation.vm.wire import (
    CREDIT,
    NONCE_BYTES,
    SYNC,
    Decoder,
    Encoder,
    Fields,
    Message,
    ProtocolViolation,
    Type,
    decode_fields,
    encode_fields,
    number,
    stdin_pieces,
)
from insula.model.instance import ExitStatus
from insula.model.stream import Channel as Std
from insula.model.stream import Chunk

log = logging.getLogger(__name__)

_READ = 65_536
_GRANT = CREDIT // 4
_VERSION = 2
_MOST_IDLE = 10_000  # messages that mean nothing, beyond as many as we have sent
_LONG_S = 0.005  # for what one read has brought: as much again is for others


_LASTING = (Type.ATTACH, Type.EXEC)


class State(enum.Enum):
    IDLE = enum.auto()
    SYNCING = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


class AgentError(GuestFailed):
    """An ERROR answer.  `kind` is one of the protocol's words."""

    def __init__(self, kind: str, errno: int, text: str) -> None:
        super().__init__(f"the guest agent: {text or kind}")
        self.kind = kind
        self.errno = errno
        self.text = text


def to_error(untrusted: Fields) -> AgentError:
    def first(key: str) -> str:
        return (untrusted.get(key) or [""])[0][:1000]

    errno = first("errno")
    return AgentError(first("kind"), int(errno) if errno.isdecimal() and len(errno) < 6 else 0, first("text"))


def to_exit(untrusted: Fields) -> ExitStatus:
    """What EXITED says of the workload; it is of now.  Raises ProtocolViolation."""
    return ExitStatus(
        code=number(untrusted, "code", 0, 255),
        oom_killed=untrusted.get("oom") == ["1"],
        finished_at_ns=time.time_ns(),
    )


def translate(error: AgentError, what: str = "") -> InsulaError:
    """What the engine knows: by kind.  Commands have their own errors and are translated by the caller."""
    if error.kind == "no-such-path":
        return NoSuchPath(what or error.text, "the virtual machine")
    if error.kind == "invalid":
        return InvalidRequest(error.text)
    if error.kind in ("busy", "conflict"):
        return Conflict(error.text)
    return error


class AgentStream:
    """One numbered stream.  Output queues up to the credit we gave, so a hostile guest cannot fill memory."""

    def __init__(self, channel: Channel, number_: int, kind: Type) -> None:
        self.number = number_
        self.kind = kind
        """Of the message that opened it."""
        self._channel = channel
        self._queue: deque[Chunk] = deque()
        self._ready = asyncio.Event()
        self._incoming = CREDIT  # what the guest may still send
        self._read = 0  # read by our consumer, not granted again yet
        self._outgoing = CREDIT  # what we may still send
        self._may_send = asyncio.Event()
        self._may_send.set()
        self.ended = False
        self.discarding = False
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.answer: asyncio.Future[Fields] = loop.create_future()

    def on_output(self, std: Std, data: bytes) -> None:
        self._incoming -= len(data)
        if self._incoming < 0:
            raise ProtocolViolation(f"the guest sent more than its credit on stream {self.number}")
        if self.ended:
            return  # on its way when we let go
        if self.discarding:
            self._grant(len(data))
        else:
            self._queue.append(Chunk(std, data))
            self._ready.set()

    def on_credit(self, amount: int) -> None:
        if self._outgoing + amount > CREDIT:
            raise ProtocolViolation("the guest gave credit for what it has not got")
        self._outgoing += amount
        if self._outgoing > 0:
            self._may_send.set()

    def on_end(self, error: InsulaError | None = None) -> None:
        """No more output.  Futures that nobody answered are ended too."""
        self.ended = True
        self._ready.set()
        self._may_send.set()
        for future in (self.exited, self.answer):
            if not future.done():
                future.set_exception(error or GuestFailed("the guest closed the stream without an answer"))
                future.exception()  # nobody has to ask for it

    def _grant(self, amount: int) -> None:
        self._read += amount
        if self._read >= _GRANT and not self.ended:
            self._incoming += self._read
            self._channel.send(Type.CREDIT, self.number, self._read.to_bytes(4, "little"))
            self._read = 0

    async def read(self) -> Chunk | None:
        while not self._queue:
            if self.ended or self.discarding:
                return None
            self._ready.clear()
            await self._ready.wait()
        chunk = self._queue.popleft()
        self._grant(len(chunk.data))
        return chunk

    async def write(self, data: bytes) -> None:
        """Waits for credit; drops what comes after the end."""
        for piece in stdin_pieces(data):
            at = 0
            while at < len(piece):
                while self._outgoing <= 0 and not self._deaf():
                    self._may_send.clear()
                    await self._may_send.wait()
                if self._deaf():
                    return
                part = piece[at : at + self._outgoing]
                self._outgoing -= len(part)
                at += len(part)
                self._channel.send(Type.STDIN, self.number, part)
                await self._channel.drained()

    def _deaf(self) -> bool:
        return self.ended or self.discarding

    async def close_stdin(self) -> None:
        if not self._deaf():
            self._channel.send(Type.STDIN_END, self.number)

    def discard(self) -> None:
        """Throw away what comes from now on, but stay: for an exec's exit code."""
        if not self._deaf():
            self.discarding = True
            waiting = sum(len(chunk.data) for chunk in self._queue)
            self._queue.clear()
            self._grant(waiting)
            self._ready.set()
            self._may_send.set()

    def abandon(self, error: InsulaError) -> None:
        """Let go, and tell whoever waits for it why."""
        self.let_go()
        self.on_end(error)

    def let_go(self) -> None:
        """The agent forgets the stream; the process goes on.  The number is free again after CLOSED."""
        if not self.ended:
            self.discarding = True
            self._queue.clear()
            self._channel.send(Type.CLOSE, self.number)
            self.ended = True
            self._ready.set()
            self._may_send.set()


class Channel:
    def __init__(
        self,
        *,
        on_exited: Callable[[ExitStatus], None] | None = None,
        on_violation: Callable[[ProtocolViolation], None] | None = None,
    ) -> None:
        self.state = State.IDLE
        self.hello: Fields = {}
        self.version = 0  # of the agent's protocol
        self.error: InsulaError | None = None
        self._on_exited = on_exited
        self._on_violation = on_violation
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._encoder = Encoder()
        self._sequence = itertools.count(1)
        self._sent = 0
        self._idle = 0
        self._requests: dict[str, asyncio.Future[Fields]] = {}
        self._streams: dict[int, AgentStream] = {}
        self._next_stream = 1
        self._greeted: asyncio.Future[None] | None = None
        self.closed = asyncio.Event()

    # life

    def hand_over(
        self, *, on_exited: Callable[[ExitStatus], None], on_violation: Callable[[ProtocolViolation], None]
    ) -> None:
        """From now on it is told to these.  Raises GuestFailed when the connection has ended."""
        self._need(State.OPEN)
        self._on_exited, self._on_violation = on_exited, on_violation

    async def open(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float
    ) -> Fields:
        """Synchronise and return the fields of HELLO.  Raises GuestFailed after `timeout_s`."""
        self._need(State.IDLE)
        self.state = State.SYNCING
        self._writer = writer
        self._greeted = asyncio.get_running_loop().create_future()
        nonce = secrets.token_bytes(NONCE_BYTES)
        while SYNC in nonce:  # 2⁻¹²⁸, but then the agent would be confused
            nonce = secrets.token_bytes(NONCE_BYTES)
        writer.write(SYNC + nonce)
        self._reader_task = asyncio.create_task(self._read_loop(reader, Decoder(nonce)))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._greeted)
        except TimeoutError:
            await self.close()
            raise GuestFailed(f"the guest agent did not answer within {timeout_s:.0f} s") from None
        except BaseException:
            await self.close()
            raise
        return self.hello

    async def close(self) -> None:
        """Idempotent.  Nothing in the guest ends by this."""
        task, self._reader_task = self._reader_task, None
        self._end(None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _need(self, state: State) -> None:
        if self.state is not state:
            why = f": {self.error}" if self.error else ""
            raise GuestFailed(f"the connection to the guest agent is {self.state.name.lower()}{why}")

    def _end(self, error: InsulaError | None) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.error = error
        reason = error or GuestFailed("the connection to the guest agent has ended")
        waiting = [*self._requests.values()] + ([self._greeted] if self._greeted else [])
        for future in waiting:
            if not future.done():
                future.set_exception(reason)
                future.exception()
        self._requests.clear()
        for stream in list(self._streams.values()):
            stream.on_end(reason)
        self._streams.clear()
        self.closed.set()

    # sending

    def send(self, kind: Type, stream: int, payload: bytes = b"") -> None:
        """Queue a message; nothing happens when the connection has ended."""
        if self.state is State.OPEN and self._writer is not None:
            self._sent += 1
            self._writer.write(self._encoder.encode(kind, stream, payload))

    async def drained(self) -> None:
        if self.state is State.OPEN and self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    def submit(self, kind: Type, pairs: Iterable[tuple[str, str]]) -> asyncio.Future[Fields]:
        """Send a request on stream 0 and return the future of its answer."""
        self._need(State.OPEN)
        future: asyncio.Future[Fields] = asyncio.get_running_loop().create_future()
        sequence = str(next(self._sequence))
        payload = encode_fields([("seq", sequence), *pairs])
        self._requests[sequence] = future
        future.add_done_callback(lambda _: self._requests.pop(sequence, None))
        self.send(kind, 0, payload)
        return future

    async def request(self, kind: Type, *pairs: tuple[str, str], timeout_s: float = 60) -> Fields:
        """Submit and wait.  Raises AgentError for an ERROR answer, GuestFailed when none comes."""
        future = self.submit(kind, pairs)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise GuestFailed(
                f"the guest agent did not answer {kind.name} within {timeout_s:.0f} s",
                hint="it may be out of memory or CPU time",
            ) from None

    def open_stream(self, kind: Type, pairs: Iterable[tuple[str, str]] = ()) -> AgentStream:
        """Send `kind` on a new stream."""
        self._need(State.OPEN)
        for _ in range(65_535):
            candidate = self._next_stream
            self._next_stream = candidate % 65_535 + 1
            if candidate not in self._streams:
                break
        else:
            raise Conflict("65,535 streams to one virtual machine are open")
        stream = AgentStream(self, candidate, kind)
        self._streams[candidate] = stream
        self.send(kind, candidate, encode_fields(pairs))
        return stream

    def give_up_waiting(self, error: InsulaError) -> None:
        """Of a guest that stands still: requests and transfers of files end with `error`.  What programs say
        and are told waits with it."""
        self._fail_requests(error)
        for stream in list(self._streams.values()):
            if stream.kind not in _LASTING or not stream.answer.done():
                stream.abandon(error)

    # receiving

    async def _read_loop(self, reader: asyncio.StreamReader, decoder: Decoder) -> None:
        try:
            while data := await reader.read(_READ):
                began = time.monotonic()
                for message in decoder.feed(data):
                    self._dispatch(message)
                if (took := time.monotonic() - began) > _LONG_S:
                    await asyncio.sleep(took)
            self._end(None)
        except ProtocolViolation as violation:
            log.warning("ending a virtual machine: %s", violation)
            self._end(violation)
            if self._on_violation:
                self._on_violation(violation)
        except (ConnectionError, OSError) as error:
            self._end(GuestFailed(f"the connection to the guest agent broke: {error}"))

    def _dispatch(self, message: Message) -> None:
        if self.state is State.SYNCING:
            if message.type is not Type.HELLO or message.stream != 0:
                raise ProtocolViolation(f"the guest sent {message.type.name} before HELLO")
            self.hello = decode_fields(message.payload)
            self.version = number(self.hello, "version", 1, _VERSION)
            self.state = State.OPEN
            if self._greeted and not self._greeted.done():
                self._greeted.set_result(None)
            return
        if message.stream == 0:
            self._on_connection(message)
        else:
            self._on_stream(message)

    def _on_connection(self, message: Message) -> None:
        if message.type in (Type.OK, Type.ERROR):
            fields = decode_fields(message.payload)
            sequence = (fields.get("seq") or [""])[0]
            if message.type is Type.ERROR and not sequence:
                self._take_idle()
                self._fail_requests(to_error(fields))  # of a message without a number: SECCOMP
                return
            future = self._requests.pop(sequence, None)
            if future is None or future.done():
                self._take_idle()  # an answer that nobody waits for any more
            elif message.type is Type.OK:
                future.set_result(fields)
            else:
                future.set_exception(to_error(fields))
        elif message.type is Type.EXITED:
            self._take_idle()  # but for the first
            status = to_exit(decode_fields(message.payload))
            if self._on_exited:
                self._on_exited(status)
        else:
            raise ProtocolViolation(f"the guest sent {message.type.name} on stream 0")

    def _take_idle(self) -> None:
        """A message that changes nothing.  An honest guest has sent it in answer to one of ours."""
        self._idle += 1
        if self._idle > _MOST_IDLE + self._sent:
            raise ProtocolViolation("the guest does not stop to send what nobody asked for")

    def _fail_requests(self, error: InsulaError) -> None:
        """What was asked after a message that failed must not go on as if it had not."""
        for future in list(self._requests.values()):
            if not future.done():
                future.set_exception(error)

    def _on_stream(self, message: Message) -> None:
        stream = self._streams.get(message.stream)
        if stream is None:
            self._take_idle()  # of a stream that has ended
            return
        match message.type:
            case Type.STDOUT | Type.STDERR if not message.payload:
                self._take_idle()
            case Type.STDOUT:
                stream.on_output(Std.STDOUT, message.payload)
            case Type.STDERR:
                stream.on_output(Std.STDERR, message.payload)
            case Type.CREDIT:
                if len(message.payload) != 4:
                    raise ProtocolViolation("the guest sent credit that is not four bytes")
                amount = int.from_bytes(message.payload, "little")
                if not amount:
                    self._take_idle()
                stream.on_credit(amount)
            case Type.OK | Type.ERROR if stream.answer.done():
                self._take_idle()
            case Type.EXITED if stream.exited.done():
                self._take_idle()
            case Type.OK:
                stream.answer.set_result(decode_fields(message.payload))
            case Type.ERROR:
                stream.answer.set_exception(to_error(decode_fields(message.payload)))
                stream.answer.exception()
            case Type.EXITED:
                stream.exited.set_result(number(decode_fields(message.payload), "code", 0, 255))
            case Type.CLOSED:
                del self._streams[message.stream]
                stream.on_end()
            case _:
                raise ProtocolViolation(f"the guest sent {message.type.name} on a stream")
