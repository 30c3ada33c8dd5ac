"""What the `local` driver's options ask for: `type`, `device`, `o` and `size`, in moby's words.

Pure, but that `resolve_address` asks the host's resolver.  `mounting` does what is decided here.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from insula.errors import Failure, InvalidRequest, NoSuchPlugin
from insula.model.sizes import parse_size
from insula.system import mounts

NAMES = ("", "local")
_OPTIONS = ("device", "o", "size", "type")
_NEEDED = (("device", "type"), ("type", "device"), ("o", "device"), ("o", "type"))

# word: (flags to set, flags to clear); moby/sys mount/flags_linux.go
_FLAGS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "ro": (mounts.MS_RDONLY, 0),
    "rw": (0, mounts.MS_RDONLY),
    "nosuid": (mounts.MS_NOSUID, 0),
    "suid": (0, mounts.MS_NOSUID),
    "nodev": (mounts.MS_NODEV, 0),
    "dev": (0, mounts.MS_NODEV),
    "noexec": (mounts.MS_NOEXEC, 0),
    "exec": (0, mounts.MS_NOEXEC),
    "sync": (mounts.MS_SYNCHRONOUS, 0),
    "async": (0, mounts.MS_SYNCHRONOUS),
    "dirsync": (mounts.MS_DIRSYNC, 0),
    "mand": (mounts.MS_MANDLOCK, 0),
    "nomand": (0, mounts.MS_MANDLOCK),
    "noatime": (mounts.MS_NOATIME, 0),
    "atime": (0, mounts.MS_NOATIME),
    "nodiratime": (mounts.MS_NODIRATIME, 0),
    "diratime": (0, mounts.MS_NODIRATIME),
    "relatime": (mounts.MS_RELATIME, 0),
    "norelatime": (0, mounts.MS_RELATIME),
    "strictatime": (mounts.MS_STRICTATIME, 0),
    "nostrictatime": (0, mounts.MS_STRICTATIME),
    "bind": (mounts.MS_BIND, 0),
    "rbind": (mounts.MS_BIND | mounts.MS_REC, 0),
}
_PROPAGATION = {
    "private": mounts.MS_PRIVATE,
    "rprivate": mounts.MS_PRIVATE | mounts.MS_REC,
    "slave": mounts.MS_SLAVE,
    "rslave": mounts.MS_SLAVE | mounts.MS_REC,
    "shared": mounts.MS_SHARED,
    "rshared": mounts.MS_SHARED | mounts.MS_REC,
    "unbindable": mounts.MS_UNBINDABLE,
    "runbindable": mounts.MS_UNBINDABLE | mounts.MS_REC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountCall:
    """mount(2)'s arguments.  `propagation` is a second call's flags, 0 for none."""

    device: str
    kind: str
    flags: int
    data: str
    propagation: int = 0


def check_driver(name: str) -> None:
    """Raises NoSuchPlugin in moby's words, which clients match."""
    if name not in NAMES:
        raise NoSuchPlugin(name)


def check_options(options: Mapping[str, str]) -> None:
    """Raises InvalidRequest in moby's words."""
    for name in options:
        if name not in _OPTIONS:
            raise InvalidRequest(
                f'invalid option: "{name}"', hint=f"the local driver's: {', '.join(_OPTIONS)}"
            )
    if options.get("type") == "cifs":
        try:
            port = urlsplit(options.get("device", "")).port
        except ValueError as error:
            raise InvalidRequest(f"error parsing mount device url: {error}") from None
        if port is not None:
            raise InvalidRequest("port not allowed in CIFS device URL, include 'port' in 'o='")
    if "size" in options:
        size = parse_size(options["size"])
        if size is None:
            raise InvalidRequest(f"invalid size: '{options['size']}'")
        if size > 0:
            raise InvalidRequest(
                "quota size requested but no quota support",
                hint="a tmpfs takes its size in o: --opt type=tmpfs --opt device=tmpfs --opt o=size=64m",
            )
    for given, needed in _NEEDED:
        if given in options and needed not in options:
            raise InvalidRequest(f'missing required option: "{needed}"')


def needs_mount(options: Mapping[str, str]) -> bool:
    return bool(options.get("device") or options.get("type"))


def decide_mount(options: Mapping[str, str]) -> MountCall:
    """From options that were checked; addresses not yet looked up.  Raises Failure for a word that cannot be
    part of a first mount."""
    if not options.get("device"):
        raise Failure("failed to mount local volume: missing device in volume options")
    flags, propagation = 0, 0
    data: list[str] = []
    for word in filter(None, options.get("o", "").split(",")):
        if word in _FLAGS:
            set_, clear = _FLAGS[word]
            flags = (flags & ~clear) | set_
        elif word in _PROPAGATION:
            propagation = _PROPAGATION[word]
        elif word == "remount":
            raise Failure("failed to mount local volume: remount is not for a volume's first mount")
        else:
            data.append(word)
    return MountCall(
        device=options["device"],
        kind=options.get("type", ""),
        flags=flags,
        data=",".join(data),
        propagation=propagation,
    )


def with_address(call: MountCall) -> MountCall:
    """Host names of network file systems as addresses: the kernel knows no names.  May take seconds.  Raises
    Failure for a name that cannot be resolved."""
    if call.kind not in ("nfs", "nfs4", "cifs"):
        return call
    words = call.data.split(",") if call.data else []
    data = [f"addr={resolve_address(w.removeprefix('addr='))}" if w.startswith("addr=") else w for w in words]
    device = call.device
    host = urlsplit(device).hostname if call.kind == "cifs" and data == words else None
    if host:
        device = device.replace(host, resolve_address(host), 1)
    return MountCall(
        device=device, kind=call.kind, flags=call.flags, data=",".join(data), propagation=call.propagation
    )


def resolve_address(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise Failure(f"error resolving passed in network volume address: {name}: {error}") from None


def without_password(text: str) -> str:
    """A CIFS password is not for error messages and logs."""
    return re.sub(r"\b(pass(?:word)?)=[^,\s]*", r"\1=********", text)
