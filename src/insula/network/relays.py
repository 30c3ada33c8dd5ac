"""Published ports that the firewall cannot lead to their instance (`firewall` says which).  Async.

Their sockets wait on the daemon's loop for a first client; then a process of their own (`relay_child`) gets
them, one for all, and carries everything.  A host on which nobody uses IPv6 never has that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

_PROGRAM = os.path.join(os.path.dirname(__file__), "relay_child.py")
_END_S = 2.0
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    protocol: str
    address: str
    port: int


@dataclass(slots=True)
class _Relay:
    number: int
    owner: str
    target: Target
    handed_over: bool = False


class Relays:
    """For one event loop.  The sockets are their holder's, who closes them after `update` without them."""

    def __init__(self) -> None:
        self._relays: dict[socket.socket, _Relay] = {}
        self._numbers = 0
        self._control: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._starting: asyncio.Task[None] | None = None

    def update(self, instance_id: str, wanted: Mapping[socket.socket, Target]) -> None:
        """All that is to be carried to one instance from now on."""
        for taken in [t for t, relay in self._relays.items() if relay.owner == instance_id]:
            if taken not in wanted:
                self._drop(taken)
        for taken, target in wanted.items():
            known = self._relays.get(taken)
            if known is None:
                self._numbers += 1
                self._relays[taken] = _Relay(self._numbers, instance_id, target)
                self._await_client(taken)
            elif known.target != target:
                known.target = target
                if known.handed_over:
                    self._tell(known)

    async def stop(self) -> None:
        """Idempotent."""
        for taken in list(self._relays):
            self._drop(taken)
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        child = self._child
        self._let_go()
        if child is not None:
            await asyncio.to_thread(_see_off, child)

    def _await_client(self, taken: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(taken, self._client_came, taken)

    def _client_came(self, taken: socket.socket) -> None:
        """It waits in the socket until the process takes it."""
        asyncio.get_running_loop().remove_reader(taken)
        if self._control is not None:
            self._hand_over(taken)
            return
        # for all that ask meanwhile, too: `_start` looks at every one
        self._relays[taken].handed_over = True
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = await asyncio.to_thread(_spawn, theirs)
        except OSError as error:
            ours.close()
            log.error("cannot carry IPv6 connections to instances: %s", error)
            asyncio.get_running_loop().call_later(_PAUSE_S, self._wait_again)
            return
        finally:
            theirs.close()
            self._starting = None
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._ended)
        for taken, relay in list(self._relays.items()):
            if relay.handed_over:
                self._hand_over(taken)

    def _hand_over(self, taken: socket.socket) -> None:
        relay = self._relays[taken]
        relay.handed_over = True
        self._tell(relay, taken)

    def _tell(self, relay: _Relay, taken: socket.socket | None = None) -> None:
        target = relay.target
        said = {"number": relay.number, "protocol": target.protocol, "address": target.address}
        self._send({**said, "port": target.port}, [taken.fileno()] if taken is not None else [])

    def _send(self, said: Mapping[str, object], fds: list[int]) -> None:
        if self._control is None:
            return
        try:
            socket.send_fds(self._control, [json.dumps(said).encode()], fds)
        except OSError as error:
            log.error("the relay for IPv6 does not listen: %s", error)
            self._ended()

    def _drop(self, taken: socket.socket) -> None:
        relay = self._relays.pop(taken)
        if relay.handed_over:
            self._send({"number": relay.number, "gone": True}, [])
        else:
            asyncio.get_running_loop().remove_reader(taken)

    def _ended(self) -> None:
        """The process is gone, which nobody asked for: the next client gets a new one."""
        child = self._child
        self._let_go()
        if child is not None:
            child.kill()
            log.error("the relay for IPv6 has ended with %s; its connections are lost", child.wait())
        self._wait_again()

    def _wait_again(self) -> None:
        for taken, relay in self._relays.items():
            if relay.handed_over and self._control is None:
                relay.handed_over = False
                self._await_client(taken)

    def _let_go(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
        self._control = self._child = None


def _spawn(control: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _PROGRAM], stdin=control.fileno(), stdout=subprocess.DEVNULL, cwd="/",
        start_new_session=True,
    )  # fmt: skip


def _see_off(child: subprocess.Popen[bytes]) -> None:
    """Its socket is closed: it ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_END_S)
        return
    child.kill()
    child.wait()
