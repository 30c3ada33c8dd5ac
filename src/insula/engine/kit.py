"""What every part of the engine is built from: the rooms, and where things lie.  Pure but for its members."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from insula.engine.growth import Growth
from insula.errors import Unavailable
from insula.isolation.backend import Backend
from insula.model.isolation import Isolation

if TYPE_CHECKING:
    from insula.config import Settings
    from insula.events import EventBus
    from insula.images.images import Images
    from insula.images.roots import Roots
    from insula.network.networks import Networks
    from insula.store.store import Store
    from insula.volumes.volumes import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    settings: Settings
    store: Store
    events: EventBus
    images: Images
    roots: Roots
    networks: Networks
    volumes: Volumes
    backends: Mapping[Isolation, Backend]
    growth: Growth

    def backend(self, isolation: Isolation) -> Backend:
        """Raises Unavailable when this daemon was built without it."""
        try:
            return self.backends[isolation]
        except KeyError:
            raise Unavailable(f"isolation {isolation} is not available in this daemon") from None

    def state_dir(self, instance_id: str) -> str:
        """Survives a reboot."""
        return os.path.join(self.settings.data_root, "instances", instance_id)

    def run_dir(self, instance_id: str) -> str:
        return os.path.join(self.settings.exec_root, "instances", instance_id)

    def log_path(self, instance_id: str) -> str:
        return os.path.join(self.state_dir(instance_id), "output.log")
