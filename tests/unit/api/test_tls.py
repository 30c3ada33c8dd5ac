"""The TLS transport under a protocol that answers, with clients of the standard library and our own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from certificates import make_certificates
from insula.api.tls import TlsDoor
from insula.errors import InvalidRequest
from insula.tls import ClientFiles, TlsSocket, client_context, files_of, server_context

SIZE = 3_000_000


class Echo(asyncio.Protocol):
    """Says back what it hears; at end-of-file it says "end" and closes its half."""

    def __init__(self, lost: asyncio.Event) -> None:
        self.lost = lost
        self.keep = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.transport.writelines([b"en", b"d"])
        self.transport.write_eof()
        return self.keep

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Served:
    def __init__(self, port: int, lost: asyncio.Event) -> None:
        self.port, self.lost = port, lost

    def dial(self, files: ClientFiles) -> TlsSocket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        try:
            return TlsSocket(sock, client_context(files), "127.0.0.1")
        except BaseException:
            sock.close()
            raise

    async def gone(self) -> None:
        await asyncio.wait_for(self.lost.wait(), 20)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def served(certificates: Path) -> AsyncIterator[Served]:
    lost = asyncio.Event()
    context = server_context(
        cert=f"{certificates}/server.pem", key=f"{certificates}/server-key.pem", ca=f"{certificates}/ca.pem"
    )
    door = TlsDoor(lambda: Echo(lost), context)
    server = await asyncio.get_running_loop().create_server(door, "127.0.0.1", 0)
    yield Served(server.sockets[0].getsockname()[1], lost)
    door.close()
    server.close()
    await server.wait_closed()


def read_all(sock: TlsSocket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


async def test_the_end_of_what_a_client_says_is_not_the_end_of_what_it_hears(
    served: Served, certificates: Path
) -> None:
    sock = await asyncio.to_thread(served.dial, files_of(f"{certificates}/client", verify=True))
    text = bytes(range(256)) * (SIZE // 256)

    def talk() -> bytes:
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)
        return b""

    # both at once: neither side may wait for the other to listen first
    _, heard = await asyncio.gather(asyncio.to_thread(talk), asyncio.to_thread(read_all, sock))
    assert text + b"end" == heard
    sock.close()
    await served.gone()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_goes_without_a_word_is_noticed(
    served: Served, certificates: Path, newest: ssl.TLSVersion
) -> None:
    context = client_context(files_of(f"{certificates}/client", verify=True))
    context.maximum_version = newest

    def visit() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", served.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            sock.sendall(b"hi")
            return sock.recv(10)

    assert b"hi" == await asyncio.to_thread(visit)
    await served.gone()


@pytest.mark.parametrize("who", ["stranger", "nobody"])
async def test_without_a_certificate_of_the_authority_nothing_is_answered(
    served: Served, certificates: Path, who: str
) -> None:
    files = files_of(f"{certificates}/{who}", verify=False)

    def visit() -> None:
        sock = served.dial(files)
        try:
            sock.sendall(b"hi")
            sock.recv(10)
        finally:
            sock.close()

    with pytest.raises(ssl.SSLError, match=r"(?i)certificate|unknown ca"):
        await asyncio.to_thread(visit)
    assert not served.lost.is_set()  # no protocol was made


async def test_plain_http_is_told_what_it_has_come_to(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert answer.endswith(b"Client sent an HTTP request to an HTTPS server.\n")
    writer.close()


async def test_who_never_shakes_hands_is_dropped_with_the_door(certificates: Path) -> None:
    context = server_context(cert=f"{certificates}/server.pem", key=f"{certificates}/server-key.pem", ca=None)
    door = TlsDoor(lambda: Echo(asyncio.Event()), context)
    opening = asyncio.Event()

    def make() -> asyncio.Protocol:
        opening.set()
        return door()

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"\x16\x03")
    await opening.wait()
    door.close()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: {"cert": f"{d}/none.pem"}, "--tlscert: .*none.pem: No such file"),
        (lambda d: {"key": f"{d}/none.pem"}, "--tlskey: .*none.pem: No such file"),
        (lambda d: {"ca": f"{d}/none.pem"}, "--tlscacert: .*none.pem: No such file"),
        (lambda d: {"key": f"{d}/ca-key.pem"}, "do not belong together"),
        (lambda d: {"ca": f"{d}/server-key.pem"}, "--tlscacert: .*no certificate in PEM"),
        (lambda d: {"cert": f"{d}/server.ext"}, "no PEM"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    certificates: Path, change: Callable[[Path], dict[str, str]], named: str
) -> None:
    files = {"cert": f"{certificates}/server.pem", "key": f"{certificates}/server-key.pem"}
    with pytest.raises(InvalidRequest, match=named):
        server_context(**{"ca": None, **files, **change(certificates)})
