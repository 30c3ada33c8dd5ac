"""Templates of virtual machines, of all backends that keep some.  Async."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from insula.errors import InvalidRequest, NotFound, Unavailable
from insula.isolation.backend import TemplateKeeper
from insula.model.progress import Progress
from insula.model.reports import PruneReport
from insula.model.template import TemplateView

if TYPE_CHECKING:
    from insula.engine.kit import Kit


class Templates:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def _keepers(self) -> Sequence[TemplateKeeper]:
        return [backend for backend in self._kit.backends.values() if isinstance(backend, TemplateKeeper)]

    async def list(self) -> tuple[TemplateView, ...]:
        """Newest first."""
        found = [view for keeper in self._keepers() for view in await keeper.templates()]
        return tuple(sorted(found, key=lambda view: view.created_ns, reverse=True))

    async def find(self, ref: str) -> TemplateView:
        """By key or a beginning of it.  Raises NotFound, InvalidRequest when ambiguous."""
        found = [view for view in await self.list() if ref and view.key.startswith(ref)]
        if len(found) > 1:
            raise InvalidRequest(f"template {ref!r} is ambiguous: {', '.join(view.key for view in found)}")
        if not found:
            raise NotFound(f"No such template: {ref}")
        return found[0]

    async def remove(self, ref: str) -> TemplateView:
        """Raises NotFound, InvalidRequest."""
        key = (await self.find(ref)).key
        for keeper in self._keepers():
            with contextlib.suppress(NotFound):
                return await keeper.remove_template(key)
        raise NotFound(f"No such template: {ref}")

    async def prune(self, *, all: bool = False) -> PruneReport:
        """Those that no VM would start from any more; all of them with `all`."""
        gone = [view for view in await self.list() if all or not view.current]
        for view in gone:
            await self.remove(view.key)
        return PruneReport(
            deleted=tuple(view.key for view in gone), reclaimed_bytes=sum(view.size_bytes for view in gone)
        )

    async def warm(
        self, progress: Progress, *, vcpus: int | None = None, memory_mib: int | None = None
    ) -> TemplateView:
        """Make one of that size now; None: as the settings say.  Raises Unavailable, InvalidRequest,
        RuntimeFailed."""
        for keeper in self._keepers():
            return await keeper.warm_template(vcpus, memory_mib, progress)
        raise Unavailable("no isolation of this daemon has templates")
