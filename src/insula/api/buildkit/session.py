"""A build's client, called back: its files, secrets, credentials and SSH agent.  Async.

The client dials `/session` and serves gRPC there; a build names the session that it belongs to.  What it
offers is in the request's headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import quote_plus

from grpclib.client import Channel, Stream
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.streams import Packets
from insula.errors import InsulaError, InvalidRequest, Unavailable
from insula.model.credentials import Credentials

log = logging.getLogger(__name__)

SESSION_ID = "X-Docker-Expose-Session-Uuid"
SESSION_METHOD = "X-Docker-Expose-Session-Grpc-Method"
SESSION_KEY = "X-Docker-Expose-Session-Sharedkey"

_FILES = "/moby.filesync.v1.FileSync/DiffCopy"
_SEND = "/moby.filesync.v1.FileSend/DiffCopy"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
_UPLOAD = "/moby.upload.v1.Upload/Pull"

_WAIT_S = 5.0  # for a session that a build names: both are dialled at the same time
_ANSWER_S = 30.0
_PIECE = 32 * 1024
_HUB = "registry-1.docker.io"  # as BuildKit asks for Docker Hub's
_UPLOAD_HOST = "buildkit-session"

_Call = Stream[Any, Any]
T = TypeVar("T")


class Session:
    """`offered` are the methods that the client serves, as `/service/Method`.  `shared_key` is what it says
    its directories are known by from one session to the next ("": by nothing)."""

    def __init__(self, ident: str, offered: frozenset[str], channel: Channel, shared_key: str = "") -> None:
        self.ident = ident
        self.shared_key = shared_key
        self._offered = {path.lower() for path in offered}
        self._channel = channel

    def offers(self, path: str) -> bool:
        return path.lower() in self._offered

    # for the builder (build.options.Client)

    async def secret(self, ident: str) -> bytes | None:
        if not self.offers(_SECRET):
            return None
        try:
            answer = await self._ask(
                _SECRET, wire.GetSecretRequest(id=ident), wire.GetSecretRequest, wire.GetSecretResponse
            )
        except GRPCError as error:
            if error.status is Status.NOT_FOUND:
                return None
            raise _failed(f"secret {ident}", error) from None
        return bytes(answer.data)

    async def credentials(self, registry: str) -> Credentials | None:
        if not self.offers(_CREDENTIALS):
            return None
        host = _HUB if registry == "docker.io" else registry
        try:
            answer = await self._ask(
                _CREDENTIALS,
                wire.CredentialsRequest(host=host),
                wire.CredentialsRequest,
                wire.CredentialsResponse,
            )
        except GRPCError as error:
            raise _failed(f"credentials for {registry}", error) from None
        if not answer.secret:
            return None
        if not answer.username:  # what `docker login` keeps of a browser's login
            return Credentials(identity_token=answer.secret)
        return Credentials(username=answer.username, password=answer.secret)

    def ssh_agent(self, ident: str, path: str) -> AbstractAsyncContextManager[bool]:
        return self._agent(ident, path)

    @asynccontextmanager
    async def _agent(self, ident: str, path: str) -> AsyncIterator[bool]:
        if not self.offers(_AGENT):
            yield False
            return
        try:
            await self._ask(
                _CHECK_AGENT,
                wire.CheckAgentRequest(id=ident),
                wire.CheckAgentRequest,
                wire.CheckAgentResponse,
            )
        except GRPCError:
            yield False
            return
        forwarding: set[asyncio.Task[None]] = set()

        def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._forward(ident, reader, writer))
            forwarding.add(task)
            task.add_done_callback(forwarding.discard)

        server = await asyncio.start_unix_server(forward, path)
        try:
            yield True
        finally:
            server.close()
            for task in forwarding:
                task.cancel()
            await asyncio.gather(*forwarding, return_exceptions=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def _forward(self, ident: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a program in the step, to the client's agent."""
        which = {"buildkit.ssh.id": [ident]}
        try:
            async with self._stream(_AGENT, wire.BytesMessage, wire.BytesMessage, which) as stream:
                await stream.send_request()

                async def up() -> None:
                    while piece := await reader.read(_PIECE):
                        await stream.send_message(wire.BytesMessage(data=piece))
                    await stream.end()

                going = asyncio.create_task(up())
                try:
                    while (message := await stream.recv_message()) is not None:
                        writer.write(message.data)
                        await writer.drain()
                finally:
                    going.cancel()
                    await asyncio.gather(going, return_exceptions=True)
        except (GRPCError, StreamTerminatedError, ConnectionError) as error:
            log.debug("the client's agent %s: %s", ident, error)
        finally:
            writer.close()

    # files

    @asynccontextmanager
    async def files(
        self,
        directory: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        follow: Sequence[str] = (),
    ) -> AsyncIterator[Packets]:
        """The client's directory of that name, as packets (`transfer.receive`).  Raises InvalidRequest."""
        if not self.offers(_FILES):
            raise InvalidRequest(
                f"the build's client offers no files, so there is no directory {directory!r}"
            )
        asked = {
            "dir-name": [directory],
            "include-patterns": list(include),
            "exclude-patterns": list(exclude),
            "followpaths": list(follow),
        }
        with _told(f"reading the client's directory {directory!r}"):
            async with self._stream(_FILES, wire.Packet, wire.Packet, _encoded(asked)) as stream:
                await stream.send_request()
                yield Packets(stream, wire.Packet)

    @staticmethod
    def is_upload(address: str) -> bool:
        """Whether the address is one that the client made up, for its standard input."""
        return address.startswith(f"http://{_UPLOAD_HOST}/")

    async def upload(self, address: str) -> AsyncGenerator[bytes, None]:
        """What the client reads from its standard input, named by an address that it made up."""
        path = "/" + address.partition("://")[2].partition("/")[2]
        which = {"urlpath": [path], "urlhost": [_UPLOAD_HOST]}
        with _told("reading the context from the client"):
            async with self._stream(_UPLOAD, wire.BytesMessage, wire.BytesMessage, which) as stream:
                await stream.send_request(end=True)
                while (message := await stream.recv_message()) is not None:
                    yield message.data

    @asynccontextmanager
    async def output(self, number: int, *, packets: bool) -> AsyncIterator[Packets]:
        """Where the `number`th exporter of a build writes: a directory of the client's (packets, see
        `transfer.send`), or one file.  Raises InvalidRequest."""
        if not self.offers(_SEND):
            raise InvalidRequest("the build's client takes no files")
        kind: type = wire.Packet if packets else wire.BytesMessage
        which = {"buildkit-attachable-exporter-id": [str(number)]}
        with _told("writing to the client"):
            async with self._stream(_SEND, kind, kind, which) as stream:
                await stream.send_request()
                yield Packets(stream, kind)

    # gRPC

    async def _ask(self, path: str, message: Any, asks: type[Any], gives: type[Any]) -> Any:
        call: _Call = self._channel.request(path, Cardinality.UNARY_UNARY, asks, gives, timeout=_ANSWER_S)
        async with call as stream:
            await stream.send_message(message, end=True)
            return await stream.recv_message()

    def _stream(
        self, path: str, asks: type[Any], gives: type[Any], metadata: Mapping[str, Sequence[str]]
    ) -> _Call:
        pairs = [(name, value) for name, values in metadata.items() for value in values]
        return self._channel.request(path, Cardinality.STREAM_STREAM, asks, gives, metadata=pairs)


