"""Contexts as they come: hostile tars, Dockerfiles in odd places, files from addresses."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from insula.build.context import receive_context
from insula.build.remote import fetch, is_git, name_of
from insula.errors import CorruptData, InvalidRequest, RegistryFailed

pytestmark = pytest.mark.integration

TIME = 1_600_000_000


def tar_of(**files: Any) -> bytes:
    """Names with `__` for `/`; a tuple is a symlink's target, or another kind of member with its link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, what in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.uid, member.gid = 5, 6
            if isinstance(what, tuple):
                member.type, member.linkname = what if len(what) == 2 else (tarfile.SYMTYPE, what[0])
            else:
                member.size = len(what)
            tar.addfile(member, io.BytesIO(what) if isinstance(what, bytes) else None)
    return buffer.getvalue()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 700):
        yield data[at : at + 700]


async def received(
    place: Path, data: bytes, dockerfile: str = "Dockerfile", remote: str = ""
) -> dict[str, bytes]:
    """What is in the context then, and the Dockerfile as ""."""
    context = await receive_context(pieces(data), str(place), dockerfile=dockerfile, remote=remote)
    root = Path(context.directory)
    found = {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert all(os.lstat(root / name).st_uid == 0 for name in found)
    return {**found, "": context.dockerfile}


def _runs(module: str) -> bool:
    """Whether a child of ours runs it."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            ours = f"PPid:\t{os.getpid()}\n" in status.read_text()
            if ours and module in (status.parent / "cmdline").read_text():
                return True
    return False


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "place"
    made.mkdir()
    return made


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_a_context_packed_or_not(place: Path, pack: Any) -> None:
    data = pack(tar_of(Dockerfile=b"FROM a", d__x=b"1"))
    assert {"": b"FROM a", "Dockerfile": b"FROM a", "d/x": b"1"} == await received(place, data)


async def test_the_last_file_may_lack_its_padding(place: Path) -> None:
    """As docker's client sends a context with a Dockerfile from elsewhere."""
    data = tar_of(a=b"1", Dockerfile=b"FROM a")
    assert {"": b"FROM a", "Dockerfile": b"FROM a", "a": b"1"} == await received(place, data[: 3 * 512 + 6])


@pytest.mark.parametrize(
    ("files", "dockerfile", "expected"),
    [
        ({"sub__D": b"1"}, "sub/D", b"1"),
        ({"sub__D": b"1"}, "./sub/../sub/D", b"1"),
        ({"dockerfile": b"1"}, "Dockerfile", b"1"),
        ({"real": b"1", "Dockerfile": ("real",)}, "Dockerfile", b"1"),
        ({"real": b"1", "d__Dockerfile": ("/real",)}, "d/Dockerfile", b"1"),
    ],
)
async def test_where_a_dockerfile_may_be(
    place: Path, files: dict[str, Any], dockerfile: str, expected: bytes
) -> None:
    assert expected == (await received(place, tar_of(**files), dockerfile))[""]


async def test_what_ignores_itself_is_not_in_the_context(place: Path) -> None:
    data = tar_of(
        **{"Dockerfile": b"FROM a", ".dockerignore": b"Dockerfile\n.dockerignore\nother\n", "other": b"1"}
    )
    # what else is ignored, the client leaves out, or wants
    assert {"": b"FROM a", "other": b"1"} == await received(place, data)


async def test_a_pattern_that_takes_for_ever_keeps_nobody_waiting(place: Path) -> None:
    hostile = b"**/a" * 30 + b"b\n"
    name = "a/" * 30 + "Dockerfile"
    data = tar_of(**{name.replace("/", "__"): b"FROM a", ".dockerignore": hostile})
    received_one = asyncio.create_task(received(place, data, name))
    async with asyncio.timeout(60):
        while not _runs("ignore_child"):  # noqa: ASYNC110  (the loop goes on beside it: that is the test)
            await asyncio.sleep(0.01)
    received_one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await received_one
    assert not _runs("ignore_child")


@pytest.mark.parametrize(
    "data",
    [
        tar_of(Dockerfile=("/etc/passwd",)),
        tar_of(Dockerfile=("../../../../../../etc/passwd",)),
        tar_of(Dockerfile=("/proc/self/environ",)),
        tar_of(Dockerfile=(tarfile.FIFOTYPE, "")),
        tar_of(Dockerfile=("Dockerfile",)),
        tar_of(**{"..__Dockerfile": b"FROM a"}),
        tar_of(out=("/tmp",), out__Dockerfile__x=b"1"),
        tar_of(a=b"1"),
        tar_of(Dockerfile=b"FROM a")[:600],
        b"not a tar at all" * 100,
        b"",
    ],
    ids=[str(number) for number in range(11)],
)  # fmt: skip
async def test_contexts_that_mean_harm(place: Path, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await received(place, data)
    assert ["place"] == os.listdir(tmp_path)


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/f%20g": b"fetched",
            "/Dockerfile": b"FROM a\n",
            "/c.tar": tar_of(Dockerfile=b"FROM b", x=b"1"),
        }
        body = answers.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header("Last-Modified", "Sun, 13 Sep 2020 12:26:40 GMT")
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_context_that_is_somewhere_else(place: Path, address: str, tmp_path: Path) -> None:
    assert {"": b"FROM a\n"} == await received(place, b"", remote=f"{address}/Dockerfile")
    other = tmp_path / "other"
    other.mkdir()
    found = await received(other, b"", remote=f"{address}/c.tar")
    assert {"": b"FROM b", "Dockerfile": b"FROM b", "x": b"1"} == found
    for remote in ("client-session", "https://host/repo.git", "git@host:repo", "file:///etc/passwd", "/etc"):
        third = tmp_path / hashlib.md5(remote.encode()).hexdigest()
        third.mkdir()
        with pytest.raises(InvalidRequest):
            await received(third, b"", remote=remote)


async def test_a_file_from_an_address(address: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    digest = f"sha256:{hashlib.sha256(b'fetched').hexdigest()}"
    assert "f g" == await fetch(f"{address}/f%20g", str(path), checksum=digest)
    found = os.stat(path)
    assert (b"fetched", 0o600, TIME) == (path.read_bytes(), found.st_mode & 0o777, int(found.st_mtime))
    with pytest.raises(CorruptData, match="--checksum says"):
        await fetch(f"{address}/f%20g", str(tmp_path / "wrong"), checksum="sha256:" + "0" * 64)
    with pytest.raises(RegistryFailed, match="status 404"):
        await fetch(f"{address}/none", str(tmp_path / "none"))


def test_names_and_kinds_of_addresses() -> None:
    assert ["a.tar", "", "b c"] == [name_of(f"http://h/{path}") for path in ("x/a.tar?q#f", "x/", "b%20c")]
    assert [True, True, False] == [
        is_git(text) for text in ("https://h/r.git#main:d", "git@h:r", "https://h/r.tar")
    ]
