"""Tar, read strictly and written plainly.  Pure over file-like objects; synchronous.

Why not the standard library's: `tarfile` takes a damaged header in mid-archive for its end, reads
extended headers of any size into memory, and loses what it does not know.  This reader refuses what it
does not understand.  It knows ustar, GNU (long names, sparse, base-256 numbers), PAX (also sparse 0.0,
0.1 and 1.0, `SCHILY.xattr`) and old V7.  The writer makes ustar, with a PAX header where that is too small.

Names are bytes and untrusted: nothing here looks at what they mean.  Imports stay light: confined
children load this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from insula.errors import CorruptData

BLOCK = 512
END = bytes(2 * BLOCK)
PIECE = 1 << 18
_MAX_EXTENDED = 1 << 20  # bytes of one extended header or sparse map; Go's archive/tar has the same
_XATTR = b"SCHILY.xattr."

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = {FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO}


class Source(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


@dataclass(slots=True, kw_only=True)
class Member:
    """One entry.  `size` includes holes; `pieces` (of a sparse file) are offset and length of its data."""

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[tuple[int, int]] | None = None


def _number(raw: bytes, what: str) -> int:
    """Octal text, or base-256 as GNU writes large numbers."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big")
        bits = 8 * len(raw)
        if raw[0] & 0x40:  # negative, two's complement
            return value - (1 << bits)
        return value & ~(1 << (bits - 1))
    text = raw.split(b"\0", 1)[0].strip(b" ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise CorruptData(f"tar: {what} in a header is not a number: {raw!r}") from None


def _decimal(raw: bytes, what: str) -> int:
    if not raw.isdigit() or len(raw) > 20:
        raise CorruptData(f"tar: {what} is not a number: {raw[:40]!r}")
    return int(raw)


def _time_ns(raw: bytes) -> int:
    whole, _, fraction = raw.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    whole_s = _decimal(whole.lstrip(b"-") or b"0", "mtime")
    return sign * (whole_s * 1_000_000_000 + _decimal((fraction[:9] or b"0").ljust(9, b"0"), "mtime"))


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


class Reader:
    """Iterate for the members; `data` gives the current one's content, and what is left of it is skipped."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0  # bytes of the current member's data not read yet
        self._padding = 0
        self._member: Member | None = None
        self._global: dict[bytes, bytes] = {}

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size) or b""
        if len(data) == size:
            return data
        pieces = [data]
        have = len(data)
        while have < size:
            more = self._source.read(size - have)
            if not more:
                raise CorruptData("tar: the archive is cut off in the middle of an entry")
            pieces.append(more)
            have += len(more)
        return b"".join(pieces)

    def _skip(self) -> None:
        left, self._left = self._left, 0
        while left:
            left -= len(self._exactly(min(left, PIECE)))
        padding, self._padding = self._padding, 0
        # docker's client ends some contexts with the last file's last byte, and Go reads that
        if padding and (data := self._source.read(padding)):
            self._exactly(padding - len(data))

    def _block(self) -> bytes | None:
        """The next header; None at the end: two blocks of zeros, or (as GNU tar and Go) no more data."""
        first = self._source.read(BLOCK) or b""
        if not first:
            return None
        if len(first) < BLOCK:
            first += self._exactly(BLOCK - len(first))
        if first.strip(b"\0"):
            return first
        second = self._source.read(BLOCK) or b""
        if 0 < len(second) < BLOCK:
            second += self._exactly(BLOCK - len(second))
        if second.strip(b"\0"):
            raise CorruptData("tar: a lone block of zeros in the middle of the archive")
        return None

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def _extended(self, size: int) -> bytes:
        if size > _MAX_EXTENDED:
            raise CorruptData(
                f"tar: an extended header of {size} bytes; at most {_MAX_EXTENDED} are accepted"
            )
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _next(self) -> Member | None:
        self._skip()
        pax: dict[bytes, bytes] = {}
        sparse_pairs: list[bytes] = []
        long_name = long_link = None
        while True:
            block = self._block()
            if block is None:
                if pax or long_name is not None or long_link is not None:
                    raise CorruptData("tar: the archive ends after an extended header")
                return None
            _check_sum(block)
            kind = block[156:157]
            size = _number(block[124:136], "size")
            if size < 0:
                raise CorruptData("tar: an entry of negative size")
            if kind == b"L":
                long_name = _text(self._extended(size))
            elif kind == b"K":
                long_link = _text(self._extended(size))
            elif kind in (b"x", b"X"):
                pax = dict(_records(self._extended(size), sparse_pairs))
            elif kind == b"g":
                self._global.update(_records(self._extended(size), []))
            elif kind == b"V":  # a volume's label
                self._left, self._padding = size, -size % BLOCK
                self._skip()
            else:
                break
        member = _plain_member(block, kind)
        if long_name is not None:
            member.name = long_name
        if long_link is not None:
            member.link = long_link
        stored = self._apply(member, {**self._global, **pax} if self._global else pax, size)
        if member.kind == FILE and member.name.endswith(b"/"):  # V7 has no directories of its own
            member.kind = DIRECTORY
        self._left = stored if member.kind == FILE else 0
        self._padding = -self._left % BLOCK
        if kind == b"S":
            self._old_sparse(block, member)
        elif b"GNU.sparse.major" in pax or b"GNU.sparse.map" in pax or sparse_pairs:
            self._pax_sparse(pax, sparse_pairs, member)
        else:
            member.size = self._left
        if member.pieces is not None:
            _check_pieces(member.pieces, member.size, self._left)
        self._member = member
        return member

    def _apply(self, member: Member, pax: dict[bytes, bytes], stored: int) -> int:
        """PAX records over the header's fields.  Returns how many bytes of data follow."""
        if (name := pax.get(b"GNU.sparse.name", pax.get(b"path"))) is not None:
            member.name = name
        if (link := pax.get(b"linkpath")) is not None:
            member.link = link
        if raw := pax.get(b"uid"):
            member.uid = _decimal(raw, "uid")
        if raw := pax.get(b"gid"):
            member.gid = _decimal(raw, "gid")
        if raw := pax.get(b"mtime"):
            member.mtime_ns = _time_ns(raw)
        if raw := pax.get(b"size"):
            stored = _decimal(raw, "size")
        member.xattrs = {key[len(_XATTR) :]: pax[key] for key in pax if key.startswith(_XATTR)}
        for name in (member.name, member.link):
            if b"\0" in name:
                raise CorruptData(f"tar: a NUL in the name {name[:100]!r}")
        return stored

    def _old_sparse(self, block: bytes, member: Member) -> None:
        member.size = _number(block[483:495], "size")
        numbers = block[386:482]
        more = block[482]
        total = 0
        while more:
            extension = self._exactly(BLOCK)
            numbers += extension[:504]
            more = extension[504]
            total += BLOCK
            if total > _MAX_EXTENDED:
                raise CorruptData("tar: a sparse map that is too long")
        member.pieces = []
        for at in range(0, len(numbers) - 23, 24):
            if not numbers[at]:
                break
            offset, length = _number(numbers[at : at + 12], "map"), _number(numbers[at + 12 : at + 24], "map")
            member.pieces.append((offset, length))

    def _pax_sparse(self, pax: dict[bytes, bytes], pairs: list[bytes], member: Member) -> None:
        size = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size"))
        if size is None:
            raise CorruptData("tar: a sparse file without its size")
        member.size = _decimal(size, "sparse size")
        if pax.get(b"GNU.sparse.major") == b"1":
            numbers = self._sparse_map()
        elif b"GNU.sparse.map" in pax:
            numbers = [_decimal(n, "sparse map") for n in pax[b"GNU.sparse.map"].split(b",") if n]
        else:
            numbers = [_decimal(n, "sparse map") for n in pairs]
        if len(numbers) % 2:
            raise CorruptData("tar: a sparse map with an odd number of numbers")
        member.pieces = list(zip(numbers[::2], numbers[1::2], strict=True))

    def _sparse_map(self) -> list[int]:
        """Version 1.0: the map stands before the data, one decimal number a line, padded to a block."""
        text = b""
        lines: list[bytes] = []
        want = 1
        while len(lines) < want:
            if len(text) > _MAX_EXTENDED or self._left < BLOCK:
                raise CorruptData("tar: a sparse map that is too long")
            text += self._exactly(BLOCK)
            self._left -= BLOCK
            lines = text.split(b"\n")[:-1]
            if want == 1 and lines:
                want = 1 + 2 * _decimal(lines[0], "sparse map")
        return [_decimal(line, "sparse map") for line in lines[1:want]]

    def data(self) -> Iterator[tuple[int, bytes]]:
        """The current member's content: offset in the file, and data.  Holes are left out."""
        member = self._member
        if member is None:
            return
        for offset, length in member.pieces if member.pieces is not None else [(0, self._left)]:
            done = 0
            while done < length:
                piece = self._exactly(min(length - done, PIECE))
                self._left -= len(piece)
                yield offset + done, piece
                done += len(piece)


def _check_sum(block: bytes) -> None:
    right = sum(block) - sum(block[148:156]) + 256
    with contextlib.suppress(CorruptData):  # not even a number
        if _number(block[148:156], "checksum") == right:
            return
    raise CorruptData("tar: a header's checksum is wrong: this is not a tar archive, or it is damaged")


def _plain_member(block: bytes, kind: bytes) -> Member:
    if kind in (b"\0", b"7", b"S"):
        kind = FILE
    if kind not in _KINDS:
        raise CorruptData(f"tar: an entry of the unknown type {kind!r}: {_text(block[:100])!r}")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0":
        prefix = _text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
        name = prefix + b"/" + name if prefix else name
    device = kind in (CHAR, BLOCK_DEVICE)
    return Member(
        name=name,
        kind=kind,
        mode=_number(block[100:108], "mode") & 0o7777,
        uid=_number(block[108:116], "uid"),
        gid=_number(block[116:124], "gid"),
        mtime_ns=_number(block[136:148], "mtime") * 1_000_000_000,
        link=_text(block[157:257]),
        major=_number(block[329:337], "device") if device else 0,
        minor=_number(block[337:345], "device") if device else 0,
    )


def _records(data: bytes, sparse_pairs: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """PAX: `length key=value\\n`.  Sparse 0.0 repeats its keys: those go to `sparse_pairs`."""
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise CorruptData("tar: an extended header that is damaged")
        end = at + int(digits)
        record = data[at + len(digits) + 1 : end]
        if end > len(data) or not record.endswith(b"\n"):
            raise CorruptData("tar: an extended header that is damaged")
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not key:
            raise CorruptData("tar: an extended header that is damaged")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse_pairs.append(value)
        else:
            yield key, value
        at = end


def _check_pieces(pieces: list[tuple[int, int]], size: int, stored: int) -> None:
    position = total = 0
    for offset, length in pieces:
        if offset < position or length < 0 or offset + length > size:
            raise CorruptData("tar: a sparse file whose map does not fit its size")
        position = offset + length
        total += length
    if total != stored:
        raise CorruptData("tar: a sparse file whose map does not fit its data")


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def header(member: Member) -> bytes:
    """The member's header block, with a PAX header before it where ustar cannot say it.

    The member's data, padded by `padding(size)`, comes after it.  Sparse files are written whole.
    """
    pax: dict[bytes, bytes] = {_XATTR + key: value for key, value in sorted(member.xattrs.items())}
    name, prefix = member.name, b""
    if len(name) > 100:
        cut = name.rfind(b"/", 0, min(156, len(name) - 1))
        if cut > 0 and len(name) - cut - 1 <= 100:
            prefix, name = name[:cut], name[cut + 1 :]
        else:
            pax[b"path"], name = member.name, name[:100]
    if not member.name.isascii():
        pax[b"path"] = member.name
    link = member.link
    if len(link) > 100 or not link.isascii():
        pax[b"linkpath"], link = link, link[:100]

    def number(key: bytes, value: int, width: int) -> bytes:
        if 0 <= value < 8 ** (width - 1):
            return _octal(value, width)
        pax[key] = b"%d" % value
        return _octal(0, width)

    seconds, fraction_ns = divmod(member.mtime_ns, 1_000_000_000)
    if fraction_ns or seconds < 0:
        whole, rest = divmod(abs(member.mtime_ns), 1_000_000_000)
        pax[b"mtime"] = (b"-" if member.mtime_ns < 0 else b"") + (b"%d.%09d" % (whole, rest)).rstrip(b"0")
    fields = [
        name.ljust(100, b"\0"),
        _octal(member.mode & 0o177777, 8),
        number(b"uid", member.uid, 8),
        number(b"gid", member.gid, 8),
        number(b"size", member.size, 12),
        number(b"mtime", max(seconds, 0), 12),
        b" " * 8,
        member.kind,
        link.ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        _octal(member.major, 8),
        _octal(member.minor, 8),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = _summed(b"".join(fields))
    return _pax_header(pax) + block if pax else block


def _summed(block: bytes) -> bytes:
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax_header(records: dict[bytes, bytes]) -> bytes:
    body = b""
    for key, value in records.items():
        rest = len(key) + len(value) + 3
        length = rest + len(str(rest))
        length = rest + len(str(length))
        body += b"%d %s=%s\n" % (length, key, value)
    block = header(Member(name=b"PaxHeaders.0/x", size=len(body)))
    block = block[:148] + b" " * 8 + b"x" + block[157:]
    return _summed(block) + body + padding(len(body))


def padding(size: int) -> bytes:
    """Zeros after data of that size, up to a whole block."""
    return bytes(-size % BLOCK)
