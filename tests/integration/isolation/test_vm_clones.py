"""Clones of one template: nobody is another, nothing of one is in the next, and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from insula.config import Settings
from insula.isolation.backend import Liveness
from insula.isolation.plan import ExecPlan, LaunchPlan, Process
from insula.isolation.vm.backend import VmBackend
from insula.isolation.vm.order import passing_prefixes
from insula.isolation.vm.record import VmRecord, read_record
from insula.model.progress import no_progress
from insula.system import cgroups
from integration.isolation.machines import Workshop, make_image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),  # a clone is made at the lowest weight: on a busy host that takes minutes
    pytest.mark.vm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

READY_S = 120.0
MARK = "insula-leaves-nothing-of-this"
IDENTITY = "; ".join(
    (
        "head -c 16 /dev/urandom | busybox od -An -tx1",
        "cat /proc/sys/kernel/random/boot_id /etc/machine-id",
        "hostname",
    )
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_image(str(tmp_path_factory.mktemp("image")))


def make_workshop(base: Path, image: str, guest_cache: Path) -> Workshop:
    (base / "data").mkdir()
    for name in ("guest", "templates"):
        (base / "data" / name).symlink_to(guest_cache.parent / name)
    return Workshop(str(base), image)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, image: str, guest_cache: Path) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("clones"), image, guest_cache)


def make_backend(workshop: Workshop) -> VmBackend:
    return VmBackend(
        Settings(
            data_root=f"{workshop.base}/data", exec_root=f"{workshop.base}/run", accel="tcg", vm_disk_gib=1
        )
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(workshop: Workshop) -> AsyncIterator[VmBackend]:
    one = make_backend(workshop)
    await one.start()
    yield one
    await one.stop()


def ready(backend: VmBackend) -> int:
    return int(dict(backend.info().details)["clones ready"])


async def until_ready(backend: VmBackend) -> None:
    limit = time.monotonic() + READY_S
    while not ready(backend):
        assert time.monotonic() < limit, "no clone was made ahead"
        await asyncio.sleep(0.05)


async def started(backend: VmBackend, plan: LaunchPlan) -> VmRecord:
    await backend.launch(plan)
    await backend.release(plan.id)
    record = read_record(plan.run_dir)
    assert record is not None
    return record


async def said(backend: VmBackend, plan: LaunchPlan, script: str) -> str:
    process = Process(args=("sh", "-c", script), env=("PATH=/bin",))
    exec_ = await backend.exec(plan.id, ExecPlan(id="e", process=process))
    out = b""
    while chunk := await exec_.stream.read():
        out += chunk.data
    assert await exec_.wait() == 0, out
    return out.decode()


async def end(backend: VmBackend, *plans: LaunchPlan) -> None:
    for plan in plans:
        await backend.discard(plan)


async def test_no_clone_is_another_and_their_clocks_are_right(backend: VmBackend, workshop: Workshop) -> None:
    plans = [workshop.plan("sleep", "1000", memory_mib=160, hostname=f"isle-{n}") for n in range(3)]
    first = await started(backend, plans[0])
    second = await started(backend, plans[1])  # the first may have booted; this one waits for a template
    await until_ready(backend)
    third = await started(backend, plans[2])
    assert second.template == third.template != ""
    assert not second.owner.startswith(passing_prefixes(f"{workshop.base}/run"))
    assert third.owner.startswith(passing_prefixes(f"{workshop.base}/run"))
    assert 3 == len({first.uid, second.uid, third.uid})
    lines = [(await said(backend, plan, IDENTITY)).split("\n") for plan in plans]
    for kind in zip(*(line[:3] for line in lines), strict=True):
        assert 3 == len(set(kind)), kind
    assert [f"isle-{n}" for n in range(3)] == [line[3] for line in lines]
    for plan in plans:
        assert abs(int(await said(backend, plan, "busybox date +%s")) - time.time()) < 3
    await end(backend, *plans)


async def test_nothing_of_one_is_in_the_next(backend: VmBackend, workshop: Workshop) -> None:
    writer = workshop.plan("sleep", "1000", memory_mib=160)
    await started(backend, writer)
    script = (
        f"for f in /dev/shm/m /tmp/m /m; do busybox yes {MARK} | head -c 1000000 > $f; done; busybox sync"
    )
    await said(backend, writer, script)
    await end(backend, writer)
    for _ in range(2):  # one made ahead, or made now
        reader = workshop.plan("sleep", "1000", memory_mib=160)
        await started(backend, reader)
        script = "echo x | cat - /dev/shm/* /tmp/* /m 2>/dev/null | busybox grep -c -v ^x$ || true"
        assert "0\n" == await said(backend, reader, script)
        await end(backend, reader)


async def test_the_memory_of_a_template_cannot_be_written_to(backend: VmBackend, workshop: Workshop) -> None:
    plan = workshop.plan("sleep", "1000", memory_mib=160)
    record = await started(backend, plan)
    directory = f"/proc/{record.pid}/fd"
    found = [name for name in os.listdir(directory) if "insula-ram" in os.readlink(f"{directory}/{name}")]
    assert found
    for name in found:
        fd = os.open(f"{directory}/{name}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        os.close(fd)
    await end(backend, plan)


def private_mib(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        found = dict(line.split(":") for line in file if line.startswith("Private_"))
    return sum(int(text.split()[0]) for text in found.values()) // 1024


async def test_memory_that_a_clone_does_not_need_any_more_comes_back(
    backend: VmBackend, workshop: Workshop
) -> None:
    """And the template is still what it was: others start from it."""
    plan, other = (workshop.plan("sleep", "1000", memory_mib=256) for _ in range(2))
    await backend.warm_template(1, 256, no_progress)
    record = await started(backend, plan)
    assert record.template
    before = private_mib(record.pid)
    sample = await backend.sample(plan.id)  # what `stats` says is what nobody else shares
    used = sample.memory_bytes - (sample.memory_stats or {}).get("total_inactive_file", 0)
    assert abs(used // 2**20 - before) < 40
    await said(backend, plan, "dd if=/dev/zero of=/dev/shm/big bs=1M count=60 2>/dev/null")
    full = private_mib(record.pid)
    assert full > before + 40  # some of its own pages were free before
    await said(backend, plan, "rm /dev/shm/big")
    limit = time.monotonic() + READY_S
    while private_mib(record.pid) > before + 25:  # the guest reports what is free every two seconds
        assert time.monotonic() < limit, (before, full, private_mib(record.pid))
        await asyncio.sleep(0.1)
    with open(f"{plan.run_dir}/qemu.log", encoding="utf-8") as log:  # QEMU 10 warns of what it could do
        assert [] == [line for line in log if "warning: " not in line]
    assert (await started(backend, other)).template == record.template
    for one in (plan, other):
        assert "alive\n" == await said(backend, one, "echo alive")
    await end(backend, plan, other)


async def test_one_that_died_meanwhile_is_not_handed_out(backend: VmBackend, workshop: Workshop) -> None:
    await until_ready(backend)
    prefixes = passing_prefixes(f"{workshop.base}/run")
    layout = cgroups.find_layout()
    for name in {n for d in layout.directories("insula") if os.path.isdir(d) for n in os.listdir(d)}:
        if name.startswith(prefixes):
            for pid in cgroups.processes(layout, f"insula/{name}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    plan = workshop.plan("sleep", "1000", memory_mib=160)
    record = await started(backend, plan)
    assert not record.owner.startswith(prefixes)
    assert "alive\n" == await said(backend, plan, "echo alive")
    await end(backend, plan)


async def test_a_stop_ends_what_waited_and_keeps_what_runs(
    tmp_path: Path, image: str, guest_cache: Path
) -> None:
    workshop = make_workshop(tmp_path, image, guest_cache)  # of its own: one backend to an exec root
    before = make_backend(workshop)
    await before.start()
    first = workshop.plan("true", memory_mib=160)
    await started(before, first)
    await until_ready(before)
    plan = workshop.plan("sh", "-c", "read x; exit 7", open_stdin=True, memory_mib=160)
    taken = await started(before, plan)
    prefixes = passing_prefixes(f"{workshop.base}/run")
    assert taken.owner.startswith(prefixes)
    await until_ready(before)  # another
    await end(before, first)
    await before.stop()
    layout = cgroups.find_layout()
    groups = {n for d in layout.directories("insula") if os.path.isdir(d) for n in os.listdir(d)}
    assert [taken.owner] == [n for n in groups if n.startswith(prefixes)]
    assert not os.listdir(f"{workshop.base}/run/clones")
    after = make_backend(workshop)
    await after.start()
    try:
        assert Liveness.RUNNING is await after.recover(plan)
        assert "still\n" == await said(after, plan, "echo still")
        stream = await after.attach(plan.id)
        await stream.write(b"go\n")
        assert 7 == (await after.wait(plan.id)).code
        await stream.close()
        await after.discard(plan)
    finally:
        await after.stop()
