"""A machine at one instant, in memory and kept in files.  Synchronous.

In memory: the guest's memory and QEMU's device state, in sealed memory files.  In a directory: `ram`, `state`
and `machine.json`, whose digests are checked before anything is believed.  The disk that goes with them
belongs to whoever asked for the copy.  Not for making one: that is `capture`.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, field

from insula.errors import CorruptData
from insula.isolation.plan import GuestMachine
from insula.isolation.vm.machine import Accelerator
from insula.isolation.vm.template import Source
from insula.model import codec
from insula.system import memory_file
from insula.system.files import disk_errors, write_atomic

FORMAT = 1
_RECORD = "machine.json"
_WRITE = os.O_RDWR | os.O_CREAT | os.O_EXCL
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """What is written down of one.  `type` is QEMU's name of the machine, with its version; `qemu` is the
    version of the QEMU that it ran in ("" in records of before); `nic_count` says how many interfaces QEMU
    has, `interfaces` what the guest calls those that lead somewhere, in the order of their slots; digests are
    `memory_file`'s."""

    format: int
    machine: GuestMachine
    accelerator: Accelerator
    type: str
    nic_count: int
    interfaces: tuple[str, ...]
    ram_digest: str
    state_digest: str
    qemu: str = ""


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class Captured:
    """A machine at one instant.  Memory and state go with the last reference.  `pause_ns`: how long the
    workload stood still for it.  The rest is as in `MachineRecord`."""

    machine: GuestMachine
    accelerator: Accelerator
    type: str
    nic_count: int
    interfaces: tuple[str, ...]
    ram: int
    state: int
    qemu: str = ""
    pause_ns: int = 0
    _closing: object = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._closing = weakref.finalize(self, memory_file.close_all, self.ram, self.state)

    def source(self, name: str) -> Source:
        return Source(
            name=name,
            ram=self.ram,
            state=self.state,
            owner=self,
            type=self.type,
            nic_count=self.nic_count,
        )


def save(captured: Captured, directory: str) -> None:
    """Into a directory that has none.  Raises DiskFull, OSError."""
    with disk_errors("keeping the memory of a virtual machine"):
        for name, source in (("ram", captured.ram), ("state", captured.state)):
            with memory_file.start_file(os.path.join(directory, name), _WRITE) as target:
                memory_file.copy_sparse(source, target)
                os.fsync(target)
        record = MachineRecord(
            format=FORMAT,
            machine=captured.machine,
            accelerator=captured.accelerator,
            type=captured.type,
            nic_count=captured.nic_count,
            interfaces=captured.interfaces,
            ram_digest=memory_file.digest_sparse(captured.ram)[0],
            state_digest=memory_file.digest_sparse(captured.state)[0],
            qemu=captured.qemu,
        )
        write_atomic(os.path.join(directory, _RECORD), codec.encode(record))


def load(directory: str) -> Captured:
    """Raises CorruptData for what is damaged, of another format, or not there."""
    try:
        with open(os.path.join(directory, _RECORD), "rb") as file:
            record = codec.decode(file.read(), MachineRecord)
        if record.format != FORMAT:
            raise CorruptData(f"{directory}: its format is {record.format}; this insula reads {FORMAT}")
        ram = _load(directory, "ram", record.ram_digest)
    except FileNotFoundError as error:
        raise CorruptData(f"{directory}: {os.path.basename(error.filename)} is missing") from None
    try:
        if os.fstat(ram).st_size != record.machine.memory_mib * _MIB:
            raise CorruptData(f"{directory}: its memory is not of {record.machine.memory_mib} MiB")
        state = _load(directory, "state", record.state_digest)
    except FileNotFoundError as error:
        os.close(ram)
        raise CorruptData(f"{directory}: {os.path.basename(error.filename)} is missing") from None
    except BaseException:
        os.close(ram)
        raise
    return Captured(
        machine=record.machine,
        accelerator=record.accelerator,
        type=record.type,
        nic_count=record.nic_count,
        interfaces=record.interfaces,
        ram=ram,
        state=state,
        qemu=record.qemu,
    )


def _load(directory: str, name: str, digest: str) -> int:
    try:
        return memory_file.load_sealed(os.path.join(directory, name), digest)
    except ValueError as error:
        raise CorruptData(f"{directory}: its {name} {error}") from None
