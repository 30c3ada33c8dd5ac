"""The resolver behind the gateway addresses of user-defined networks (docs/decisions/0010), and inside of the
namespaces of instances whose networks have no bridge (`stubs`).  Async.

It answers what the directory knows and passes everything else on, to the servers that the instance was given
or to the host's, which it asks from the host's own network: a resolver on the host's loopback is reached
too.  While the daemon is away nobody answers, as in Docker.

Each network's port is any that is free; the firewall leads port 53 of the gateway there.  So the host's own
name server, and an instance that publishes port 53, keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from insula.network import dns
from insula.network.directory import Directory
from insula.network.names import parse_servers
from insula.network.stubs import Pair

log = logging.getLogger(__name__)

_SERVER_S = 2.0  # per server
_MOST_SERVERS = 3  # as resolv.conf
_MOST_WAITING = 512  # queries that are passed on at a time: an instance that floods us gets no answer
_MOST_CONNECTIONS = 64
_IDLE_S = 10.0
_PORT = 53
_PICKS = 4

Ask = Callable[[str, bytes, dns.Query], Awaitable[bytes]]


class Resolver:
    """`servers` reads those of the host: it may change networks while we run."""

    def __init__(self, directory: Directory, servers: Callable[[], str]) -> None:
        self._directory = directory
        self._servers = servers
        self._listening: dict[str, tuple[asyncio.DatagramTransport, asyncio.Server]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def listen(self, network_id: str, address: str) -> int:
        """The port at `address` that answers, by UDP and TCP.  Raises OSError."""
        for _ in range(_PICKS):
            with contextlib.suppress(OSError):  # what is free for the one may be taken for the other
                return await self._listen(network_id, address)
        return await self._listen(network_id, address)

    async def _listen(self, network_id: str, address: str) -> int:
        loop = asyncio.get_running_loop()
        stream = await asyncio.start_server(self._serve, address, 0)
        try:
            port = int(stream.sockets[0].getsockname()[1])
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(address, port), family=socket.AF_INET
            )
        except BaseException:
            stream.close()
            raise
        self._listening[network_id] = (transport, stream)
        return port

    async def listen_inside(self, netns: str, pair: Pair) -> None:
        """With sockets of a namespace, in which one instance asks.  Takes them."""
        self.close(netns)
        datagrams, connections = pair
        loop = asyncio.get_running_loop()
        stream = await asyncio.start_server(functools.partial(self._serve, asker_key=netns), sock=connections)
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self, netns), sock=datagrams
            )
        except BaseException:
            stream.close()
            raise
        self._listening[netns] = (transport, stream)

    def is_inside(self, netns: str) -> bool:
        return netns in self._listening

    def close(self, where: str) -> None:
        """A network's id, or a namespace.  Idempotent."""
        transport, stream = self._listening.pop(where, (None, None))
        if transport is not None and stream is not None:
            transport.close()
            stream.close()

    async def stop(self) -> None:
        for network_id in list(self._listening):
            self.close(network_id)
        tasks = [*self._tasks, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # what is asked

    def take(
        self, transport: asyncio.DatagramTransport, data: bytes, source: tuple[str, int], asker_key: str = ""
    ) -> None:
        """`asker_key`: who asks, where the address does not say so."""
        asker_key = asker_key or source[0]
        answer = self._answer(data, asker_key, most=dns.MOST_UDP)
        if answer is not None:
            transport.sendto(answer, source)
            return
        query, asker = dns.parse_query(data), self._directory.asker(asker_key)
        if not isinstance(query, dns.Query) or asker is None or len(self._tasks) >= _MOST_WAITING:
            return

        async def pass_on() -> None:
            said = await self._ask(data, query, asker.dns, _over_udp)
            if not transport.is_closing():
                transport.sendto(said, source)

        task = asyncio.create_task(pass_on())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asker_key: str = ""
    ) -> None:
        """One question after the other, each after two bytes of length."""
        if len(self._serving) >= _MOST_CONNECTIONS:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        source = asker_key or writer.get_extra_info("peername")[0]
        try:
            while True:
                async with asyncio.timeout(_IDLE_S):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                answer = self._answer(data, source, most=dns.MOST_MESSAGE)
                query, asker = dns.parse_query(data), self._directory.asker(source)
                if answer is None and isinstance(query, dns.Query) and asker is not None:
                    answer = await self._ask(data, query, asker.dns, _over_tcp)
                if answer is None:
                    return
                writer.write(struct.pack(">H", len(answer)) + answer)
                async with asyncio.timeout(_IDLE_S):
                    await writer.drain()
        except (OSError, EOFError, TimeoutError):
            return
        finally:
            self._serving.discard(task)
            writer.close()

    def _answer(self, untrusted: bytes, source: str, *, most: int) -> bytes | None:
        """Ours; None when it is to be passed on, or left without an answer."""
        query = dns.parse_query(untrusted)
        if query is None:
            return None
        if isinstance(query, int):
            return dns.make_error(untrusted, query)
        asker = self._directory.asker(source)
        if asker is None:
            return dns.make_error(untrusted, dns.REFUSED, query)
        if found := self._directory.find(asker, query.name):
            # of a name that is ours, every other kind of record is known not to exist
            wanted = [address for address in found if _kind(address) == query.kind]
            return dns.make_answer(query, [dns.address_record(a) for a in wanted], most=most)
        address = dns.reverse_address(query.name) if query.kind == dns.PTR else ""
        if address and (name := self._directory.name_of(asker, address)):
            return dns.make_answer(query, [dns.name_record(name)], most=most)
        if not asker.forwards:
            return dns.make_error(untrusted, dns.SERVER_FAILURE, query)
        return None

    async def _ask(self, data: bytes, query: dns.Query, servers: Sequence[str], ask: Ask) -> bytes:
        """One server after the other, under a number of our own."""
        for server in (tuple(servers) or parse_servers(self._servers()))[:_MOST_SERVERS]:
            asked = dns.renumber(data, secrets.randbelow(1 << 16))
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(_SERVER_S):
                    said = await ask(server, asked, query)
                return dns.renumber(said, query.number)
        return dns.make_error(data, dns.SERVER_FAILURE, query)


def _kind(address: str) -> int:
    return dns.AAAA if ":" in address else dns.A


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver, asker_key: str = "") -> None:
        self._resolver = resolver
        self._asker_key = asker_key
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transports are no DatagramTransport (before Python 3.12)
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self._resolver.take(self._transport, data, addr, self._asker_key)


class _Question(asyncio.DatagramProtocol):
    """From a port of its own, so that nobody can guess where an answer would have to go."""

    def __init__(self, asked: bytes, query: dns.Query) -> None:
        self._asked, self._query = asked, query
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done() and dns.is_answer_to(data, self._asked, self._query.question):
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _over_udp(server: str, asked: bytes, query: dns.Query) -> bytes:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _Question(asked, query), remote_addr=(server, _PORT)
    )
    try:
        transport.sendto(asked)
        return await protocol.answer
    finally:
        protocol.answer.cancel()
        transport.close()


async def _over_tcp(server: str, asked: bytes, query: dns.Query) -> bytes:
    reader, writer = await asyncio.open_connection(server, _PORT)
    try:
        writer.write(struct.pack(">H", len(asked)) + asked)
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        said = await reader.readexactly(length)
        if not dns.is_answer_to(said, asked, query.question):
            raise EOFError("an answer to something else")
        return said
    finally:
        writer.close()
