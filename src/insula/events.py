"""What happened: one bus that remembers the recent past, for `docker events` and for whoever waits.

Async side: `follow`.  `publish` may be called from the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_REMEMBERED = 1024
_QUEUE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`kind` is container, image, network, volume or daemon; `action` is Docker's word (`start`, `die`)."""

    kind: str
    action: str
    actor_id: str
    attributes: dict[str, str] = field(default_factory=dict)
    time_ns: int = 0


class EventBus:
    def __init__(self) -> None:
        self._past: deque[Event] = deque(maxlen=_REMEMBERED)
        self._followers: set[asyncio.Queue[Event | None]] = set()

    def publish(self, kind: str, action: str, actor_id: str, /, **attributes: str) -> None:
        event = Event(
            kind=kind, action=action, actor_id=actor_id, attributes=attributes, time_ns=time.time_ns()
        )
        self._past.append(event)
        for queue in list(self._followers):
            if queue.qsize() >= _QUEUE:  # a client that does not read: end it rather than grow
                self._followers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    async def follow(self, since_ns: int | None = None) -> AsyncIterator[Event]:
        """Remembered events from `since_ns` on (None: none of them), then new ones as they happen."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        past = [e for e in self._past if since_ns is not None and e.time_ns >= since_ns]
        self._followers.add(queue)
        try:
            for event in past:
                yield event
            while (fresh := await queue.get()) is not None:
                yield fresh
        finally:
            self._followers.discard(queue)

    @property
    def followers(self) -> int:
        return len(self._followers)

    def recent(self, since_ns: int, until_ns: int) -> tuple[Event, ...]:
        return tuple(e for e in self._past if since_ns <= e.time_ns <= until_ns)
