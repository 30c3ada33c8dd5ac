"""What is mounted into an instance besides its root.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MountKind(enum.StrEnum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """A mount as a user asked for it (`-v`, `--mount`, `--tmpfs`, an image's VOLUME).

    `source` is a host path for binds and a volume's name for volumes ("" for an anonymous one).
    `options` are mount options for tmpfs as Docker writes them (`size=64m`, `mode=1777`, `noexec`).
    `legacy` is true for `-v`/Binds, where a missing host directory is created; `--mount` refuses it.
    """

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()
    propagation: str = ""
    no_copy: bool = False
    legacy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount decided: what the backends consume.

    kind BIND has a host path as `source` (a volume has become its directory by now); TMPFS has none.
    `tag` is a short name, unique in the plan, for devices that carry the mount into a VM.
    """

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()
    propagation: str = "rprivate"
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcFile:
    """A small text file that the engine puts over the image's (`/etc/hosts`, `/etc/resolv.conf`, …).

    The process backend bind-mounts `host_path` (the engine has written it); the VM backend sends
    `text` to the guest, which bind-mounts it from memory.
    """

    target: str
    text: str
    host_path: str
