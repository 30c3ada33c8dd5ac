"""The few DNS messages that a resolver for instances reads and writes (RFC 1035).  Pure.

Queries come from instances, so every byte of them is untrusted: what is not one question of class IN in a
name of letters that DNS allows is answered with an error or not at all.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, PTR, AAAA = 1, 12, 28
_IN = 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = range(6)

MOST_UDP = 512  # without EDNS, which we do not speak: our own answers are short
MOST_MESSAGE = 65_535
TTL_S = 600  # libnetwork's
_HEADER = struct.Struct(">HHHHHH")
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _WANTED, _AVAILABLE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_POINTER_TO_QUESTION = 0xC00C
_MOST_LABEL, _MOST_NAME = 63, 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """`name` is in lower case, without the last dot.  `question`: as it came, for the answer."""

    number: int
    wants_recursion: bool
    name: str
    kind: int
    question: bytes


def parse_query(untrusted: bytes) -> Query | int | None:
    """An error's code when it can be answered with one, None when it is no query at all."""
    if len(untrusted) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(untrusted)
    if flags & _RESPONSE:
        return None
    if flags & _OPCODE:
        return NOT_IMPLEMENTED
    if questions != 1:
        return FORMAT_ERROR
    found = _parse_name(untrusted, _HEADER.size)
    if found is None or len(untrusted) < found[1] + 4:
        return FORMAT_ERROR
    name, end = found
    kind, class_ = struct.unpack_from(">HH", untrusted, end)
    if class_ != _IN:
        return REFUSED
    return Query(
        number=number,
        wants_recursion=bool(flags & _WANTED),
        name=name,
        kind=kind,
        question=untrusted[_HEADER.size : end + 4],
    )


def _parse_name(untrusted: bytes, offset: int) -> tuple[str, int] | None:
    """And where it ends.  A question has no pointers: there is nothing before it to point to."""
    labels: list[str] = []
    start = offset
    while offset < len(untrusted):
        length = untrusted[offset]
        offset += 1
        if length == 0:
            return ".".join(labels), offset
        if length > _MOST_LABEL or offset + length - start > _MOST_NAME:
            return None
        label = untrusted[offset : offset + length]
        if len(label) < length:
            return None
        labels.append(label.decode("latin-1").lower().replace(".", "\\."))
        offset += length
    return None


def make_answer(query: Query, answers: Sequence[bytes], *, most: int) -> bytes:
    """`answers` are those of `address_record` and `name_record`; none: the name exists, but has nothing of
    this kind.  What does not fit in `most` bytes is left out, and said to be (then the client uses TCP)."""
    head = _HEADER.size + len(query.question)
    fitting: list[bytes] = []
    for record in answers:
        if head + sum(map(len, fitting)) + len(record) > most:
            break
        fitting.append(record)
    flags = _RESPONSE | _AVAILABLE | (_WANTED if query.wants_recursion else 0)
    flags |= _TRUNCATED if len(fitting) < len(answers) else 0
    header = _HEADER.pack(query.number, flags, 1, len(fitting), 0, 0)
    return header + query.question + b"".join(fitting)


def make_error(untrusted: bytes, code: int, query: Query | None = None) -> bytes:
    number, flags = struct.unpack_from(">HH", untrusted)
    answer = _RESPONSE | _AVAILABLE | (flags & (_OPCODE | _WANTED)) | code
    question = query.question if query else b""
    return _HEADER.pack(number, answer, 1 if question else 0, 0, 0, 0) + question


def address_record(address: str) -> bytes:
    packed = ipaddress.ip_address(address).packed
    return _record(A if len(packed) == 4 else AAAA, packed)


def name_record(name: str) -> bytes:
    labels = [label.encode("latin-1", errors="replace")[:_MOST_LABEL] for label in name.split(".") if label]
    return _record(PTR, b"".join(bytes([len(label)]) + label for label in labels) + b"\0")


def _record(kind: int, data: bytes) -> bytes:
    return struct.pack(">HHHIH", _POINTER_TO_QUESTION, kind, _IN, TTL_S, len(data)) + data


def reverse_address(name: str) -> str:
    """`4.3.2.1.in-addr.arpa` is 1.2.3.4, and 32 digits before `ip6.arpa` are an IPv6 address; "" for what
    asks for no address."""
    parts = name.split(".")
    try:
        if len(parts) == 6 and parts[4:] == ["in-addr", "arpa"]:
            return str(ipaddress.IPv4Address(".".join(reversed(parts[:4]))))
        if len(parts) == 34 and parts[32:] == ["ip6", "arpa"] and all(len(p) == 1 for p in parts[:32]):
            return str(ipaddress.IPv6Address(bytes.fromhex("".join(reversed(parts[:32])))))
    except ValueError:
        pass
    return ""


def renumber(message: bytes, number: int) -> bytes:
    return struct.pack(">H", number) + message[2:]


def is_answer_to(untrusted: bytes, asked: bytes, question: bytes) -> bool:
    """From a server: of the same number, about the same thing."""
    if len(untrusted) < _HEADER.size + len(question) or untrusted[:2] != asked[:2]:
        return False
    (flags,) = struct.unpack_from(">H", untrusted, 2)
    given = untrusted[_HEADER.size : _HEADER.size + len(question)]
    return bool(flags & _RESPONSE) and given.lower() == question.lower()
