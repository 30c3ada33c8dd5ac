"""Helper VMs: a guest on the disks of a stopped instance, to serve its files.  Async.

One per instance at most, kept for a few seconds after its last use (docker cp asks twice) and ended before
the instance itself boots: two kernels must not have one disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from insula.isolation.plan import LaunchPlan
from insula.isolation.vm.boot import Booted, end
from insula.isolation.vm.wire import Type

log = logging.getLogger(__name__)

_LINGER_S = 4.0
_POWER_OFF_S = 30.0


class _Helper:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.booted: Booted | None = None
        self.linger: asyncio.TimerHandle | None = None


class Helpers:
    """`boot` boots one and configures its root; `gone` frees what belongs to it."""

    def __init__(
        self, boot: Callable[[LaunchPlan], Awaitable[Booted]], gone: Callable[[LaunchPlan, Booted], None]
    ) -> None:
        self._boot = boot
        self._gone = gone
        self._helpers: dict[str, _Helper] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def use(self, plan: LaunchPlan) -> AsyncIterator[Booted]:
        helper = self._helpers.setdefault(plan.id, _Helper())
        helper.users += 1
        try:
            async with helper.lock:
                if helper.linger:
                    helper.linger.cancel()
                    helper.linger = None
                if helper.booted is not None and helper.booted.watch.ended:
                    await self._end(plan, helper)
                if helper.booted is None:
                    helper.booted = await self._boot(plan)
            yield helper.booted
        finally:
            helper.users -= 1
            if helper.users == 0:
                helper.linger = asyncio.get_running_loop().call_later(_LINGER_S, self._expire, plan)

    def _expire(self, plan: LaunchPlan) -> None:
        task = asyncio.create_task(self.close(plan))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self, plan: LaunchPlan) -> None:
        """End the instance's helper, if there is one; idempotent.  Waits for whoever boots it now."""
        helper = self._helpers.get(plan.id)
        if helper is None:
            return
        async with helper.lock:
            if helper.linger:
                helper.linger.cancel()
                helper.linger = None
            await self._end(plan, helper)
            if helper.users == 0:
                self._helpers.pop(plan.id, None)

    async def _end(self, plan: LaunchPlan, helper: _Helper) -> None:
        booted, helper.booted = helper.booted, None
        if booted is None:
            return
        booted.channel.send(Type.POWEROFF, 0)
        try:
            async with asyncio.timeout(_POWER_OFF_S):
                await booted.watch.wait()
        except TimeoutError:
            log.warning("the helper of %s did not power off; its plug is pulled", plan.id[:12])
        await end(booted)
        self._gone(plan, booted)

    async def close_all(self) -> None:
        for helper_id in list(self._helpers):
            helper = self._helpers[helper_id]
            async with helper.lock:
                if helper.linger:
                    helper.linger.cancel()
                booted = helper.booted
                if booted is not None:
                    await end(booted)
        self._helpers.clear()
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)
