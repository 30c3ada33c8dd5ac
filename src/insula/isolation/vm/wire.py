"""The agent protocol's bytes: frames, fields, sync marks (docs/agent-protocol.md).  Pure.

The guest is hostile: everything that is decoded here is bounded and checked; ProtocolViolation ends the VM.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from insula.errors import GuestFailed, InvalidRequest

SYNC = bytes.fromhex("f10d9a6e53796e432d696e73756c610a")
NONCE_BYTES = 16
HEADER = struct.Struct("<IBBH")
MOST_PAYLOAD = 65_536
MOST_MESSAGE = 4 * 1024 * 1024
MOST_FIELDS = 70_000  # in a message; a list of processes has the most
MORE = 1
CREDIT = 262_144  # what each side may send on a fresh stream
_CHUNK = 32_768


class Type(enum.IntEnum):
    HELLO = 1
    OK = 2
    ERROR = 3
    PING = 4
    IDENTITY = 5
    CONFIGURE = 6
    WORKLOAD = 7
    SECCOMP = 8
    START = 9
    SIGNAL = 10
    EXITED = 11
    ATTACH = 12
    EXEC = 13
    STDIN = 14
    STDIN_END = 15
    STDOUT = 16
    STDERR = 17
    CREDIT = 18
    CLOSE = 19
    CLOSED = 20
    RESIZE = 21
    STATS = 22
    PS = 23
    STAT = 24
    GET = 25
    PUT = 26
    CHANGES = 27
    SYNC = 28
    FREEZE = 29
    POWEROFF = 30
    PAUSE = 31
    RESET = 32
    RENEW = 33
    LIMIT = 34
    NETWORK = 35
    PREMOUNT = 36


FROM_GUEST = frozenset(
    {Type.HELLO, Type.OK, Type.ERROR, Type.EXITED, Type.STDOUT, Type.STDERR, Type.CREDIT, Type.CLOSED}
)
_RAW = frozenset({Type.STDIN, Type.STDOUT, Type.STDERR})


class ProtocolViolation(GuestFailed):
    """The guest sent what the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class Message:
    type: Type
    stream: int
    payload: bytes


Fields = dict[str, list[str]]


def encode_fields(pairs: Iterable[tuple[str, str]]) -> bytes:
    """`key NUL value NUL …`.  Raises InvalidRequest for text that cannot be sent."""
    out = bytearray()
    for key, value in pairs:
        try:
            raw = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise InvalidRequest(f"{key}: {value!r} is not text") from None
        if b"\0" in raw:
            raise InvalidRequest(f"{key}: {value!r} has a NUL byte in it")
        out += key.encode("ascii") + b"\0" + raw + b"\0"
    return bytes(out)


def decode_fields(payload: bytes) -> Fields:
    """Raises ProtocolViolation for a half pair or too many of them."""
    if payload.count(b"\0") > 2 * MOST_FIELDS:
        raise ProtocolViolation(f"the guest sent a message of more than {MOST_FIELDS} fields")
    parts = payload.split(b"\0")
    if parts[-1] != b"" or len(parts) % 2 == 0:
        raise ProtocolViolation("the guest sent a message whose fields do not come in pairs")
    fields: Fields = {}
    for key, value in zip(parts[:-1:2], parts[1:-1:2], strict=True):
        name = key.decode("ascii", "replace")
        fields.setdefault(name, []).append(value.decode("utf-8", "surrogateescape"))
    return fields


def number(fields: Mapping[str, list[str]], key: str, low: int, high: int) -> int:
    """A bounded number from the guest.  Raises ProtocolViolation."""
    untrusted = (fields.get(key) or [""])[0]
    if (
        len(untrusted) > 20
        or not untrusted.removeprefix("-").isascii()
        or not untrusted.removeprefix("-").isdigit()
    ):
        raise ProtocolViolation(f"the guest sent no number as {key}")
    value = int(untrusted)
    if not low <= value <= high:
        raise ProtocolViolation(f"the guest sent {value} as {key}, which is not within {low} to {high}")
    return value


