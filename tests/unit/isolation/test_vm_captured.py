"""A captured machine in files: what comes back, what is not believed, and which QEMU goes on from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from insula.errors import CorruptData, RuntimeFailed, Unavailable
from insula.isolation.plan import GuestMachine
from insula.isolation.vm.captured import Captured, load, save
from insula.isolation.vm.loadable import check_loadable, explain
from insula.isolation.vm.machine import Accelerator
from insula.system.memory_file import make_memory_file, seal

MIB = 1 << 20


def make_captured(type_: str = "pc-q35-7.2", qemu: str = "7.2.22") -> Captured:
    ram, state = make_memory_file("ram", 2 * MIB), make_memory_file("state")
    os.pwrite(ram, b"memory", MIB + 5)
    os.pwrite(state, b"QEVM devices", 0)
    for fd in (ram, state):
        seal(fd)
    return Captured(
        machine=GuestMachine(vcpus=3, memory_mib=2),
        accelerator=Accelerator.TCG,
        type=type_,
        nic_count=2,
        interfaces=("eth0", "eth1"),
        ram=ram,
        state=state,
        qemu=qemu,
    )


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    before = make_captured()
    save(before, str(tmp_path))
    assert os.stat(tmp_path / "ram").st_blocks * 512 < MIB  # its holes are holes
    after = load(str(tmp_path))
    assert (before.machine, before.accelerator, before.type, before.qemu, before.interfaces) == (
        after.machine,
        after.accelerator,
        after.type,
        after.qemu,
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


def test_one_that_does_not_say_its_qemu_is_read(tmp_path: Path) -> None:
    save(make_captured(), str(tmp_path))
    record = json.loads((tmp_path / "machine.json").read_text())
    del record["qemu"]
    (tmp_path / "machine.json").write_text(json.dumps(record))
    assert "" == load(str(tmp_path)).qemu


def make_qemu(directory: Path, *machines: str) -> str:
    program = directory / "qemu"
    lines = "\n".join(["Supported machines are:", *(f"{name:20} Standard PC (Q35)" for name in machines)])
    program.write_text(f"#!/bin/sh\n[ \"$*\" = '-machine help' ] && cat <<'END'\n{lines}\nEND\n")
    program.chmod(0o755)
    return str(program)


async def test_a_later_qemu_that_has_the_machine_goes_on_from_it(tmp_path: Path) -> None:
    await check_loadable(make_captured(), make_qemu(tmp_path, "pc-q35-10.0", "pc-q35-7.2"), "10.0.13")
    await check_loadable(make_captured(), "/is/not/asked", "7.2.22")


async def test_a_qemu_without_the_machine_is_named_with_the_one_that_has_it(tmp_path: Path) -> None:
    program = make_qemu(tmp_path, "pc-q35-7.2", "none")
    with pytest.raises(Unavailable) as caught:
        await check_loadable(make_captured("pc-q35-10.0", "10.0.13"), program, "7.2.22")
    for word in ("pc-q35-10.0", "QEMU 10.0.13", "QEMU 7.2.22 of this host"):
        assert word in str(caught.value)
    assert "where QEMU is 10.0.13" in str(caught.value.hint)
    with pytest.raises(Unavailable, match="made by another version of QEMU"):
        await check_loadable(make_captured("pc-q35-10.0", ""), program, "7.2.22")


def test_a_state_that_does_not_load_is_told_with_both_versions() -> None:
    failed = RuntimeFailed("QEMU could not start a clone")
    assert failed is explain(failed, make_captured(), "7.2.22")
    said = str(explain(failed, make_captured(), "10.0.13"))
    assert "QEMU could not start a clone" in said
    assert "made by QEMU 7.2.22, and this host has 10.0.13" in said
