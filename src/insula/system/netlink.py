"""Netlink: requests to the kernel's network stack, packed by hand.  Synchronous, a socket per namespace.

Only the plumbing; verbs are in `links` and `nfnetlink`.  By hand because a start waits for it: building
and sending a request takes some 20 µs here, against milliseconds and 15 MiB for a general library
(docs/decisions, "raw netlink").  A socket belongs to the network namespace that its thread was in.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

NLMSG_ERROR = 2
NLMSG_DONE = 3

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_BUFFER = 1 << 16


@dataclass(frozen=True, slots=True)
class Message:
    """One request: `body` is the family's fixed header and its attributes."""

    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    type: int
    body: bytes


class NetlinkError(OSError):
    """The kernel said no.  `position` is which request of the batch it refused."""

    def __init__(self, number: int, position: int) -> None:
        super().__init__(number, os.strerror(number))
        self.position = position


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Flag bits are taken off the kinds."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Netlink:
    """A socket to one family.  Not for two threads at once."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *messages: Message) -> None:
        """One batch, in order.  Raises NetlinkError for the first that is refused; the rest was done."""
        self._transmit([(m.type, m.flags | NLM_F_REQUEST | NLM_F_ACK, m.body) for m in messages])
        first = self._sequence - len(messages) + 1
        refused: NetlinkError | None = None
        waiting = len(messages)
        while waiting:
            for kind, sequence, body in self._receive():
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                waiting -= 1
                (code,) = struct.unpack_from("=i", body)
                if code and refused is None:
                    refused = NetlinkError(-code, sequence - first)
        if refused is not None:
            raise refused

    def transact(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """nfnetlink's batch: all of them or none.  Raises NetlinkError for the first that is refused."""
        flagged = [(m.type, m.flags | NLM_F_REQUEST | NLM_F_ACK, m.body) for m in messages]
        self._transmit(
            [(begin.type, NLM_F_REQUEST, begin.body), *flagged, (end.type, NLM_F_REQUEST, end.body)]
        )
        first = self._sequence - len(messages)
        refused: NetlinkError | None = None
        waiting = len(messages)
        while waiting:
            for kind, sequence, body in self._receive():
                if kind != NLMSG_ERROR or sequence < first - 1:
                    continue
                (code,) = struct.unpack_from("=i", body)
                if code and refused is None:
                    refused = NetlinkError(-code, sequence - first)
                if not first <= sequence < first + len(messages):
                    waiting = 0  # the batch itself was refused (no privilege, generation changed)
                    break
                waiting -= 1
        if refused is not None:
            raise refused

    def ask(self, message: Message) -> Answer:
        """One request with one answer."""
        self._transmit([(message.type, message.flags | NLM_F_REQUEST, message.body)])
        while True:
            for kind, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    raise NetlinkError(-code, 0)
                return Answer(kind, body)

    def dump(self, message: Message) -> Iterator[Answer]:
        """All answers of a dump; read it to its end before the next request."""
        self._transmit([(message.type, message.flags | NLM_F_REQUEST | NLM_F_DUMP, message.body)])
        while True:
            for kind, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    raise NetlinkError(-code, 0)
                yield Answer(kind, body)

    def _transmit(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        parts = []
        for kind, flags, body in messages:
            self._sequence += 1
            parts.append(_HEADER.pack(len(body) + 16, kind, flags, self._sequence, 0))
            parts.append(body + b"\0" * (-len(body) % 4))
        self._socket.send(b"".join(parts))

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, sequence, body) of each message in one datagram."""
        data = self._socket.recv(_BUFFER)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < 16:
                raise NetlinkError(errno.EBADMSG, 0)
            yield kind, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3
