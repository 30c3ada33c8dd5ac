"""The guest's initramfs: a cpio archive with the agent as /init, and modules.  Pure (bytes in, bytes out).

`newc` format, as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst has it.
Reproducible: no times, no owners, entries in the order given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from insula.isolation.vm.modules import Module

_FORMAT = 1  # of the layout below; part of the key
_DIRECTORY = 0o040755
_EXECUTABLE = 0o100755
_FILE = 0o100644
_CHARACTER = 0o020600


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def make_cpio(entries: Iterable[Entry]) -> bytes:
    """The archive, trailer included, padded to 512 bytes."""
    out = bytearray()

    def put(inode: int, entry: Entry) -> None:
        name = entry.path.encode() + b"\0"
        fields = (
            inode,
            entry.mode,
            0,  # uid
            0,  # gid
            2 if entry.mode & 0o040000 else 1,  # links
            0,  # mtime
            len(entry.data),
            0,  # device the archive was made on
            0,
            *entry.device,
            len(name),
            0,  # checksum: none in 070701
        )
        out.extend(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        out.extend(bytes(-len(out) % 4))
        out.extend(entry.data)
        out.extend(bytes(-len(out) % 4))

    for inode, entry in enumerate(entries, start=1):
        put(inode, entry)
    put(0, Entry("TRAILER!!!", 0))
    out.extend(bytes(-len(out) % 512))
    return bytes(out)


def finalize_entries(agent: bytes, modules: Sequence[Module]) -> list[Entry]:
    """/init, /dev/console (so that init has a stdio before it mounts devtmpfs), modules, and their order."""
    entries = [
        Entry("dev", _DIRECTORY),
        Entry("dev/console", _CHARACTER, device=(5, 1)),
        Entry("init", _EXECUTABLE, agent),
        Entry("modules", _DIRECTORY),
    ]
    entries += [Entry(f"modules/{module.name}.ko", _FILE, module.data) for module in modules]
    listing = "".join(f"modules/{module.name}.ko\n" for module in modules)
    entries.append(Entry("modules.load", _FILE, listing.encode()))
    return entries


def key_of(agent: bytes, modules: Sequence[Module]) -> str:
    """What the archive depends on, as a short digest: the same key is the same archive."""
    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    digest.update(hashlib.sha256(agent).digest())
    for module in modules:
        digest.update(module.name.encode() + b"\0" + hashlib.sha256(module.data).digest())
    return digest.hexdigest()[:16]
