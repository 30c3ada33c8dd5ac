"""The sockets of the resolver inside an instance's namespace, and the rule that leads its questions there.
Synchronous, on the network thread.

Where a network has no bridge of ours the host has no address that instances reach.  As in Docker their server
is 127.0.0.11 then, at a port that is free: port 53 is left to a name server of the instance's own.
"""

from __future__ import annotations

import contextlib
import socket

from insula.system.run import need_program, run

ADDRESS = "127.0.0.11"

_TABLE = "ip insula_names"
_PICKS = 8
_BACKLOG = 16

# for datagrams, and for connections
Pair = tuple[socket.socket, socket.socket]


def make_rules(port: int) -> str:
    """The table as `nft -f` takes it; replaces one that an earlier daemon made.  Pure."""
    to = f"dnat to {ADDRESS}:{port}"
    return f"""\
add table {_TABLE}
delete table {_TABLE}
table {_TABLE} {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {ADDRESS} udp dport 53 {to}
    ip daddr {ADDRESS} tcp dport 53 {to}
  }}
}}
"""


def open_stub() -> Pair:
    """In the network namespace of the calling thread.  Raises OSError, ProgramMissing, ProgramFailed."""
    nft = need_program("nft")
    pair = _open_pair()
    try:
        run([nft, "-f", "-"], stdin=make_rules(pair[0].getsockname()[1]).encode())
    except BaseException:
        for each in pair:
            each.close()
        raise
    return pair


def _open_pair() -> Pair:
    for _ in range(_PICKS):
        with contextlib.suppress(OSError):  # what is free for the one may be taken for the other
            return _bind_pair()
    return _bind_pair()


def _bind_pair() -> Pair:
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connections = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        datagrams.bind((ADDRESS, 0))
        connections.bind(datagrams.getsockname())
        connections.listen(_BACKLOG)
        for each in (datagrams, connections):
            each.setblocking(False)
    except BaseException:
        datagrams.close()
        connections.close()
        raise
    return datagrams, connections
