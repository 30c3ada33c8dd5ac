"""Requests that schemathesis makes of the swagger: no answer is a failure of ours, and each comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api_wire import act, create
from contract.fuzz import fuzz
from fake_house import start_house

_EXAMPLES = 2  # of each page; `python -m contract.fuzz` goes deeper


@pytest.mark.timeout(180)
async def test_no_request_is_a_failure_of_ours(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        ident = await create(house, "sleep", "100000")
        await act(house, f"/containers/{ident}/start")
        known = {"/containers/": ident, "/images/": "busybox", "/networks/": "bridge", "/volumes/": "none"}
        assert [] == await asyncio.to_thread(list, fuzz(house.socket, known, _EXAMPLES))
