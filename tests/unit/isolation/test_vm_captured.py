"""A captured machine in files: what comes back, and what is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.errors import CorruptData
from insula.isolation.plan import GuestMachine
from insula.isolation.vm.captured import Captured, load, save
from insula.isolation.vm.machine import Accelerator
from insula.system.memory_file import make_memory_file, seal

MIB = 1 << 20


def make_captured() -> Captured:
    ram, state = make_memory_file("ram", 2 * MIB), make_memory_file("state")
    os.pwrite(ram, b"memory", MIB + 5)
    os.pwrite(state, b"QEVM devices", 0)
    for fd in (ram, state):
        seal(fd)
    return Captured(
        machine=GuestMachine(vcpus=3, memory_mib=2),
        accelerator=Accelerator.TCG,
        type="pc-q35-7.2",
        nic_count=2,
        interfaces=("eth0", "eth1"),
        ram=ram,
        state=state,
    )


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    before = make_captured()
    save(before, str(tmp_path))
    assert os.stat(tmp_path / "ram").st_blocks * 512 < MIB  # its holes are holes
    after = load(str(tmp_path))
    assert (before.machine, before.accelerator, before.type, before.interfaces) == (
        after.machine,
        after.accelerator,
        after.type,
        after.interfaces,
    )
    assert os.pread(before.ram, 2 * MIB, 0) == os.pread(after.ram, 3 * MIB, 0)
    assert os.pread(before.state, MIB, 0) == os.pread(after.state, MIB, 0)
    with pytest.raises(PermissionError):  # nobody changes what others go on from
        os.pwrite(after.ram, b"x", 0)


@pytest.mark.parametrize("name", ["ram", "state"])
def test_damage_is_found(name: str, tmp_path: Path) -> None:
    save(make_captured(), str(tmp_path))
    with open(tmp_path / name, "r+b") as file:
        file.seek(3)
        file.write(b"x")
    with pytest.raises(CorruptData, match=f"its {name} does not match its digest"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["ram", "state", "machine.json"])
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    save(make_captured(), str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(CorruptData, match=f"{name} is missing"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"format":1', '"format":2', "its format is 2; this insula reads 1"),
        ('"memory_mib":2', '"memory_mib":3', "its memory is not of 3 MiB"),
        ('"accelerator":"tcg"', '"accelerator":"hvf"', "cannot be read"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(old: str, new: str, why: str, tmp_path: Path) -> None:
    save(make_captured(), str(tmp_path))
    text = (tmp_path / "machine.json").read_text()
    assert old in text
    (tmp_path / "machine.json").write_text(text.replace(old, new))
    with pytest.raises(CorruptData, match=why):
        load(str(tmp_path))


def test_its_descriptors_go_with_it() -> None:
    captured = make_captured()
    fds = (captured.ram, captured.state)
    source = captured.source("fork of x")
    del captured
    for fd in fds:
        os.fstat(fd)  # the source holds them
    del source
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
