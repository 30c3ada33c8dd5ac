"""The tar reader against archives that the standard library and GNU tar wrote, and against broken ones."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import CorruptData
from insula.system import tar


def _read(data: bytes) -> list[tuple[tar.Member, bytes]]:
    reader = tar.Reader(io.BytesIO(data))
    found = []
    for member in reader:
        content = bytearray(member.size)
        for offset, piece in reader.data():
            content[offset : offset + len(piece)] = piece
        found.append((member, bytes(content)))
    return found


def _written(form: int, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_plain_file_is_read_in_every_format(form: int) -> None:
    info = tarfile.TarInfo("a/b")
    info.mode, info.uid, info.gid, info.mtime = 0o4755, 1000, 100, 1_700_000_000
    [(member, content)] = _read(_written(form, (info, b"hello")))
    assert (member.name, member.kind, member.mode) == (b"a/b", tar.FILE, 0o4755)
    assert (member.uid, member.gid, member.mtime_ns) == (1000, 100, 1_700_000_000 * 10**9)
    assert content == b"hello"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_large_ids_and_odd_characters(form: int) -> None:
    info = tarfile.TarInfo("d/" + "n" * 300 + "/é")
    info.type, info.linkname = tarfile.SYMTYPE, "t" * 400
    info.uid = 3_000_000_000
    [(member, _)] = _read(_written(form, (info, b"")))
    assert member.name == ("d/" + "n" * 300 + "/é").encode()
    assert member.link == b"t" * 400
    assert member.uid == 3_000_000_000


def test_nanoseconds_and_xattrs_come_from_pax_records() -> None:
    info = tarfile.TarInfo("f")
    info.pax_headers = {"mtime": "1700000000.123456789", "SCHILY.xattr.user.x": "a=b\nc"}
    [(member, _)] = _read(_written(tarfile.PAX_FORMAT, (info, b"")))
    assert member.mtime_ns == 1_700_000_000_123_456_789
    assert member.xattrs == {b"user.x": b"a=b\nc"}


@pytest.mark.parametrize(
    "form", ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"]
)
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        for at in range(8):
            file.seek(at * 1_000_000)
            file.write(b"x%d" % at)
        file.truncate(10_000_000)
    words = [form] if form.startswith("--format") else ["--format=posix", form]
    made = subprocess.run(
        ["tar", "-C", str(tmp_path), *words, "-S", "-c", "sparse"], stdout=subprocess.PIPE, check=True
    ).stdout
    [(member, content)] = _read(made)
    assert member.name == b"sparse"
    assert member.pieces is not None
    assert content == (tmp_path / "sparse").read_bytes()
    assert len(made) < 1_000_000


def test_a_cut_off_archive_is_refused() -> None:
    whole = _written(tarfile.PAX_FORMAT, (tarfile.TarInfo("f"), b"x" * 5000))
    for length in (100, 600, 2000):
        with pytest.raises(CorruptData, match="cut off"):
            _read(whole[:length])


def test_a_damaged_header_in_the_middle_is_refused() -> None:
    whole = bytearray(
        _written(tarfile.USTAR_FORMAT, (tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("b"), b"2"))
    )
    whole[1024] ^= 1
    with pytest.raises(CorruptData, match="checksum"):
        _read(bytes(whole))


def test_a_lone_block_of_zeros_is_refused() -> None:
    one = _written(tarfile.USTAR_FORMAT, (tarfile.TarInfo("a"), b"1"))[:1024]
    with pytest.raises(CorruptData, match="lone block"):
        _read(one + bytes(512) + one + tar.END)


def test_an_end_that_is_cut_off_is_refused() -> None:
    one = _written(tarfile.USTAR_FORMAT, (tarfile.TarInfo("a"), b"1"))[:1024]
    for end in (b"", bytes(512), bytes(1024)):
        assert 1 == len(_read(one + end))
    with pytest.raises(CorruptData, match="cut off"):
        _read(one + bytes(1023))


def test_an_enormous_extended_header_is_refused_unread() -> None:
    head = bytearray(tar.header(tar.Member(name=b"x", size=1 << 30)))
    head[156:157] = b"x"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    with pytest.raises(CorruptData, match="extended header"):
        _read(bytes(head) + tar.END)


def test_an_unknown_type_is_refused() -> None:
    head = bytearray(tar.header(tar.Member(name=b"x")))
    head[156:157] = b"D"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    with pytest.raises(CorruptData, match="unknown type"):
        _read(bytes(head) + tar.END)


def test_what_is_written_is_read_by_the_standard_library() -> None:
    members = [
        tar.Member(name=b"d/", kind=tar.DIRECTORY, mode=0o1777, mtime_ns=5 * 10**9),
        tar.Member(name=b"d/" + b"n" * 200 + "é".encode(), size=3, uid=2**31, xattrs={b"user.a": b"\1=\n"}),
        tar.Member(name=b"l", kind=tar.SYMLINK, link=b"t" * 150),
        tar.Member(name=b"c", kind=tar.CHAR, major=5, minor=1),
    ]
    data = b"".join(tar.header(m) + (b"abc" + tar.padding(3) if m.kind == tar.FILE else b"") for m in members)
    with tarfile.open(fileobj=io.BytesIO(data + tar.END)) as archive:
        directory, file, link, device = archive.getmembers()
        assert (directory.name, directory.mode, directory.mtime) == ("d", 0o1777, 5)
        assert (file.name, file.uid) == ("d/" + "n" * 200 + "é", 2**31)
        assert archive.extractfile(file).read() == b"abc"  # type: ignore[union-attr]
        assert file.pax_headers["SCHILY.xattr.user.a"] == "\1=\n"
        assert link.linkname == "t" * 150
        assert (device.devmajor, device.devminor) == (5, 1)


_NAMES = st.binary(min_size=1, max_size=400).filter(
    lambda n: b"\0" not in n and not n.endswith(b"/") and b"\n" not in n
)


@given(
    name=_NAMES,
    link=_NAMES,
    uid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(-(10**18), 4 * 10**18),
    data=st.binary(max_size=2000),
)
def test_the_reader_reads_what_the_writer_wrote(
    name: bytes, link: bytes, uid: int, mtime_ns: int, data: bytes
) -> None:
    file = tar.Member(name=name, size=len(data), uid=uid, mtime_ns=mtime_ns)
    symlink = tar.Member(name=name, kind=tar.SYMLINK, link=link)
    whole = tar.header(file) + data + tar.padding(len(data)) + tar.header(symlink) + tar.END
    [(one, content), (other, _)] = _read(whole)
    assert (one.name, one.uid, one.mtime_ns, content) == (name, uid, mtime_ns, data)
    assert (other.name, other.link) == (name, link)


@given(st.binary(max_size=3000), st.integers(0, 1535))
def test_damage_is_refused_or_read_but_never_anything_else(noise: bytes, at: int) -> None:
    info = tarfile.TarInfo("f")
    info.pax_headers = {"SCHILY.xattr.user.x": "y" * 300}
    whole = bytearray(_written(tarfile.PAX_FORMAT, (info, b"x" * 700)))
    whole[at : at + len(noise)] = noise
    try:
        _read(bytes(whole[: 64 * 1024]))
    except CorruptData:
        pass
    except MemoryError:  # bytearray(member.size) above, of a size that is only claimed
        pass


def test_reading_needs_no_seeking() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, _written(tarfile.PAX_FORMAT, (tarfile.TarInfo("f"), b"piped")))
    os.close(write_end)
    with open(read_end, "rb", buffering=0) as source:
        assert [m.name for m in tar.Reader(source)] == [b"f"]
