"""Names of neighbours in the /etc/hosts of those that have nobody to ask for them: VMs on a network beside
the host (docs/decisions/0017).  Async.

The network room says who has others than before; one after the other is told, in the background.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from insula.engine.instances import Instances
from insula.engine.links import Links
from insula.errors import InsulaError, NoSuchInstance

if TYPE_CHECKING:
    from insula.engine.kit import Kit
    from insula.engine.preparation import Preparation

log = logging.getLogger(__name__)


class Neighbours:
    def __init__(self, kit: Kit, instances: Instances, links: Links, preparation: Preparation) -> None:
        self._instances = instances
        self._links = links
        self._preparation = preparation
        self._waiting: dict[str, None] = {}
        self._missed: set[str] = set()
        self._teller: asyncio.Task[None] | None = None
        kit.networks.watch_neighbours(self.note)

    def note(self, instance_id: str) -> None:
        """It has others than before."""
        self._waiting[instance_id] = None
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell(), name="names of neighbours")

    def note_going_on(self, instance_id: str) -> None:
        """It was paused: it may have missed something."""
        if instance_id in self._missed:
            self.note(instance_id)

    async def _tell(self) -> None:
        while self._waiting:
            instance_id = next(iter(self._waiting))
            del self._waiting[instance_id]
            self._missed.discard(instance_id)
            try:
                await self._links.refresh(self._instances.find(instance_id), self._preparation)
            except NoSuchInstance:
                continue
            except InsulaError as error:
                log.warning("%s keeps old names of its neighbours: %s", instance_id[:12], error)
                self._missed.add(instance_id)

    async def close(self) -> None:
        """The daemon ends."""
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)
