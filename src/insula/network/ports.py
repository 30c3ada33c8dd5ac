"""Host ports that are published: each is held by a bound socket.  Synchronous, cheap.

Traffic never reaches these sockets (the firewall redirects it first); they keep every other program off
the port, ours as well, show up in `ss -lntu`, and let the kernel pick a free port when any will do.
Docker's docker-proxy has the same effect at a process per port.
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
from insula.network.firewall import ANY_ADDRESS, PROTOCOLS

_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # classic BPF: ret #0
_PICKS = 20


def check_binding(binding: PortBinding) -> None:
    """Refuse what cannot be published.  Pure.  Raises InvalidRequest, UnsupportedField."""
    if binding.protocol not in PROTOCOLS:
        raise UnsupportedField(
            "PortBindings", f"protocol {binding.protocol!r} cannot be published, only tcp and udp"
        )
    end = binding.host_port_end or binding.host_port
    if not 0 < binding.container_port < 65536 or not 0 <= binding.host_port <= end < 65536:
        raise InvalidRequest(f"invalid port: {binding.host_port}:{binding.container_port}/{binding.protocol}")
    if binding.host_ip in ANY_ADDRESS:
        return
    try:
        address = ipaddress.ip_address(binding.host_ip)
    except ValueError:
        raise InvalidRequest(f"invalid IP address: {binding.host_ip}") from None
    if address.version != 4:
        raise UnsupportedField("PortBindings", f"HostIp {binding.host_ip}: only IPv4 addresses so far")


def hold(binding: PortBinding) -> tuple[PortBinding, socket.socket]:
    """Take the port; returns the binding with its port decided.  Raises Failure in Docker's words."""
    check_binding(binding)
    if binding.host_port_end:
        return _hold_one_of(binding)
    picks = _PICKS if binding.host_port == 0 else 1
    for attempt in range(picks):
        taken: socket.socket | None = None
        try:
            taken = _socket(binding)
            taken.bind((binding.host_ip or "0.0.0.0", binding.host_port))
            if binding.protocol == "tcp":
                taken.listen(1)
        except OSError as error:
            if taken is not None:
                taken.close()
            if error.errno == errno.EADDRINUSE and attempt + 1 < picks:
                continue
            raise _refusal(binding, error) from error
        return dataclasses.replace(binding, host_port=taken.getsockname()[1]), taken
    raise AssertionError("unreachable")


def _hold_one_of(binding: PortBinding) -> tuple[PortBinding, socket.socket]:
    for port in range(binding.host_port, binding.host_port_end + 1):
        try:
            return hold(dataclasses.replace(binding, host_port=port, host_port_end=0))
        except Failure:
            continue
    span = f"{binding.host_ip or '0.0.0.0'}:{binding.host_port}-{binding.host_port_end}"
    raise Failure(f"Bind for {span} failed: all ports are allocated")


def hold_all(bindings: Sequence[PortBinding]) -> list[tuple[PortBinding, socket.socket]]:
    """All of them or none."""
    held: list[tuple[PortBinding, socket.socket]] = []
    try:
        for binding in bindings:
            held.append(hold(binding))
    except BaseException:
        for _, taken in held:
            taken.close()
        raise
    return held


def _socket(binding: PortBinding) -> socket.socket:
    tcp = binding.protocol == "tcp"
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    try:
        if tcp:  # connections of an earlier listener may linger in TIME_WAIT
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _drop_all(made)
    except BaseException:
        made.close()
        raise
    return made


def _drop_all(held: socket.socket) -> None:
    """Whatever gets past the firewall (while it is written anew) is dropped, not queued for nobody."""
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    held.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _refusal(binding: PortBinding, error: OSError) -> Failure:
    where = f"{binding.host_ip or '0.0.0.0'}:{binding.host_port}"
    if error.errno == errno.EADDRINUSE:
        return Failure(f"Bind for {where} failed: port is already allocated")
    if error.errno == errno.EADDRNOTAVAIL:
        return Failure(f"listen {binding.protocol}4 {where}: bind: cannot assign requested address")
    assert error.errno is not None
    return Failure(f"Bind for {where} failed: {os.strerror(error.errno)}")
