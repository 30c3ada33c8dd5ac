"""QEMU's monitor: the few commands we use, through the qemu.qmp package.  Async.

Connected when first needed and kept.  Never qemu.qmp.legacy (GPL-2 only).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from insula.errors import RuntimeFailed
from insula.isolation.vm import sockets
from insula.isolation.vm.machine import FIRST_DISK_SET, Disk, disk_node, file_node, hot_nic

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_TIMEOUT_S = 20.0
_STATE_SET = 9  # no other file has it
_EJECT_S = 5.0  # for a guest, which may be anybody's, to let go of a device
_EJECT_LOOK_S = 0.01
_LOOK_S = 0.002  # saving a state takes 10 ms, with an event or without
# Memory in a shared file stays out of the stream: it is in the file already.  (As a property on the command
# line QEMU has this since 8.1 only.)
_IGNORE_SHARED: tuple[str, dict[str, object]] = (
    "migrate-set-capabilities",
    {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
)
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs every ended VM as an error


class Monitor:
    """One VM's monitor.  Its methods raise RuntimeFailed when QEMU does not answer."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self._lock = asyncio.Lock()
        self._client: object | None = None

    async def _execute(
        self, command: str, arguments: dict[str, object] | None = None, *, fd: int = -1
    ) -> object:
        """`fd` is passed along, for `getfd` and `add-fd`."""
        async with self._connected(command) as client:
            if fd >= 0:
                client.send_fd_scm(fd)
            return await client.execute(command, arguments)

    async def _execute_all(self, steps: Sequence[tuple[str, dict[str, object]]]) -> None:
        """Sent together: QEMU takes them in order, also when one has failed."""
        async with self._connected(", ".join(name for name, _ in steps)) as client:
            await asyncio.gather(*(client.execute(*step) for step in steps))

    @contextlib.asynccontextmanager
    async def _connected(self, what: str) -> AsyncIterator[QMPClient]:
        from qemu.qmp import QMPClient, QMPError  # 40 ms to import: not at the daemon's start

        async with self._lock:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    client = self._client
                    if not isinstance(client, QMPClient):
                        client = QMPClient(self._name)
                        await client.connect(sockets.connect(self._path))
                        self._client = client
                    yield client
            except (QMPError, OSError, TimeoutError) as error:
                await self._drop()
                raise RuntimeFailed(
                    f"QEMU did not carry out {what} for {self._name}: {error or 'no answer in time'}"
                ) from error

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        # a task of its own: one that is cut short leaves the session's error to be complained of by the loop
        closing = asyncio.create_task(_disconnect(client, self._name))
        try:
            await asyncio.wait([closing], timeout=_TIMEOUT_S)
        except asyncio.CancelledError:
            await asyncio.wait([closing], timeout=_TIMEOUT_S)
            raise

    async def close(self) -> None:
        if self._client is not None:
            async with self._lock:
                await self._drop()

    def moved(self, path: str, name: str) -> None:
        """Its socket has another path now, for the next connection."""
        self._path, self._name = path, name

    async def pause(self) -> None:
        await self._execute("stop")

    async def resume(self) -> None:
        await self._execute("cont")

    async def status(self) -> str:
        """`running`, `paused`, `guest-panicked`, … (QEMU's RunState)."""
        answer = await self._execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def load_state(self, fd: int, *, devices_only: bool) -> None:
        """Go on from a saved state; `fd` is QEMU's own number of its file.  Returns before it is loaded; a
        QEMU that cannot load it ends.  `devices_only`: it is of `save_devices`, not of `save_state`."""
        # it would tell everybody on the network five times where its MAC is: that of somebody else, which it
        # is about to give up
        steps: list[tuple[str, dict[str, object]]] = [
            ("migrate-set-parameters", {"announce-rounds": 0}),
            ("migrate-incoming", {"uri": f"fd:{fd}"}),
        ]
        await self._execute_all(steps if devices_only else [_IGNORE_SHARED, *steps])

    async def save_state(self, fd: int, timeout_s: float) -> None:
        """The state of all devices into `fd`; the machine stands still afterwards, and whoever loads the
        state runs.  Raises RuntimeFailed with QEMU's reason."""
        await self._execute(*_IGNORE_SHARED)
        await self._execute("getfd", {"fdname": "state"}, fd=fd)
        await self._execute("migrate", {"uri": "fd:state"})
        await self.loaded(timeout_s)

    async def loaded(self, timeout_s: float) -> None:
        """Until a state is saved, or loaded.  Raises RuntimeFailed with QEMU's reason."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            answer = await self._execute("query-migrate")
            found = answer if isinstance(answer, dict) else {}
            if (status := found.get("status")) == "completed":
                return
            if status in ("failed", "cancelled"):
                raise RuntimeFailed(
                    f"QEMU could not carry over the state of {self._name}: {found.get('error-desc', status)}"
                )
            await asyncio.sleep(_LOOK_S)
        raise RuntimeFailed(f"QEMU did not carry over the state of {self._name} within {timeout_s:.0f} s")

    async def plug_in(self, netdevs: Sequence[str], up: bool) -> None:
        """Interfaces send and receive, or their frames go nowhere; the guest sees no difference when this is
        done before its state is loaded."""
        for name in netdevs:
            await self._execute("set_link", {"name": name, "up": up})

    # copying a machine that runs

    async def machine_type(self) -> str:
        """With its version: what `-machine` has to say for this one's state to be loaded."""
        answer = await self._execute("qom-get", {"path": "/machine", "property": "type"})
        return str(answer).removesuffix("-machine")

    async def version(self) -> str:
        """QEMU's own, which may be another than that of the program that is installed now: `7.2.22`."""
        answer = await self._execute("query-version")
        numbers = answer.get("qemu") if isinstance(answer, dict) else None
        if not isinstance(numbers, dict):
            raise RuntimeFailed(f"QEMU does not say its version for {self._name}: {answer}")
        return ".".join(str(numbers.get(part, 0)) for part in ("major", "minor", "micro"))

    async def memory_address(self) -> int:
        """Where, in QEMU's own address space, the guest's memory begins."""
        answer = str(await self._execute("human-monitor-command", {"command-line": "gpa2hva 0"}))
        found = re.search(r"\(ram\) is 0x([0-9a-f]+)|\(pc\.ram\) is 0x([0-9a-f]+)", answer)
        if found is None:
            raise RuntimeFailed(f"QEMU does not say where the memory of {self._name} is: {answer.strip()}")
        return int(found[1] or found[2], 16)

    async def save_devices(self, fd: int) -> None:
        """The state of all devices, without memory, of a machine that is paused.  `fd` is open for writing
        only.  (Xen's name for it, but nothing of it needs Xen; `migrate` always saves private memory too.)"""
        await self._execute("add-fd", {"fdset-id": _STATE_SET}, fd=fd)
        await self._execute("xen-save-devices-state", {"filename": f"/dev/fdset/{_STATE_SET}", "live": False})
        await self._execute("remove-fd", {"fdset-id": _STATE_SET})

    async def begin_disk_copy(self, node: str, name: str, fd: int) -> None:
        """Note what is written to a disk from now on.  `fd` is the file that its copy goes to; who calls
        copies into that what the disk has, then calls `take_disk_copy`.  `name` is for this copy alone."""
        file_set = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1
        await self._execute("add-fd", {"fdset-id": file_set}, fd=fd)
        file = {"driver": "file", "filename": f"/dev/fdset/{file_set}", "discard": "unmap"}
        await self._execute(
            "blockdev-add", {"driver": "raw", "node-name": name, "discard": "unmap", "file": file}
        )
        await self._execute("remove-fd", {"fdset-id": file_set})
        await self._execute("block-dirty-bitmap-add", {"node": node, "name": name})

    async def take_disk_copy(self, node: str, name: str) -> None:
        """The copy is to be of this moment: what was written since it began is copied now, and what is
        written from now on is kept out of it, in the background."""
        job: dict[str, object] = {
            "job-id": name,
            "device": node,
            "target": name,
            "sync": "bitmap",
            "bitmap": name,
            "bitmap-mode": "never",
            "auto-dismiss": False,
        }
        await self._execute("blockdev-backup", job)

    async def finish_disk_copy(self, node: str, name: str, timeout_s: float) -> None:
        """Until the copy is complete.  Raises RuntimeFailed with QEMU's reason."""
        until = time.monotonic() + timeout_s
        while True:
            answer = await self._execute("query-jobs")
            jobs: list[dict[str, object]] = answer if isinstance(answer, list) else []
            job = next((each for each in jobs if each.get("id") == name), {})
            if job.get("status") == "concluded":
                break
            if not job or time.monotonic() > until:
                raise RuntimeFailed(f"QEMU did not copy the disk of {self._name} within {timeout_s:.0f} s")
            await asyncio.sleep(_LOOK_S)
        if "error" in job:
            raise RuntimeFailed(f"QEMU could not copy the disk of {self._name}: {job['error']}")
        await self._execute("job-dismiss", {"id": name})
        await self._execute("block-dirty-bitmap-remove", {"node": node, "name": name})
        await self._execute("blockdev-del", {"node-name": name})

    async def give_up_disk_copy(self, node: str, name: str) -> None:
        """What of it was not begun is not there: fine."""
        steps: tuple[tuple[str, dict[str, object]], ...] = (
            ("job-cancel", {"id": name}),
            ("job-dismiss", {"id": name}),
            ("block-dirty-bitmap-remove", {"node": node, "name": name}),
            ("blockdev-del", {"node-name": name}),
        )
        for command, arguments in steps:
            with contextlib.suppress(RuntimeFailed):
                await self._execute(command, arguments)

    async def add_device(self, arguments: Mapping[str, str | bool]) -> None:
        await self._execute("device_add", dict(arguments))

    async def plug_in_nic(self, slot: int, mac: str, tap_fd: int) -> None:
        """The descriptor is ours.  Raises RuntimeFailed; nothing is left then."""
        await self._execute("getfd", {"fdname": f"net{slot}"}, fd=tap_fd)
        await self._execute(
            "netdev_add", {"type": "tap", "id": f"net{slot}", "fd": f"net{slot}", "vhost": False}
        )
        try:
            await self.add_device(hot_nic(slot, mac))
        except RuntimeFailed:
            await self._execute("netdev_del", {"id": f"net{slot}"})
            raise

    async def pull_out_nic(self, slot: int) -> bool:
        """False: the guest holds on to the device, which leads nowhere then.  That in slot 0, on the root
        bus, always stays so.  Idempotent."""
        released = False
        if slot:
            with contextlib.suppress(RuntimeFailed):  # it is not there, or on its way out already
                await self._execute("device_del", {"id": f"nic{slot}"})
            released = await self._await_gone(f"nic{slot}")
        with contextlib.suppress(RuntimeFailed):
            await self._execute("netdev_del", {"id": f"net{slot}"})
        return released

    async def _await_gone(self, device: str) -> bool:
        until = time.monotonic() + _EJECT_S
        while time.monotonic() < until:
            found = await self._execute("qom-list", {"path": "/machine/peripheral"})
            if not any(isinstance(each, dict) and each.get("name") == device for each in _listed(found)):
                return True
            await asyncio.sleep(_EJECT_LOOK_S)
        return False

    async def give(self, disks: Sequence[Disk], log_fd: int) -> None:
        """To a clone that was made ahead, what is its instance's: the files below its disks, which its guest
        does not use yet, and that which its log goes to.  The descriptors are ours."""
        steps: list[tuple[str, dict[str, object]]] = []
        for before, disk in enumerate(disks, start=FIRST_DISK_SET):
            now = before + len(disks)
            await self._execute("add-fd", {"fdset-id": now}, fd=disk.fd)
            steps += [
                ("blockdev-add", dict(file_node(disk, now))),
                ("blockdev-reopen", {"options": [disk_node(disk, now)]}),
                ("blockdev-del", {"node-name": file_node(disk, before)["node-name"]}),
                ("remove-fd", {"fdset-id": before}),
            ]
        log_set = FIRST_DISK_SET + 2 * len(disks)
        await self._execute("add-fd", {"fdset-id": log_set}, fd=log_fd)
        backend = {"type": "file", "data": {"out": f"/dev/fdset/{log_set}", "append": True}}
        steps.append(("chardev-change", {"id": "log", "backend": backend}))
        # not one after the other's answer: QEMU takes them in order, and one that fails makes the rest fail
        await self._execute_all(steps)


async def _disconnect(client: object, name: str) -> None:
    from qemu.qmp import QMPClient

    assert isinstance(client, QMPClient)
    try:
        await client.disconnect()
    except Exception as error:  # its session's errors come out here; that is over either way
        logging.getLogger(__name__).debug("closing the monitor of %s: %s", name, error)


def _listed(answer: object) -> Sequence[object]:
    return answer if isinstance(answer, list) else ()
