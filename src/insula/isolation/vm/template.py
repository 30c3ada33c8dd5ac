"""Templates: booted guests frozen before any workload was in them.  Synchronous; files and memory only.

One is two parts, the guest's memory and QEMU's device state, kept in `<data root>/templates/<key>/`
(`ram`, `state`, `template.json`) and, while it is used, in sealed memory files: QEMU maps the memory
privately, so that clones share what they do not write, and not even a QEMU that a guest has taken over can
change what others start from.

The key is a digest of everything that must match for a clone to be right, so a changed host or guest finds
no template instead of a wrong one.  Files are checked against their digests before they are believed.  Not
for making one, or starting from one: that is `freeze` and `boot`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from insula.errors import CorruptData, NotFound
from insula.isolation.vm.machine import DEFAULT_TYPE
from insula.model import codec
from insula.system import memory_file
from insula.system.files import disk_errors, remove_tree, write_atomic

FORMAT = 1
_DIRECTORY = "templates"
_RECORD = "template.json"
_WRITE = os.O_RDWR | os.O_CREAT | os.O_EXCL


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRecord:
    """What is written down of one.  Sizes in bytes, of what is not zero; digests as `memory_file` makes
    them."""

    key: str
    format: int
    release: str
    accelerator: str
    qemu_version: str
    vcpus: int
    memory_mib: int
    created_ns: int
    boot_ms: int
    ram_bytes: int
    state_bytes: int
    ram_digest: str
    state_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a VM goes on from instead of booting: a guest's memory and QEMU's device state, in sealed memory
    files, and what else a QEMU must have to load them.  `name` is for records and messages; `owner` keeps
    the files open.  `nic_count`: how many interfaces it has.  `template`: its workload is still to come;
    `has_root`: and the root for that is mounted."""

    name: str
    ram: int
    state: int
    owner: object
    type: str = DEFAULT_TYPE
    nic_count: int = 1
    template: bool = False
    has_root: bool = False


class Template:
    """One that can be started from.  Its memory goes with the last reference to it, here and in its
    clones."""

    def __init__(self, record: TemplateRecord, ram: int, state: int) -> None:
        self.record = record
        self.ram = ram
        self.state = state
        weakref.finalize(self, memory_file.close_all, ram, state)

    def source(self) -> Source:
        return Source(name=self.record.key, ram=self.ram, state=self.state, owner=self, template=True)


def key_of(argv: Sequence[str], facts: Sequence[str]) -> str:
    """`argv`: the template's whole command line.  `facts`: what that does not show (versions, digests, the
    CPU)."""
    text = json.dumps([FORMAT, list(argv), list(facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finalize_record(ram: int, state: int, **known: object) -> TemplateRecord:
    """With the digests of both parts.  A quarter of a second for 80 MiB."""
    ram_digest, ram_bytes = memory_file.digest_sparse(ram)
    state_digest, state_bytes = memory_file.digest_sparse(state)
    fields = {
        "format": FORMAT,
        "created_ns": time.time_ns(),
        "ram_digest": ram_digest,
        "ram_bytes": ram_bytes,
        "state_digest": state_digest,
        "state_bytes": state_bytes,
    }
    return TemplateRecord(**{**fields, **known})  # type: ignore[arg-type]


class TemplateStore:
    def __init__(self, data_root: str) -> None:
        self._base = os.path.join(data_root, _DIRECTORY)

    def _path(self, key: str) -> str:
        return os.path.join(self._base, key)

    def records(self) -> tuple[TemplateRecord, ...]:
        """Readable ones, newest first."""
        found = []
        for key in self._keys():
            with contextlib.suppress(CorruptData, FileNotFoundError, NotADirectoryError):
                found.append(self._read(key))
        return tuple(sorted(found, key=lambda record: record.created_ns, reverse=True))

    def _keys(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self._base)
        return []

    def _read(self, key: str) -> TemplateRecord:
        with open(os.path.join(self._path(key), _RECORD), "rb") as file:
            record = codec.decode(file.read(), TemplateRecord)
        if record.key != key or record.format != FORMAT:
            raise CorruptData(f"template {key}: its record is of {record.key}, format {record.format}")
        return record

    def save(self, template: Template) -> None:
        """All of it, or nothing.  Raises DiskFull, OSError."""
        record = template.record
        os.makedirs(self._base, mode=0o700, exist_ok=True)
        fresh = os.path.join(self._base, f".{record.key}.{secrets.token_hex(4)}")
        try:
            with disk_errors(f"keeping template {record.key}"):
                os.mkdir(fresh, 0o700)
                for name, source in (("ram", template.ram), ("state", template.state)):
                    with memory_file.start_file(os.path.join(fresh, name), _WRITE) as target:
                        memory_file.copy_sparse(source, target)
                        os.fsync(target)
                write_atomic(os.path.join(fresh, _RECORD), codec.encode(record))
                remove_tree(self._path(record.key))
                os.rename(fresh, self._path(record.key))
        except BaseException:
            remove_tree(fresh)
            raise

    def load(self, key: str) -> Template | None:
        """Into sealed memory files; None when there is none.  Raises CorruptData for one that is damaged."""
        try:
            record = self._read(key)
            ram = self._load(key, "ram", record.ram_digest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return Template(record, ram, self._load(key, "state", record.state_digest))
        except BaseException as error:
            os.close(ram)
            if isinstance(error, FileNotFoundError):
                return None
            raise

    def _load(self, key: str, name: str, digest: str) -> int:
        try:
            return memory_file.load_sealed(os.path.join(self._path(key), name), digest)
        except ValueError as error:
            raise CorruptData(f"template {key}: its {name} {error}") from None

    def remove(self, key: str) -> None:
        """Raises NotFound.  Clones that run are not touched: they have what they started from in memory."""
        if key not in self._keys():
            raise NotFound(f"No such template: {key}")
        remove_tree(self._path(key))

    def forget(self, key: str) -> None:
        """A damaged one; fine if it is not there."""
        remove_tree(self._path(key))

    def sweep(self) -> None:
        """At start: what a crash left half written, and what cannot be read."""
        for key in self._keys():
            try:
                self._read(key)
            except (CorruptData, FileNotFoundError, NotADirectoryError):
                remove_tree(self._path(key))
