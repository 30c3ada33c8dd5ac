"""Holding a published port of SCTP, also where the kernel has no SCTP of its own.  Synchronous, cheap.

The firewall translates SCTP whether or not the host can speak it, so a port is published without.  Nobody
but another instance can want it then: an abstract unix socket, which is its network namespace's as a port
is, says that it is taken (to other daemons of ours, too).
"""

from __future__ import annotations

import errno
import os
import random
import socket

_LACKING = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTOTYPE)
_EVERY = ("0.0.0.0", "::")
_PICKS = 100
_NAMES = "/proc/thread-self/net/unix"


def hold_sctp(host_ip: str, port: int) -> tuple[socket.socket, int]:
    """The socket that holds the port, and the port.  Of 0 one that is free.  Raises OSError."""
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        return _stand_in(host_ip, port)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host_ip, port))
    except BaseException:
        made.close()
        raise
    return made, made.getsockname()[1]


def _stand_in(host_ip: str, port: int) -> tuple[socket.socket, int]:
    with socket.socket(socket.AF_INET6 if ":" in host_ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host_ip, 0))  # an address that is not this host's is refused as a real socket would
    for number in [port] if port else _free_ports():
        if not _is_taken(host_ip, number):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                made.bind("\0" + _name(host_ip, number))
            except BaseException:
                made.close()
                raise
            return made, number
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _free_ports() -> list[int]:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = map(int, file.read().split())
    return random.sample(range(low, high + 1), min(_PICKS, high + 1 - low))


def _name(host_ip: str, port: int) -> str:
    return f"insula-sctp/{6 if ':' in host_ip else 4}/{port}/{host_ip}"


def _is_taken(host_ip: str, port: int) -> bool:
    """By the same address, or by either being every address of the family."""
    beginning = "@" + _name(host_ip, port).removesuffix(host_ip)
    with open(_NAMES, encoding="utf-8", errors="replace") as file:
        others = [name for line in file if (name := line.split()[-1]).startswith(beginning)]
    addresses = {other.removeprefix(beginning) for other in others}
    return bool(addresses and (host_ip in _EVERY or addresses & {host_ip, *_EVERY}))
