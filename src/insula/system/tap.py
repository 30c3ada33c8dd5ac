"""Tap devices: a virtual machine's end of a network link.  Synchronous.  (On a macvlan network: `macvtap`.)

The device belongs to the network namespace of the thread that opens /dev/net/tun; a persistent one
stays until it is deleted as a link (`links.delete_link`), whoever opened it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from insula.errors import Failure, Unavailable
from insula.system import links

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_REQUEST = struct.Struct("16sH22x")


def open_tap(name: str) -> int:
    """A descriptor for QEMU's `-netdev tap,fd=`; makes the device if there is none of that name.

    Frames carry a virtio-net header, no packet information, one queue.  Close-on-exec: pass it on
    explicitly.  Raises Unavailable without /dev/net/tun, Failure when another process has it open.
    """
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"/dev/net/tun: {error.strerror}", hint="try: modprobe tun") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            raise Failure(f"the tap device {name} is in use by another process") from error
        raise Failure(f"cannot open the tap device {name}: {error.strerror}") from error
    return fd


def open_link(name: str) -> int:
    """As `open_tap`, of a macvtap as well.  Raises what either does."""
    with links.open_route() as route:
        found = links.find_link(route, name)
    if found is None or found.kind != "macvtap":
        return open_tap(name)
    from insula.system.macvtap import open_macvtap  # rarely needed

    return open_macvtap(name)


def make_tap(name: str) -> None:
    """A tap device that exists without anybody having it open.  Fine if it is there already."""
    fd = open_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)
