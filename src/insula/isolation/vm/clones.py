"""Clones made ahead: restored from a template, rehearsed, and waiting for an instance.  Async.

One pool per size of machine, begun when the first VM of that size has started, so that a host that runs no
VMs pays nothing.  Pools are refilled at a low weight while nobody takes, grow when a burst empties them,
and are emptied while the host is short of memory.  A clone is used once; what runs in it before that is a
rehearsal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from insula.errors import Unavailable
from insula.isolation.vm import boot
from insula.isolation.vm.boot import Booted
from insula.isolation.vm.machine import Disk
from insula.isolation.vm.order import Order
from insula.isolation.vm.qmp import Monitor
from insula.isolation.vm.record import VmRecord, record_path, write_record
from insula.isolation.vm.size import Size, have_memory
from insula.isolation.vm.taps import plug_in_beside
from insula.system.files import disk_errors, remove_tree
from insula.system.pool import Pool

log = logging.getLogger(__name__)

_BURST = 4  # times as many as are kept otherwise
_QUIET_S = 0.5  # making one is a second of a CPU's time: not while an instance starts
_MOVED = ("control.sock", "qmp.sock", "console.log", "exit", "qemu.log", "root")


@dataclass(slots=True, kw_only=True)
class Clone:
    """`order` is what it was started with; its name is its cgroup's for good."""

    order: Order
    booted: Booted
    monitor: Monitor
    generation: str


class Clones:
    """`make` makes one; `drop` ends one, in the background.  `least` 0: there are none."""

    def __init__(
        self, make: Callable[[Size], Awaitable[Clone]], drop: Callable[[Clone], None], *, least: int
    ) -> None:
        self._make = make
        self._drop = drop
        self._least = least
        self._pools: dict[Size, Pool[Clone]] = {}

    def find(self, size: Size) -> Clone | None:
        """One that is ready, of a size that has a pool (`begin`)."""
        pool = self._pools.get(size)
        if pool is None:
            return None
        while (clone := pool.find()) is not None:
            if not clone.booted.watch.ended:
                return clone
            self._drop(clone)
        return None

    def begin(self, size: Size) -> None:
        """Keep some of this size from now on."""
        if not self._least or size in self._pools:
            return

        async def make() -> Clone:
            if not have_memory(size.memory_mib):
                raise Unavailable(f"memory is short: no VM of {size.memory_mib} MiB is made ahead")
            return await self._make(size)

        pool = Pool(
            make,
            self._drop,
            least=self._least,
            most=self._least * _BURST,
            quiet_s=_QUIET_S,
            eager=False,
            gives_up=True,  # on a busy host one takes half a minute
        )
        self._pools[size] = pool
        pool.start()

    def ready(self) -> int:
        return sum(pool.ready() for pool in self._pools.values())

    def relieve(self) -> None:
        """Give memory back when the host is short of it."""
        for size, pool in self._pools.items():
            if pool.ready() and not have_memory(0):
                log.info("memory is short: VMs of %d MiB that were made ahead are ended", size.memory_mib)
                pool.drop_ready()

    async def forget(self, size: Size) -> None:
        """End those of a size that wait; more are made after the next VM of that size."""
        pool = self._pools.pop(size, None)
        if pool is not None:
            await pool.close()

    async def close(self) -> None:
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.close()


async def end(clone: Clone) -> None:
    await clone.monitor.close()
    await boot.end(clone.booted)
    remove_tree(clone.order.run_dir)


async def hand_over(clone: Clone, order: Order) -> VmRecord:
    """Make a clone the VM of an order: its disks, log, place on the network and limits.  Undoes nothing: a
    clone with which this fails is to be ended.  Raises InsulaError, OSError."""
    booted, monitor = clone.booted, clone.monitor
    spare = clone.order.taps[0][0]
    record = dataclasses.replace(booted.record, launched_ns=time.time_ns(), link=spare if order.taps else "")
    with disk_errors("starting a virtual machine"), contextlib.ExitStack() as stack:
        os.makedirs(order.run_dir, mode=0o700, exist_ok=True)
        # first of all: whoever cleans up after a crash finds the VM by this
        write_record(order.run_dir, record)
        disks = (
            Disk(serial="image", fd=_open(stack, order.image_disk, os.O_RDONLY), read_only=True),
            Disk(serial="upper", fd=_open(stack, order.upper_disk, os.O_RDWR), read_only=False),
        )
        log_fd = _open(stack, order.log_path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        await monitor.give(disks, log_fd)
        if order.taps:
            plug_in_beside(spare, order.taps[0][0])
        for name in _MOVED:
            os.rename(os.path.join(clone.order.run_dir, name), os.path.join(order.run_dir, name))
    monitor.moved(boot.qmp_path(order.run_dir), order.id[:12])
    os.unlink(record_path(clone.order.run_dir))
    remove_tree(clone.order.run_dir)
    return record


def _open(stack: contextlib.ExitStack, path: str, flags: int, mode: int = 0o600) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    stack.callback(os.close, fd)
    return fd
