"""Carries what reaches published ports of IPv6 on to instances: the program behind `relays`.  Synchronous.

A process of its own, so that no traffic runs through the daemon's loop; it imports nothing of ours.  Its
stdin is a socket to the daemon: each datagram is JSON, with the listening socket beside it when it is a new
one.  It ends when the daemon does, as Docker's docker-proxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

_PIECE = 1 << 16
_MOST_WAITING = 1 << 18  # bytes of one direction that nobody has taken yet
_UDP_IDLE_S = 90.0  # docker-proxy's
_MOST_CLIENTS = 4096  # of UDP, per port
_MOST_CONTROL = 1 << 12
_SWEEP_S = 15.0
_NOBODY = 65534

Handler = Callable[[int], None]


class Loop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: dict[socket.socket, int] = {}

    def watch(self, of: socket.socket, events: int, handler: Handler) -> None:
        """`events` 0: no more."""
        if self._watched.get(of, 0) == events:
            return
        if not events:
            self._selector.unregister(of)
            del self._watched[of]
        elif of in self._watched:
            self._selector.modify(of, events, handler)
            self._watched[of] = events
        else:
            self._selector.register(of, events, handler)
            self._watched[of] = events

    def run(self, sweep: Callable[[], None]) -> None:
        next_sweep = time.monotonic() + _SWEEP_S
        while True:
            for key, events in self._selector.select(max(0.0, next_sweep - time.monotonic())):
                if key.fileobj in self._watched:  # an earlier handler may have closed it
                    key.data(events)
            if time.monotonic() >= next_sweep:
                sweep()
                next_sweep = time.monotonic() + _SWEEP_S


class Direction:
    """Bytes from one socket to the other, until the end of the first is the end of the second."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.waiting = bytearray()
        self.ended = self.done = False

    def read(self) -> None:
        piece = self.source.recv(_PIECE)
        self.waiting += piece
        self.ended = not piece

    def write(self) -> None:
        if self.waiting:
            del self.waiting[: self.sink.send(self.waiting)]
        if self.ended and not self.waiting and not self.done:
            self.done = True
            self.sink.shutdown(socket.SHUT_WR)


