"""Host ports that are published: each is held by a bound socket.  Synchronous, cheap.

Traffic never reaches these sockets (the firewall redirects it first); they keep every other program off
the port, ours as well, show up in `ss -lntu`, and let the kernel pick a free port when any will do.
Docker's docker-proxy has the same effect at a process per port.  Those of IPv6 are different: what the
firewall cannot redirect does reach them, and `relays` carries it on.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence

from insula.errors import Failure, InvalidRequest, UnsupportedField
from insula.model.network import PortBinding
from insula.network.firewall import ANY_ADDRESS, LOOPBACK6, PROTOCOLS

_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # classic BPF: ret #0
_PICKS = 20
_BACKLOG = 128
_ANY4, _ANY6 = "0.0.0.0", "::"

# a binding with its port decided, and the socket that holds it
Held = tuple[PortBinding, socket.socket]


def check_binding(binding: PortBinding) -> None:
    """Refuse what cannot be published.  Pure.  Raises InvalidRequest, UnsupportedField."""
    if binding.protocol not in PROTOCOLS:
        raise UnsupportedField(
            "PortBindings", f"protocol {binding.protocol!r} cannot be published, only tcp, udp and sctp"
        )
    end = binding.host_port_end or binding.host_port
    if not 0 < binding.container_port < 65536 or not 0 <= binding.host_port <= end < 65536:
        raise InvalidRequest(f"invalid port: {binding.host_port}:{binding.container_port}/{binding.protocol}")
    if binding.host_ip in ANY_ADDRESS:
        return
    try:
        ipaddress.ip_address(binding.host_ip)
    except ValueError:
        raise InvalidRequest(f"invalid IP address: {binding.host_ip}") from None


def have_ipv6() -> bool:
    """This host has addresses of IPv6, if only its own."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((LOOPBACK6, 0))
    except OSError:
        return False
    return True


def hold(binding: PortBinding) -> list[Held]:
    """Take the port: twice, when the binding names no address and the host has IPv6.  Returns what it has
    become, with its port decided.  Raises Failure in Docker's words, InvalidRequest, UnsupportedField."""
    check_binding(binding)
    wanted = [dataclasses.replace(binding, host_ip=binding.host_ip or _ANY4)]
    if not binding.host_ip and have_ipv6():
        wanted.append(dataclasses.replace(binding, host_ip=_ANY6))
    if binding.host_port_end:
        return _hold_one_of(wanted)
    picks = _PICKS if binding.host_port == 0 else 1
    for attempt in range(picks):
        try:
            return _hold_same(wanted, binding.host_port)
        except _CannotHold as error:
            if error.errno == errno.EADDRINUSE and attempt + 1 < picks:
                continue
            raise _refusal(error) from error
    raise AssertionError("unreachable")


def _hold_one_of(wanted: Sequence[PortBinding]) -> list[Held]:
    first = wanted[0]
    for port in range(first.host_port, first.host_port_end + 1):
        try:
            return _hold_same(wanted, port)
        except _CannotHold:
            continue
    span = f"{_in_url(first.host_ip)}:{first.host_port}-{first.host_port_end}"
    raise Failure(f"Bind for {span} failed: all ports are allocated")


class _CannotHold(OSError):
    """`binding` is the one that could not be."""

    def __init__(self, error: OSError, binding: PortBinding) -> None:
        super().__init__(error.errno, error.strerror)
        self.binding = binding


def _hold_same(wanted: Sequence[PortBinding], port: int) -> list[Held]:
    """All of them at one port (0: whichever the first gets), or none.  Raises _CannotHold."""
    held: list[Held] = []
    try:
        for binding in wanted:
            one = dataclasses.replace(binding, host_port=port, host_port_end=0)
            try:
                taken, port = _socket(one)
            except OSError as error:
                raise _CannotHold(error, one) from error
            held.append((dataclasses.replace(one, host_port=port), taken))
    except BaseException:
        for _, taken in held:
            taken.close()
        raise
    return held


def hold_all(bindings: Sequence[PortBinding]) -> list[Held]:
    """All of them or none."""
    held: list[Held] = []
    try:
        for binding in bindings:
            held += hold(binding)
    except BaseException:
        for _, taken in held:
            taken.close()
        raise
    return held


def _socket(binding: PortBinding) -> tuple[socket.socket, int]:
    if binding.protocol == "sctp":
        from insula.network.sctp import hold_sctp  # rarely needed

        return hold_sctp(binding.host_ip, binding.host_port)
    tcp = binding.protocol == "tcp"
    family = socket.AF_INET6 if binding.is_ipv6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    try:
        if tcp:  # connections of an earlier listener may linger in TIME_WAIT
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if binding.is_ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            _drop_all(made)
        made.bind((binding.host_ip, binding.host_port))
        if tcp:
            made.listen(_BACKLOG if binding.is_ipv6 else 1)
    except BaseException:
        made.close()
        raise
    return made, made.getsockname()[1]


def _drop_all(held: socket.socket) -> None:
    """Whatever gets past the firewall (while it is written anew) is dropped, not queued for nobody."""
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    held.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _in_url(host_ip: str) -> str:
    return f"[{host_ip}]" if ":" in host_ip else host_ip


def _refusal(error: _CannotHold) -> Failure:
    binding = error.binding
    if error.errno == errno.EADDRINUSE:
        # Docker's form of it has no brackets
        return Failure(f"Bind for {binding.host_ip}:{binding.host_port} failed: port is already allocated")
    where = f"{_in_url(binding.host_ip)}:{binding.host_port}"
    if error.errno == errno.EADDRNOTAVAIL:
        family = 6 if binding.is_ipv6 else 4
        return Failure(f"listen {binding.protocol}{family} {where}: bind: cannot assign requested address")
    assert error.errno is not None
    return Failure(f"Bind for {where} failed: {os.strerror(error.errno)}")
