"""Templates with an image's root mounted in them: what one VM after another of one image starts from when
no clone is ready.  Async; in memory only.

To mount a root is a fifth of what an emulated guest does until its program runs.  One is made from the
template of the size, in the background, once an image has started two VMs of that size within ten minutes;
it takes as much memory again, so there are few (`most`), each goes when nobody has used it for ten minutes,
and all go while the host is short of memory.  Nothing of an instance is in it, and nothing of its image
has run in it: the image's disk is mounted, an empty upper disk over it, which each clone gets a copy of, and
empty files in the places of those that each instance has (/etc/hosts and the like).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from insula.errors import InsulaError
from insula.isolation.vm.size import Size, have_memory
from insula.isolation.vm.template import Source, Template
from insula.system import memory_file

log = logging.getLogger(__name__)

_LEAST = 2  # VMs of an image, before one more pays
_RECENT_S = 600.0
_BUSY_S = 60.0  # one that was used so lately does not make room for another
_QUIET_S = 0.5  # making one is a second of a CPU's time: not while an instance starts,
_PATIENCE_S = 5.0  # unless one always does


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a VM must have in common with one.  `files`: as an order's."""

    size: Size
    image_disk: str
    files: tuple[str, ...] = ()


class ImageTemplate:
    """`upper` is the disk that was mounted when it was frozen; it, memory and state are sealed memory files.
    `base` is what it was made from; `image` says which file it has seen (`identify`)."""

    def __init__(
        self, base: Template, kind: Kind, image: tuple[int, ...], *, ram: int, state: int, upper: int
    ) -> None:
        self.base = base
        self.kind = kind
        self.image = image
        self.ram = ram
        self.state = state
        self.upper = upper
        self.used = time.monotonic()
        """When it was made, or a VM last began from it."""
        weakref.finalize(self, memory_file.close_all, ram, state, upper)

    def source(self) -> Source:
        return Source(
            name=self.base.record.key,
            ram=self.ram,
            state=self.state,
            owner=self,
            template=True,
            has_root=True,
        )

    @property
    def upper_disk(self) -> str:
        """Its path, for this process."""
        return f"/proc/self/fd/{self.upper}"


def identify(image_disk: str) -> tuple[int, ...]:
    """Of the file that is there now: an image that was removed and pulled again has another.  Raises
    OSError."""
    stat = os.stat(image_disk)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class ImageTemplates:
    """`make` makes one from the template of the size, unless that is not there any more; it may fail.  `most`
    0: there are none."""

    def __init__(self, make: Callable[[Kind], Awaitable[ImageTemplate | None]], *, most: int) -> None:
        self._make = make
        self._most = most
        self._ready: dict[Kind, ImageTemplate] = {}
        self._starts: dict[Kind, list[float]] = {}
        self._failed: set[Kind] = set()
        self._last_start = 0.0
        self._making: asyncio.Task[None] | None = None

    def find(self, base: Template, kind: Kind) -> ImageTemplate | None:
        """One that is ready, made from `base`, and of the image as it is there now."""
        found = self._ready.get(kind)
        if found is None:
            return None
        try:
            is_same = found.base is base and found.image == identify(kind.image_disk)
        except OSError:
            is_same = False
        if not is_same:
            self.drop(found)
            return None
        found.used = time.monotonic()
        return found

    def ready(self) -> int:
        return len(self._ready)

    def started(self, kind: Kind) -> None:
        """A VM of this kind that no clone was ready for."""
        if not self._most:
            return
        now = self._last_start = time.monotonic()
        recent = [one for one in self._starts.get(kind, ()) if now - one < _RECENT_S]
        self._starts[kind] = [*recent[-_LEAST:], now]
        often = len(self._starts[kind]) >= _LEAST
        if often and kind not in self._ready and kind not in self._failed and self._making is None:
            self._making = asyncio.create_task(self._make_ahead(kind), name="image template")

    async def _make_ahead(self, kind: Kind) -> None:
        try:
            await self._quiet()
            if not self._make_room() or not have_memory(kind.size.memory_mib):
                return
            began = time.monotonic()
            template = await self._make(kind)
            if template is None:
                return
            self._ready[kind] = template
            took_s = time.monotonic() - began
            log.info("a template with %s mounted was made in %.1f s", kind.image_disk, took_s)
        except (InsulaError, OSError) as error:
            self._failed.add(kind)  # its VMs start as the first of an image does
            log.warning("no template with %s mounted: %s", kind.image_disk, error)
        finally:
            self._making = None

    async def _quiet(self) -> None:
        """Who starts one after another without a rest has waited long enough at some time."""
        rest_s, until = _QUIET_S, time.monotonic() + _PATIENCE_S
        while rest_s > 0 and time.monotonic() < until:
            await asyncio.sleep(rest_s)
            rest_s = self._last_start + _QUIET_S - time.monotonic()

    def _make_room(self) -> bool:
        """For one more."""
        if len(self._ready) < self._most:
            return True
        oldest = min(self._ready.values(), key=lambda template: template.used)
        if time.monotonic() - oldest.used < _BUSY_S:
            return False
        self.drop(oldest)
        return True

    def drop(self, template: ImageTemplate) -> None:
        """No more clones of it; those that run keep its memory."""
        if self._ready.get(template.kind) is template:
            del self._ready[template.kind]

    def forget(self, size: Size) -> None:
        """All of a size."""
        for kind in [one for one in self._ready if one.size == size]:
            self.drop(self._ready[kind])

    def shrink(self) -> None:
        """Now and then: those that nobody has used for ten minutes; all, while memory is short."""
        now = time.monotonic()
        for template in list(self._ready.values()):
            if now - template.used > _RECENT_S or not have_memory(0):
                self.drop(template)
        for kind, starts in list(self._starts.items()):
            if now - starts[-1] > _RECENT_S:
                del self._starts[kind]
                self._failed.discard(kind)

    async def close(self) -> None:
        if self._making is not None:
            self._making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._making
        self._ready.clear()
