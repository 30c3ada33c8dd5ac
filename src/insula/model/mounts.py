"""What is mounted into an instance besides its root.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class MountKind(enum.StrEnum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """A mount as a user asked for it (`-v`, `--mount`, `--tmpfs`, an image's VOLUME).

    `source` is a host path for binds and a volume's name for volumes ("" for an anonymous one).
    `options` are mount options for tmpfs as Docker writes them (`size=64m`, `mode=1777`, `noexec`).
    `legacy` is true for `-v`/Binds; `create_source`: a missing host directory is made, else refused.
    Of a bind: `non_recursive` leaves out what is mounted below the source; a read-only one is so with all
    that is mounted below it where the kernel can, `read_only_above` leaves that writable and
    `read_only_below` insists.
    Of a volume: `subpath` is the part of it to mount; `labels`, `driver` and `driver_options` are for
    making it when there is none.  `anonymous`: its name was made up for the instance.
    `text` is what one of Binds was written as; `consistency` has no meaning on Linux, inspect repeats it.
    """

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()
    propagation: str = ""
    no_copy: bool = False
    legacy: bool = False
    create_source: bool = False
    non_recursive: bool = False
    read_only_above: bool = False
    read_only_below: bool = False
    subpath: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    driver: str = ""
    driver_options: dict[str, str] = field(default_factory=dict)
    anonymous: bool = False
    text: str = field(default="", compare=False)
    consistency: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount decided: what the backends consume.

    kind BIND has a host path as `source` (a volume has become its directory by now); TMPFS has none.
    `tag` is a short name, unique in the plan, for devices that carry the mount into a VM.
    `recursive`: with what is mounted below the source.  The two `read_only_…` are MountSpec's.
    """

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()
    propagation: str = "rprivate"
    tag: str = ""
    recursive: bool = True
    read_only_above: bool = False
    read_only_below: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcFile:
    """A small text file that the engine puts over the image's (`/etc/hosts`, `/etc/resolv.conf`, …).

    The process backend bind-mounts `host_path` (the engine has written it); the VM backend sends
    `text` to the guest, which bind-mounts it from memory.
    """

    target: str
    text: str
    host_path: str
