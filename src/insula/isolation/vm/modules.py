"""Which kernel modules a guest needs, and in which order they load.  Synchronous; reads a module tree.

Dependencies come from the modules themselves (`depends=` in their .modinfo), because the packages of
distributions ship no modules.dep: depmod makes that when they are installed, and ours are only unpacked.
Not for loading them: the agent does that, in the order of `/modules.load`.
"""

from __future__ import annotations

import lzma
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from insula.errors import CorruptData, RuntimeFailed

# what the machine and the root need; built into some kernels, which is as good
NEEDED = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "erofs",
    "overlay",
    "virtio_net",
    "fuse",
    "virtiofs",
    "virtio_rng",
    "virtio_balloon",
    "ext4",
    "af_packet",
    "ipv6",
    "tcp_diag",
    "udp_diag",
)
# loaded when they exist; a guest works without them
WANTED = ("pvpanic_pci", "vmgenid")

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")
_MODULE_BYTES = 64 * 1024 * 1024
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8xI")  # before that; the length of what is before it


@dataclass(frozen=True, slots=True)
class Module:
    """`path` is on the host; `name` has underscores; `data` is the plain ELF file."""

    name: str
    path: str
    data: bytes


def module_name(path: str) -> str:
    """`…/virtio-rng.ko.xz` → `virtio_rng`, the kernel's own spelling."""
    base = path.rpartition("/")[2]
    return base.partition(".ko")[0].replace("-", "_")


def depends_of(data: bytes) -> tuple[str, ...]:
    """Names in the `depends=` entry of a module's .modinfo section; () when it has none."""
    start = data.find(b"\0depends=")
    if start < 0:
        return ()
    start += len(b"\0depends=")
    end = data.find(b"\0", start)
    names = data[start:end].decode("ascii", "replace")
    return tuple(name.replace("-", "_") for name in names.split(",") if name)


def read_module(path: str) -> bytes:
    """A module's plain bytes.  Raises CorruptData when the compressed file is damaged."""
    with open(path, "rb") as file:
        raw = file.read(_MODULE_BYTES)
    try:
        raw = _decompress(path, raw)
    except (ValueError, EOFError) as error:
        raise CorruptData(f"kernel module {path} cannot be decompressed: {error}") from error
    if not raw.startswith(b"\x7fELF"):
        raise CorruptData(f"kernel module {path} is not an ELF file")
    return raw


def _decompress(path: str, raw: bytes) -> bytes:
    """Raises ValueError, EOFError."""
    if path.endswith(".xz"):
        try:
            return lzma.decompress(raw)
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error
    if path.endswith(".zst"):
        from backports import zstd

        try:
            return zstd.decompress(raw)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error
    return raw


def without_signature(data: bytes) -> bytes:
    """A module as it was before it was signed (linux/module_signature.h)."""
    if not data.endswith(_SIGNED):
        return data
    end = len(data) - len(_SIGNED) - _SIGNATURE.size
    length = _SIGNATURE.unpack_from(data, end)[0] if end > 0 else 0
    return data[: end - length] if 0 < length < end else data


def may_be_unsigned(config: str) -> bool:
    """Whether a kernel of this configuration (/boot/config-<release>) loads modules without a signature.

    It says that it is tainted then (E), and need not check each one, which takes 0.2 s of the 3 that it boots
    under emulation.  What it loads comes from the host either way, with the kernel, which nobody checks.
    """
    return "CONFIG_MODULES=y" in config and "CONFIG_MODULE_SIG_FORCE=y" not in config


def find_modules(tree: str) -> dict[str, str]:
    """Every module below `tree` (…/lib/modules/<release>), name to path."""
    found: dict[str, str] = {}
    for directory, _, names in os.walk(os.path.join(tree, "kernel")):
        for name in names:
            if name.endswith(_SUFFIXES):
                found[module_name(name)] = os.path.join(directory, name)
    return found


def find_builtin(tree: str) -> frozenset[str]:
    """Names of what is built into the kernel (modules.builtin)."""
    try:
        with open(os.path.join(tree, "modules.builtin"), encoding="ascii") as file:
            return frozenset(module_name(line.strip()) for line in file if line.strip())
    except FileNotFoundError:
        return frozenset()


def resolve(
    modules: Mapping[str, str],
    builtin: Iterable[str],
    needed: Iterable[str] = NEEDED,
    wanted: Iterable[str] = WANTED,
) -> list[Module]:
    """Modules in an order in which every one comes after what it depends on.

    Raises RuntimeFailed when one that is needed is neither built in nor there.
    """
    have = frozenset(builtin)
    order: dict[str, Module] = {}

    def add(name: str, why: str) -> None:
        if name in order or name in have:
            return
        path = modules.get(name)
        if path is None:
            raise RuntimeFailed(
                f"the guest kernel lacks the module {name}{why}",
                hint="install linux-image-cloud-amd64's packages for it, or set vm-kernel",
            )
        data = read_module(path)
        for other in depends_of(data):
            add(other, f", which {name} depends on")
        order[name] = Module(name, path, data)

    for name in needed:
        add(name, "")
    for name in wanted:
        if name in modules:
            add(name, "")
    return list(order.values())