def _failed(what: str, error: GRPCError) -> InsulaError:
    """The client's own words, which are its user's."""
    return InvalidRequest(f"{what}: {error.message or error.status.name}")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What goes wrong at the client is an error of its request."""
    try:
        yield
    except GRPCError as error:
        raise _failed(what, error) from None
    except StreamTerminatedError:
        raise InvalidRequest("the build's client has gone") from None


def _encoded(asked: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Headers are ASCII: what is not is quoted, and another header says so."""
    found: dict[str, Sequence[str]] = {}
    for name, values in asked.items():
        if all(value.isascii() and value.isprintable() for value in values):
            found[name] = values
        else:
            found[name] = [quote_plus(value) for value in values]
            found[f"{name}-encoded"] = ["1"]
    return found


class Awaited(Generic[T]):
    """Things by their names, which may be asked for before they are there: requests overtake each other."""

    def __init__(self) -> None:
        self.known: dict[str, T] = {}
        self._changed = asyncio.Event()

    def add(self, name: str, thing: T) -> None:
        self.known[name] = thing
        self._changed.set()

    async def find(self, name: str, wait_s: float) -> T | None:
        """None when it does not come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while name not in self.known:
                    self._changed.clear()
                    await self._changed.wait()
        return self.known.get(name)


class Sessions:
    """Those that are open, by the name that their client gave them."""

    def __init__(self) -> None:
        self._open = Awaited[Session]()

    @contextlib.contextmanager
    def entered(self, session: Session) -> Iterator[None]:
        self._open.add(session.ident, session)
        try:
            yield
        finally:
            if self._open.known.get(session.ident) is session:
                del self._open.known[session.ident]

    async def find(self, ident: str) -> Session:
        """Raises Unavailable when it does not come."""
        if not ident:
            raise InvalidRequest("the build names no session")
        if (session := await self._open.find(ident, _WAIT_S)) is None:
            raise Unavailable(f"no active session for {ident}")
        return session
