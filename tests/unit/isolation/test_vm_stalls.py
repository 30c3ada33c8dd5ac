"""A machine whose disk finds no space on the host stands still, says so, and goes on when there is some."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from insula.errors import DiskFull
from insula.isolation.vm import stalls
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.record import VmRecord
from insula.isolation.vm.stalls import look_after
from insula.isolation.vm.vm import Vm
from insula.model.root import DiskRoot
from unit.isolation.test_vm_golden import PLAN

GIB = 1 << 30


class Told(Monitor):
    """QEMU's, as far as it matters here."""

    def __init__(self) -> None:
        super().__init__("", "")
        self.state, self.asked, self.resumed = "io-error", 0, 0

    async def status(self) -> str:
        self.asked += 1
        return self.state

    async def resume(self) -> None:
        self.resumed += 1
        self.state = "running"


@pytest.fixture
def quiet() -> Iterator[int]:
    """A process that uses no CPU time."""
    process = subprocess.Popen(["sleep", "1000"])
    os.kill(process.pid, signal.SIGSTOP)
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
async def machine(quiet: int, tmp_path: Path) -> Vm:
    disk = DiskRoot(image_disk="", upper_disk=str(tmp_path / "upper"))
    vm = Vm(dataclasses.replace(PLAN, run_dir=str(tmp_path), disk=disk), lambda _: None)
    vm.monitor = Told()
    vm.record = VmRecord(pid=quiet, started=0, boot_id="", uid=0, accelerator="tcg", launched_ns=0)
    return vm


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    known = {"bytes": 0}
    told = SimpleNamespace(
        path=os.path, statvfs=lambda _: SimpleNamespace(f_bavail=known["bytes"], f_frsize=1)
    )
    monkeypatch.setattr(stalls, "os", told)
    return known


async def test_it_waits_for_room_and_goes_on(machine: Vm, free: dict[str, int]) -> None:
    monitor = machine.monitor
    assert isinstance(monitor, Told)
    await look_after(machine)
    assert (0, False) == (monitor.asked, machine.stalled)  # the first look tells nothing
    await look_after(machine)
    assert machine.stalled
    with pytest.raises(DiskFull, match="stands still"):
        await machine.channel()
    with pytest.raises(DiskFull):
        async with machine.reading():
            pass
    await machine.signal(15)  # waits with it
    free["bytes"] = GIB
    await look_after(machine)
    assert (1, False) == (monitor.resumed, machine.stalled)


async def test_one_that_is_being_started_is_ended(
    machine: Vm, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it gets the reason (`VmBackend._taken`), and it is not left half started."""
    killed: list[bool] = []
    monkeypatch.setattr(machine, "kill", lambda: killed.append(True))
    free["bytes"], machine.launching = GIB, True
    for _ in range(2):
        await look_after(machine)
    assert ([True], True) == (killed, machine.stalled)


@pytest.mark.parametrize("state", ["running", "paused", "guest-panicked"])
async def test_one_that_is_only_quiet_is_left_alone(machine: Vm, free: dict[str, int], state: str) -> None:
    monitor = machine.monitor
    assert isinstance(monitor, Told)
    free["bytes"], monitor.state = GIB, state
    for _ in range(3):
        await look_after(machine)
    assert (0, False) == (monitor.resumed, machine.stalled)


async def test_one_that_runs_or_is_paused_is_not_asked(machine: Vm, free: dict[str, int]) -> None:
    monitor = machine.monitor
    assert isinstance(monitor, Told)
    machine.paused = True
    for _ in range(3):
        await look_after(machine)
    machine.paused = False
    assert machine.record is not None
    machine.record = dataclasses.replace(machine.record, pid=os.getpid())
    for _ in range(3):
        spent = sum(os.times()[:2])
        while sum(os.times()[:2]) < spent + 0.05:  # the clock of processes has steps of 10 ms
            pass
        await look_after(machine)
    assert 0 == monitor.asked