class Connection:
    def __init__(self, loop: Loop, client: socket.socket, server: socket.socket) -> None:
        self._loop = loop
        self._sides = (client, server)
        self._there, self._back = Direction(client, server), Direction(server, client)
        self._connected = False
        for side in self._sides:
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        loop.watch(server, selectors.EVENT_WRITE, lambda events: self._step(server, events))

    def _step(self, side: socket.socket, events: int) -> None:
        try:
            if not self._connected:
                if (error := side.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != 0:
                    raise OSError(error, "connect")
                self._connected = True
            forth, back = (self._there, self._back) if side is self._sides[0] else (self._back, self._there)
            if events & selectors.EVENT_READ and not forth.ended:
                forth.read()
            with contextlib.suppress(BlockingIOError):
                forth.write()
            with contextlib.suppress(BlockingIOError):
                back.write()
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if self._there.done and self._back.done:
            self._close()
            return
        for one, out, into in (
            (self._sides[0], self._there, self._back),
            (self._sides[1], self._back, self._there),
        ):
            wants_read = not out.ended and len(out.waiting) < _MOST_WAITING
            events = selectors.EVENT_READ if wants_read else 0
            events |= selectors.EVENT_WRITE if into.waiting else 0
            self._loop.watch(one, events, lambda seen, one=one: self._step(one, seen))  # type: ignore[misc]

    def _close(self) -> None:
        for side in self._sides:
            self._loop.watch(side, 0, lambda _: None)
            side.close()


class TcpPort:
    def __init__(self, loop: Loop, listener: socket.socket, target: tuple[str, int]) -> None:
        self._loop, self._listener, self.target = loop, listener, target
        listener.setblocking(False)
        loop.watch(listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            client, _peer = self._listener.accept()
        except OSError:
            time.sleep(0.01)  # no descriptors left: not a busy loop
            return
        server = None
        try:
            server = socket.socket(_family(self.target[0]), socket.SOCK_STREAM)
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                server.connect(self.target)
            Connection(self._loop, client, server)
        except OSError:
            client.close()
            if server is not None:
                server.close()

    def sweep(self, now: float) -> None:
        """Nothing: connections end by themselves."""

    def close(self) -> None:
        self._loop.watch(self._listener, 0, self._accept)
        self._listener.close()


class UdpPort:
    """A socket of its own towards the instance for each client, which tells the answers apart."""

    def __init__(self, loop: Loop, listener: socket.socket, target: tuple[str, int]) -> None:
        self._loop, self._listener, self.target = loop, listener, target
        self._clients: dict[Any, tuple[socket.socket, list[float]]] = {}
        listener.setblocking(False)
        # answers leave from the address that was asked
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        loop.watch(listener, selectors.EVENT_READ, self._receive)

    def _receive(self, _: int) -> None:
        try:
            data, extra, _flags, source = self._listener.recvmsg(_PIECE, socket.CMSG_SPACE(20))
        except OSError:
            return
        info = next((d for level, kind, d in extra if (level, kind) == _PKTINFO), b"")
        with contextlib.suppress(OSError):
            server, used = self._clients.get((source, info)) or self._meet(source, info)
            used[0] = time.monotonic()
            server.send(data)

    def _meet(self, source: Any, info: bytes) -> tuple[socket.socket, list[float]]:
        if len(self._clients) >= _MOST_CLIENTS:
            self._forget(min(self._clients, key=lambda key: self._clients[key][1][0]))
        server = socket.socket(_family(self.target[0]), socket.SOCK_DGRAM)
        try:
            server.setblocking(False)
            server.connect(self.target)
        except BaseException:
            server.close()
            raise
        used = [time.monotonic()]

        def answer(_: int) -> None:
            with contextlib.suppress(OSError):  # also the instance's "port unreachable"
                said = server.recv(_PIECE)
                used[0] = time.monotonic()
                self._listener.sendmsg([said], [(*_PKTINFO, info)] if info else [], 0, source)

        self._loop.watch(server, selectors.EVENT_READ, answer)
        self._clients[source, info] = (server, used)
        return server, used

    def _forget(self, key: Any) -> None:
        server, _ = self._clients.pop(key)
        self._loop.watch(server, 0, lambda _: None)
        server.close()

    def sweep(self, now: float) -> None:
        for key in [key for key, (_, used) in self._clients.items() if used[0] + _UDP_IDLE_S < now]:
            self._forget(key)

    def close(self) -> None:
        for key in list(self._clients):
            self._forget(key)
        self._loop.watch(self._listener, 0, self._receive)
        self._listener.close()


_PKTINFO = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Ports:
    """What the daemon wants carried, by its numbers."""

    def __init__(self, loop: Loop, control: socket.socket) -> None:
        self._loop, self._control = loop, control
        self._ports: dict[int, TcpPort | UdpPort] = {}
        loop.watch(control, selectors.EVENT_READ, self._listen)

    def _listen(self, _: int) -> None:
        data, fds, _flags, _address = socket.recv_fds(self._control, _MOST_CONTROL, 1)
        if not data:
            os._exit(0)  # at once: the next daemon wants these ports
        said = json.loads(data)
        number = said["number"]
        if said.get("gone"):
            if number in self._ports:
                self._ports.pop(number).close()
            return
        target = (said["address"], said["port"])
        if fds:
            kind = TcpPort if said["protocol"] == "tcp" else UdpPort
            self._ports[number] = kind(self._loop, socket.socket(fileno=fds[0]), target)
        elif number in self._ports:
            self._ports[number].target = target

    def sweep(self) -> None:
        now = time.monotonic()
        for port in self._ports.values():
            port.sweep(now)


def main() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    loop = Loop()
    loop.run(Ports(loop, socket.socket(fileno=0)).sweep)


if __name__ == "__main__":
    main()
