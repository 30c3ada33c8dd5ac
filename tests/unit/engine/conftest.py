"""A world on the fake backend, and an engine in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.engine.engine import Engine

from .rooms import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    for backend in made.backends.values():
        backend.reboot()
    made.store.close()


@pytest.fixture
async def engine(world: World) -> AsyncIterator[Engine]:
    made = await world.engine()
    yield made
    await made.stop()
