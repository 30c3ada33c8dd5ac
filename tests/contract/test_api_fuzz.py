"""Requests that schemathesis makes of the swagger: no answer is a failure of ours, and each comes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from api_wire import act, create
from fake_house import start_house
from rig import ENVIRONMENT

_TESTS = Path(__file__).parents[1]
_EXAMPLES = 2  # of each page; `python -m contract.fuzz` goes deeper


@pytest.mark.timeout(180)
async def test_no_request_is_a_failure_of_ours(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        ident = await create(house, "sleep", "100000")
        await act(house, f"/containers/{ident}/start")
        known = {"/containers/": ident, "/images/": "busybox", "/networks/": "bridge", "/volumes/": "none"}
        # a process of its own: pytest would rewrite schemathesis' modules as they are imported, which CPython
        # 3.11's parser does not survive when a finalizer runs meanwhile
        fuzz = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "contract.fuzz", house.socket, str(_EXAMPLES)),
            *("--known", json.dumps(known)),
            cwd=_TESTS,
            env={**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{_TESTS}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await fuzz.communicate()
        assert (0, "") == (fuzz.returncode, said.decode())
