"""A few of something kept ready, made one at a time while nobody waits.  Async; knows nothing of what it
keeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from insula.errors import InsulaError

log = logging.getLogger(__name__)

T = TypeVar("T")

# a start that has just taken one should have the processor to itself
_QUIET_S = 0.05
_SHRINK_S = 60.0


class Pool(Generic[T]):
    """`take` is instant while some are ready; else it makes one.  Wanting grows when a burst empties the
    pool (doubling, up to `most`), and falls back to `least` after a minute without takers."""

    def __init__(
        self,
        make: Callable[[], Awaitable[T]],
        drop: Callable[[T], None],
        *,
        least: int,
        most: int,
        quiet_s: float = _QUIET_S,
        eager: bool = True,
        gives_up: bool = False,
    ) -> None:
        """`quiet_s`: how long nobody may have taken one before more are made; `eager`: at once when hardly
        any is left; `gives_up`: `close` cancels what is being made instead of waiting for it."""
        self._make = make
        self._drop = drop
        self._least = least
        self._most = most
        self._quiet_s = quiet_s
        self._eager = eager
        self._gives_up = gives_up
        self._want = least
        self._ready: deque[T] = deque()
        self._waiting = 0
        self._making: set[asyncio.Future[T]] = set()
        self._taken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="pool")

    def ready(self) -> int:
        return len(self._ready)

    def find(self) -> T | None:
        """One that is ready, for a taker who can do without; wanting grows as with `take`."""
        self._taken.set()
        if self._ready:
            return self._ready.popleft()
        self._want = min(max(self._want * 2, 1), self._most)
        return None

    def drop_ready(self) -> None:
        """What is ready goes, and wanting falls back; more is made when somebody takes."""
        self._want = self._least
        while self._ready:
            self._drop(self._ready.popleft())

    async def take(self) -> T:
        self._taken.set()
        if self._ready:
            return self._ready.popleft()
        self._want = min(self._want * 2, self._most)
        self._waiting += 1
        try:
            return await self._made()
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Drop those that are ready."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._gives_up:
            for making in self._making:
                making.cancel()
        if self._making:
            # not gather, which from Python 3.12 on does not wait for the other callbacks of what is done
            await asyncio.wait(self._making)
        while self._ready:
            self._drop(self._ready.popleft())

    async def _keep(self) -> None:
        while True:
            try:
                await self._fill()
            except (InsulaError, OSError) as error:  # the next taker tries again and tells its client
                log.warning("cannot prepare ahead: %s", error)
            self._taken.clear()
            try:
                async with asyncio.timeout(_SHRINK_S):
                    await self._taken.wait()
            except TimeoutError:
                self._want = self._least
                while len(self._ready) > self._least:
                    self._drop(self._ready.pop())
                await self._taken.wait()

    async def _fill(self) -> None:
        while len(self._ready) < self._want:
            await self._quiet()
            self._ready.append(await self._made())

    async def _made(self) -> T:
        """A fresh one.  Should the caller be cancelled meanwhile, it becomes one of those that are ready."""
        making = asyncio.ensure_future(self._make())
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep_for_later)
            raise

    def _keep_for_later(self, making: asyncio.Future[T]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._ready.append(making.result())

    async def _quiet(self) -> None:
        """Until nobody waits, and none was taken for a moment or, if eager, hardly any is left."""
        while self._waiting or not self._eager or len(self._ready) > self._want // 4:
            self._taken.clear()
            try:
                async with asyncio.timeout(self._quiet_s):
                    await self._taken.wait()
            except TimeoutError:
                if not self._waiting:
                    return
