"""The daemon's settings: defaults, a TOML file, then the command line.  Pure but for reading the file.

`docs/reference/configuration.md` lists them from this table.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insula.errors import InvalidRequest
from insula.model.isolation import Isolation, parse_isolation

DEFAULT_CONFIG = "/etc/insula/insula.toml"
DEFAULT_SOCKET = "/run/insula/insula.sock"
ACCELERATORS = ("auto", "kvm", "tcg")


_LEAST = (
    ("vm_memory_mib", 80),
    ("vm_vcpus", 1),
    ("vm_disk_gib", 1),
    ("vm_pool", 0),
    ("vm_image_templates", 0),
    ("max_downloads", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Keys of the TOML file, with `-` for `_`.  Every one is also an option of `insula daemon`."""

    host: tuple[str, ...] = (f"unix://{DEFAULT_SOCKET}",)
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = "/etc/insula/ca.pem"
    tlscert: str = "/etc/insula/cert.pem"
    tlskey: str = "/etc/insula/key.pem"
    data_root: str = "/var/lib/insula"
    exec_root: str = "/run/insula"
    default_isolation: Isolation = Isolation.PROCESS
    runtime: str = ""
    accel: str = "auto"
    vm_memory_mib: int = 256
    vm_vcpus: int = 1
    vm_disk_gib: int = 10
    vm_pool: int = 1
    vm_image_templates: int = 2
    vm_kernel: str = ""
    bridge: str = "insula0"
    subnet: str = "172.29.0.0/16"
    ipv6: bool = False
    fixed_cidr_v6: str = ""
    dns: tuple[str, ...] = ()
    registry_mirror: tuple[str, ...] = ()
    insecure_registry: tuple[str, ...] = ()
    max_downloads: int = 3
    journal_socket: str = "/run/systemd/journal/socket"
    log_level: str = "info"

    def __post_init__(self) -> None:
        for host in self.host:
            check_host(host)
        if self.accel not in ACCELERATORS:
            raise InvalidRequest(f"accel: {self.accel!r} is none of {', '.join(ACCELERATORS)}")
        if self.runtime not in ("", "crun", "runc"):
            raise InvalidRequest(f"runtime: {self.runtime!r} is neither crun nor runc")
        for name, least in _LEAST:
            if getattr(self, name) < least:
                raise InvalidRequest(f"{name.replace('_', '-')}: must be at least {least}")
        for name in ("data_root", "exec_root", "journal_socket"):
            if not getattr(self, name).startswith("/"):
                raise InvalidRequest(f"{name.replace('_', '-')}: must be an absolute path")
        if len(self.bridge) > 15 or not self.bridge:
            raise InvalidRequest(f"bridge: {self.bridge!r} is not a link name of 1 to 15 characters")
        try:
            network = ipaddress.IPv4Network(self.subnet)
        except ValueError as error:
            raise InvalidRequest(
                f"subnet: {error}", hint="give an IPv4 network, for example 172.29.0.0/16"
            ) from None
        if network.prefixlen > 28:
            raise InvalidRequest("subnet: smaller than /28 leaves no room for instances")
        self._check_ipv6()
        for address in self.dns:
            try:
                ipaddress.ip_address(address)
            except ValueError as error:
                raise InvalidRequest(f"dns: {error}") from None

    def _check_ipv6(self) -> None:
        if not self.fixed_cidr_v6:
            return
        if not self.ipv6:
            raise InvalidRequest(
                "fixed-cidr-v6: has no effect without ipv6", hint="add --ipv6, or ipv6 = true"
            )
        try:
            ipaddress.IPv6Network(self.fixed_cidr_v6)
        except ValueError as error:
            raise InvalidRequest(
                f"fixed-cidr-v6: {error}", hint="give an IPv6 network, for example fd00:1::/64"
            ) from None


def check_host(host: str) -> None:
    """An address to listen on: `unix:///path`, `tcp://address:port`, or `fd://` (sockets from systemd).
    Raises InvalidRequest."""
    scheme, _, rest = host.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        if len(rest.encode()) > 107:
            raise InvalidRequest(f"host: the path {rest} is too long for a socket (107 bytes)")
    elif scheme == "tcp":
        port = rest.rpartition(":")[2]
        if ":" not in rest or not port.isdecimal() or not 0 <= int(port) <= 65535:
            raise InvalidRequest(f"host: {host} names no port", hint="tcp://127.0.0.1:2375")
    elif scheme != "fd":
        raise InvalidRequest(
            f"host: {host!r} is not an address", hint="unix:///path, tcp://address:port or fd://"
        )


def _typed(name: str, value: Any, where: str) -> Any:
    """A value from outside as the type that the field has.  Raises InvalidRequest naming the key."""
    key = name.replace("_", "-")
    kind = next(f.type for f in dataclasses.fields(Settings) if f.name == name)
    if kind == "Isolation":
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}: {key}: expected a word")
        return parse_isolation(value, Isolation.PROCESS)
    if kind == "bool":
        if not isinstance(value, bool):
            raise InvalidRequest(f"{where}: {key}: expected true or false, not {value!r}")
        return value
    if kind == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{where}: {key}: expected a whole number, not {value!r}")
        return value
    if kind == "str":
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}: {key}: expected a string, not {value!r}")
        return value
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
        raise InvalidRequest(f"{where}: {key}: expected a list of strings, not {value!r}")
    return tuple(items)


def read_settings(path: str | None, overrides: Mapping[str, Any]) -> Settings:
    """Defaults, then the file, then `overrides` (field name to value; None is *not given*).

    `path` None: the default file, if it exists.  Raises InvalidRequest for an unknown key, a value of
    the wrong type, or a file that is not TOML.
    """
    known = {f.name for f in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    where = path or DEFAULT_CONFIG
    try:
        with open(where, "rb") as file:
            untrusted = tomllib.load(file)
    except FileNotFoundError:
        if path is not None:
            raise InvalidRequest(f"{path}: no such configuration file") from None
        untrusted = {}
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{where}: {error}") from None
    for key, value in untrusted.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InvalidRequest(f"{where}: unknown key {key!r}", hint=f"keys: {', '.join(sorted(known))}")
        values[name] = _typed(name, value, where)
    values.update({k: _typed(k, v, "command line") for k, v in overrides.items() if v not in (None, ())})
    return Settings(**values)
