"""One end of a TLS connection without its socket, and what both sides of one are set up with.

For the API on TCP (`api.tls`) and for the client.  Neither asyncio's TLS nor `ssl.SSLSocket` can close one
half of a connection and go on with the other, which `docker run -i` and `exec -i` need at the end of stdin;
TLS itself can (a close_notify each way, RFC 8446 §6.1), and so does Go.  Sync.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from dataclasses import dataclass

from insula.errors import InvalidRequest

_PIECE = 64 * 1024
_HANDSHAKE_RECORD = 0x16


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """What a client is set up with: `ca`, `cert` and `key` are PEM files, or None for none.

    `verify`: the server must have a certificate for its name, of `ca` (None: of the system's authorities).
    """

    verify: bool
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


def server_context(*, cert: str, key: str, ca: str | None) -> ssl.SSLContext:
    """TLS 1.2 and up; with `ca`, clients without a certificate of that authority are refused.

    Raises InvalidRequest, which names the setting, for a file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, cert, key)
    if ca is not None:
        _load_authorities(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: ClientFiles) -> ssl.SSLContext:
    """Raises InvalidRequest, which names the option, for a file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not files.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif files.ca is not None:
        _load_authorities(context, files.ca)
    else:
        context.load_default_certs()
    if files.cert is not None or files.key is not None:
        _load_pair(context, files.cert or "", files.key or "")
    return context


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    _must_be_readable("tlscert", cert)
    _must_be_readable("tlskey", key)

    def no_password() -> str:
        raise InvalidRequest(f"--tlskey: {key} has a password", hint="openssl pkey -in KEY -out PLAIN-KEY")

    try:
        context.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        why = "they do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "no PEM"
        raise InvalidRequest(f"--tlscert, --tlskey: {cert}, {key}: {why}") from None


def _load_authorities(context: ssl.SSLContext, ca: str) -> None:
    _must_be_readable("tlscacert", ca)
    # as Go: each certificate in the file is trusted, also one that another has signed
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise InvalidRequest(f"--tlscacert: {ca}: no certificate in PEM") from None


def _must_be_readable(option: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise InvalidRequest(f"--{option}: {path or 'no file'}: {error.strerror}") from None


def is_tls(data: bytes) -> bool:
    """Whether this is how a TLS client begins; one that took us for plain HTTP begins with a word."""
    return data[:1] == bytes([_HANDSHAKE_RECORD])


class TlsStream:
    """Bytes of the network in, bytes of the application out, and back.

    start → feed until `ready` → feed and encrypt → close_write.  Their `bytes` are to be sent.  Whatever is
    wrong on the other side raises ssl.SSLError; what `farewell` returns then goes out last.
    """

    def __init__(self, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        """`server_name`: of the server that this is a client of; None: this is the server."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self.ready = False
        self.ended = False  # the other side writes no more
        self.closed = False  # this side writes no more

    def start(self) -> bytes:
        """A client's first words (a server has none)."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what the other side said, what is to be sent)."""
        self._incoming.write(data)
        plain = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.ready:
                self._tls.do_handshake()
                self.ready = True
            while not self.ended:
                try:
                    piece = self._tls.read(_PIECE)
                except ssl.SSLZeroReturnError:  # both sides have said good-bye
                    piece = b""
                plain += piece
                self.ended = not piece
        return bytes(plain), self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        """Not after `close_write`."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        return self._outgoing.read()

    def close_write(self) -> bytes:
        """End of what this side says; it goes on hearing the other."""
        if self.closed or not self.ready:
            return b""
        self.closed = True
        with contextlib.suppress(ssl.SSLError):  # it wants the other side's good-bye, which may be far off
            self._tls.unwrap()
        return self._outgoing.read()

    def farewell(self) -> bytes:
        """The alert that tells the other side what was wrong."""
        return self._outgoing.read()


class TlsSocket:
    """A connected client socket under TLS.  One thread may read while another writes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        """Shakes hands.  Raises OSError (ssl.SSLError is one)."""
        self._sock = sock
        self._stream = TlsStream(context, server_name=server_name)
        self._using = threading.Lock()  # OpenSSL's connections are no thread's
        self._sending = threading.Lock()  # apart: who waits to send must not keep the other from receiving
        self._plain = b""
        self._owed = b""  # what a key update calls for, ahead of what is sent next
        sock.sendall(self._stream.start())
        while not self._stream.ready:
            self._receive()
            self.sendall(b"")

    def recv(self, size: int) -> bytes:
        """b"" at the end."""
        while not self._plain and not self._stream.ended:
            self._receive()
        piece, self._plain = self._plain[:size], self._plain[size:]
        return piece

    def _receive(self) -> None:
        data = self._sock.recv(_PIECE)
        if not data:
            if not self._stream.ready:
                raise ConnectionResetError("the daemon closed the connection during the TLS handshake")
            self._stream.ended = True
            return
        with self._using:
            plain, reply = self._stream.feed(data)
            self._owed += reply
        self._plain += plain

    def sendall(self, data: bytes) -> None:
        with self._sending:
            with self._using:
                sealed, self._owed = self._owed + self._stream.encrypt(data), b""
            self._sock.sendall(sealed)

    def shutdown(self, how: int) -> None:
        """As of a socket: SHUT_WR keeps the other half open."""
        if how != socket.SHUT_WR:
            self._sock.shutdown(how)
            return
        with self._sending:
            with self._using:
                sealed = self._stream.close_write()
            self._sock.sendall(sealed)

    def settimeout(self, seconds: float | None) -> None:
        self._sock.settimeout(seconds)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


def files_of(directory: str, *, verify: bool) -> ClientFiles:
    """`ca.pem`, `cert.pem` and `key.pem` of a directory, as far as they exist: docker's names."""

    def there(name: str) -> str | None:
        path = os.path.join(directory, name)
        return path if os.path.exists(path) else None

    return ClientFiles(verify, there("ca.pem"), there("cert.pem"), there("key.pem"))
