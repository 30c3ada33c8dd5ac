"""A Docker-API client on the standard library: the only way in for `cli` and `compare`.

Synchronous.  Speaks to a unix socket (`unix:///path`) or a TCP port (`tcp://host:port`), ours or any
other engine's; to a port also under TLS; to a daemon of ours on another machine through ssh (`ssh://user@host`).
Nothing of the daemon is imported here, and TLS and ssh only where they are used: the command line must start
fast.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from insula.errors import DaemonRefused, DaemonUnreachable, InvalidRequest

if TYPE_CHECKING:
    import ssl

    from insula.ssh import SshTarget
    from insula.tls import ClientFiles, TlsSocket

API_VERSION = "1.47"
_PIECE = 64 * 1024
_MULTIPLEXED = {
    "application/vnd.docker.multiplexed-stream": True,
    "application/vnd.docker.raw-stream": False,
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _SshConnection(http.client.HTTPConnection):
    def __init__(self, target: SshTarget, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._target = target

    def connect(self) -> None:
        from insula.ssh import open_connection

        self.sock = open_connection(self._target)
        self.sock.settimeout(self.timeout)


class Answer:
    """A response whose body has not been read yet.  Closes its connection at the end; a context manager."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def read(self) -> bytes:
        with self:
            return self._response.read()

    def json(self) -> Any:
        raw = self.read()
        return json.loads(raw) if raw.strip() else None

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most 64 KiB."""
        with self:
            while piece := self._response.read1(_PIECE):
                yield piece

    def lines(self) -> Iterator[Any]:
        """A body of JSON documents, one per line (events, progress), as they arrive."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in whole if line.strip())
        if rest.strip():
            yield json.loads(rest)

    def read_exactly(self, size: int) -> bytes:
        """Fewer bytes only at the end of the body."""
        parts = []
        while size > 0 and (part := self._response.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Hijacked:
    """A connection that has become a byte stream: attach and exec.  `multiplexed` says whether the
    output carries Docker's 8-byte headers (no tty)."""

    def __init__(self, sock: socket.socket | TlsSocket, rest: bytes, multiplexed: bool | None) -> None:
        self._sock = sock
        self._rest = rest
        self.multiplexed = multiplexed

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int = _PIECE) -> bytes:
        """b"" at the end."""
        if self._rest:
            piece, self._rest = self._rest[:size], self._rest[size:]
            return piece
        try:
            return self._sock.recv(size)
        except ConnectionResetError:
            return b""

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(channel, data) until the end: 1 is stdout, 2 is stderr."""
        if not self.multiplexed:
            while piece := self.recv():
                yield 1, piece
            return
        while header := self._exactly(8):
            left = int.from_bytes(header[4:8], "big")
            while left and (piece := self.recv(min(left, _PIECE))):
                left -= len(piece)
                yield header[0], piece
            if left:
                return

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.recv(size - len(data))
            if not piece:
                return b""
            data += piece
        return data

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def close_stdin(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side is gone already

    def shut(self) -> None:
        """End it from another thread: a `recv` that waits returns b""."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self._sock.close()


