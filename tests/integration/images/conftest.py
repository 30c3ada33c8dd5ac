"""Fixtures for the images room: a room in a temporary directory, a registry that can lie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.events import EventBus
from insula.images.images import Images
from insula.store.store import Store
from integration.images.fake_registry import FakeRegistry, start_fake_registry


@pytest.fixture
async def source() -> AsyncIterator[FakeRegistry]:
    async with start_fake_registry() as registry:
        yield registry


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    store = Store(str(tmp_path / "insula.db"))
    room = Images(str(tmp_path / "images"), store, EventBus(), retry_s=0.01, stall_s=1)
    await room.start()
    yield room
    store.close()