class Encoder:
    """Messages to bytes.  Remembers the last bytes sent, so that no sync mark comes about by chance."""

    def __init__(self) -> None:
        self._tail = b""

    def encode(self, kind: Type, stream: int, payload: bytes = b"") -> bytes:
        """All frames of one message.  Raises ValueError for one above 4 MiB."""
        if len(payload) > MOST_MESSAGE:
            raise ValueError(f"a message of {len(payload)} bytes is too long for the agent")
        out = bytearray()
        pieces = [payload[at : at + MOST_PAYLOAD] for at in range(0, len(payload), MOST_PAYLOAD)] or [b""]
        for index, piece in enumerate(pieces):
            more = kind not in _RAW and index < len(pieces) - 1
            self._frame(out, kind, stream, piece, more)
        return bytes(out)

    def _frame(self, out: bytearray, kind: Type, stream: int, piece: bytes, more: bool) -> None:
        frame = HEADER.pack(len(piece), kind, MORE if more else 0, stream) + piece
        if SYNC in self._tail + frame and len(piece) > 1:
            half = self._split(piece)
            self._frame(out, kind, stream, piece[:half], kind not in _RAW)
            self._frame(out, kind, stream, piece[half:], more)
            return
        out += frame
        self._tail = (self._tail + frame)[-(len(SYNC) - 1) :]

    @staticmethod
    def _split(piece: bytes) -> int:
        """Within the mark when the mark is inside; else (it grew over a frame's border) anywhere."""
        at = piece.find(SYNC)
        return at + len(SYNC) // 2 if at >= 0 else max(1, len(piece) // 2)


class Decoder:
    """Bytes from the guest to messages.  First nothing but the 32 bytes of the sync answer count."""

    def __init__(self, nonce: bytes) -> None:
        self._answer = SYNC + nonce
        self._buffer = bytearray()
        self.synchronised = False
        self._partial: tuple[Type, int, bytearray] | None = None

    def feed(self, data: bytes) -> Iterator[Message]:
        """Raises ProtocolViolation."""
        self._buffer += data
        if not self.synchronised:
            at = self._buffer.find(self._answer)
            if at < 0:
                del self._buffer[: -(len(self._answer) - 1)]
                return
            del self._buffer[: at + len(self._answer)]
            self.synchronised = True
        while len(self._buffer) >= HEADER.size:
            length, kind, flags, stream = HEADER.unpack_from(self._buffer)
            if length > MOST_PAYLOAD:
                raise ProtocolViolation(f"the guest announced a frame of {length} bytes")
            if len(self._buffer) < HEADER.size + length:
                return
            payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            message = self._join(kind, flags, stream, payload)
            if message is not None:
                yield message

    def _join(self, kind: int, flags: int, stream: int, payload: bytes) -> Message | None:
        if kind not in FROM_GUEST:
            raise ProtocolViolation(f"the guest sent a message of type {kind}")
        if flags & ~MORE:
            raise ProtocolViolation(f"the guest sent the flags {flags}")
        if flags & MORE and not payload:
            raise ProtocolViolation("the guest sent a piece of a message without a byte in it")
        if self._partial is not None:
            begun, on, collected = self._partial
            if (kind, stream) != (begun, on):
                raise ProtocolViolation("the guest mixed two messages")
            if len(collected) + len(payload) > MOST_MESSAGE:
                raise ProtocolViolation("the guest sent a message above 4 MiB")
            collected += payload
            if flags & MORE:
                return None
            self._partial = None
            return Message(begun, on, bytes(collected))
        if flags & MORE:
            self._partial = (Type(kind), stream, bytearray(payload))
            return None
        return Message(Type(kind), stream, payload)


def stdin_pieces(data: bytes) -> Iterator[bytes]:
    """Input in pieces that keep other streams from waiting long."""
    for at in range(0, len(data), _CHUNK):
        yield data[at : at + _CHUNK]