class Client:
    """One daemon.  Every request has a connection of its own, so a Client may be used from threads."""

    def __init__(
        self,
        host: str,
        *,
        timeout_s: float | None = None,
        version: str = API_VERSION,
        tls: ClientFiles | None = None,
    ) -> None:
        """`host` is `unix:///path`, `tcp://host:port` or `ssh://user@host`; of a port `tls` says that and how
        TLS is spoken.
        Raises InvalidRequest for any other address, and for certificates that cannot be read."""
        parts = urlsplit(host)
        self._tls: ssl.SSLContext | None = None
        self._ssh: SshTarget | None = None
        if parts.scheme == "unix" and parts.path:
            self._path: str | None = parts.path
        elif parts.scheme == "tcp" and parts.hostname:
            self._path = None
        elif parts.scheme == "ssh":
            from insula.ssh import target_of

            self._path, self._ssh, parts, tls = None, target_of(parts), urlsplit(""), None
        else:
            raise InvalidRequest(
                f"--host: {host!r} is not an address", hint="unix:///path, tcp://host:port or ssh://user@host"
            )
        self.host = host
        self.socket_path = self._path
        self._tcp = (parts.hostname or "", parts.port or (2375 if tls is None else 2376))
        if tls is not None and self._path is None:
            from insula.tls import client_context

            self._tls = client_context(tls)
        self._timeout_s = timeout_s
        self._prefix = f"/v{version}"

    def negotiate(self) -> None:
        """Speak an older API version if the daemon knows no newer one (another engine's daemon)."""
        with self.request("GET", "/_ping", versioned=False) as answer:
            theirs = answer.headers.get("Api-Version", "")
        if theirs and _version(theirs) < _version(self._prefix[2:]):
            self._prefix = f"/v{theirs}"

    def reachable(self) -> bool:
        try:
            self.request("GET", "/_ping", versioned=False).read()
        except (DaemonUnreachable, DaemonRefused):
            return False
        return True

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        raw: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        versioned: bool = True,
        ok: tuple[int, ...] = (),
    ) -> Answer:
        """Send and return once the headers are in.  `body` is sent as JSON, `raw` as it is.

        Raises DaemonUnreachable, and DaemonRefused for 304 and from 400 on, unless it is in `ok`.
        """
        connection = self._connect()
        path = path.replace("/containers//", "/containers/", 1)  # a name as inspect shows it
        target = (self._prefix if versioned else "") + path
        if query:
            words = {k: _word(v) for k, v in query.items() if v is not None}
            target += "?" + urlencode(words, quote_via=quote)
        sent: dict[str, str] = dict(headers or {})
        payload: Any = raw
        if body is not None:
            payload = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        elif raw is not None:
            sent.setdefault("Content-Type", "application/x-tar")
        elif method == "POST":
            sent["Content-Length"] = "0"
        try:
            try:
                connection.request(method, target, payload, sent, encode_chunked=payload_is_stream(payload))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the daemon refused before it had read everything; its answer says why
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._lost(error) from error
        answer = Answer(connection, response)
        if (response.status >= 400 or response.status == 304) and response.status not in ok:
            raise DaemonRefused(response.status, _message(answer.read(), response.status))
        return answer

    def get(self, path: str, **query: Any) -> Any:
        return self.request("GET", path, query=query).json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.request("POST", path, query=query, body=body).json()

    def delete(self, path: str, **query: Any) -> Any:
        return self.request("DELETE", path, query=query).json()

    def hijack(self, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Hijacked:
        """POST, and take the connection over once the daemon has agreed (101, or 200 from older ones)."""
        target = self._prefix + path
        if query:
            target += "?" + urlencode({k: _word(v) for k, v in query.items() if v is not None})
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        sock = self._dial()
        try:
            sock.sendall(head.encode() + payload)
            status, headers, rest = _read_head(sock)
            if status not in (101, 200):
                missing = int(headers.get("content-length", 0)) - len(rest)
                while missing > 0 and (piece := sock.recv(min(missing, _PIECE))):
                    rest += piece
                    missing -= len(piece)
                raise DaemonRefused(status, _message(rest, status))
        except (OSError, ValueError) as error:
            sock.close()
            raise self._lost(error) from error
        except DaemonRefused:
            sock.close()
            raise
        sock.settimeout(None)
        return Hijacked(sock, rest, _MULTIPLEXED.get(headers.get("content-type", "")))

    def stream(self) -> Hijacked:
        """A connection as it is, for a client that speaks HTTP itself.  Raises DaemonUnreachable."""
        own = self._dial()
        own.settimeout(None)
        return Hijacked(own, b"", None)

    def _lost(self, error: Exception) -> DaemonUnreachable:
        # what a daemon makes of a client without a certificate comes with its first answer
        hint = "--tlscert and --tlskey say who you are" if "CERTIFICATE" in str(error).upper() else None
        if self._ssh is not None:
            hint = f"`ssh {self._ssh.host} insula version` says what is wrong there"
        return DaemonUnreachable(
            f"lost the daemon at {self.host}: {error or type(error).__name__}", hint=hint
        )

    def _dial(self) -> socket.socket | TlsSocket:
        """A connection that a request may take over.  http.client's own cannot close one half under TLS."""
        connection = self._connect(plain=True)
        own = connection.sock.dup()
        connection.close()
        if self._tls is None:
            return own
        from insula.tls import TlsSocket

        try:
            return TlsSocket(own, self._tls, self._tcp[0])
        except OSError as error:
            own.close()
            raise self._no_way(error) from error

    def _connect(self, *, plain: bool = False) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._path is not None:
            connection = _UnixConnection(self._path, self._timeout_s)
        elif self._ssh is not None:
            connection = _SshConnection(self._ssh, self._timeout_s)
        elif self._tls is None or plain:
            connection = http.client.HTTPConnection(*self._tcp, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(*self._tcp, timeout=self._timeout_s, context=self._tls)
        try:
            connection.connect()
        except PermissionError as error:
            connection.close()
            raise DaemonUnreachable(
                f"permission denied on {self.host}", hint="use sudo, or join the group that owns the socket"
            ) from error
        except OSError as error:
            connection.close()
            raise self._no_way(error) from error
        return connection

    def _no_way(self, error: OSError) -> DaemonUnreachable:
        why, hint = error.strerror or str(error), "start it: sudo insula daemon, or systemctl start insula"
        if (reason := getattr(error, "verify_message", "")) and self._tls is not None:
            why, hint = f"its certificate: {reason}", "--tlscacert names the authority to trust"
        elif getattr(error, "reason", "") == "WRONG_VERSION_NUMBER":
            why, hint = "it speaks no TLS", "leave out --tls and --tlsverify, and DOCKER_TLS_VERIFY"
        return DaemonUnreachable(f"cannot connect to the daemon at {self.host}: {why}", hint=hint)


def payload_is_stream(payload: Any) -> bool:
    return payload is not None and not isinstance(payload, bytes)


def _read_head(sock: socket.socket | TlsSocket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and what has come after them.  Raises ValueError for no HTTP."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = sock.recv(_PIECE)
        if not piece or len(raw) > _PIECE:
            raise ValueError("the answer is not HTTP")
        raw += piece
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *others = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in others)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}, rest


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return str(value)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _message(raw: bytes, status: int) -> str:
    text = raw.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text or f"HTTP status {status}"
