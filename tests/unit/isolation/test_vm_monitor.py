"""QEMU's monitor: what its end, or ours, leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient, Runstate

from insula.errors import RuntimeFailed
from insula.isolation.vm.qmp import Monitor


class Qemu:
    """Answers as QEMU's monitor does, as far as it matters here; `hang_up` is its end."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self._say(writer, {"QMP": {"version": version, "capabilities": []}})
        while data := await reader.read(4096):  # one request at a time, without a newline
            asked = json.loads(data)
            status = {"status": "running"} if asked["execute"] == "query-status" else {}
            self._say(writer, {"return": status, "id": asked.get("id")})

    @staticmethod
    def _say(writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
        writer.write(json.dumps(document).encode() + b"\r\n")

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.close()


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[Qemu]:
    served = Qemu()
    async with await asyncio.start_unix_server(served.serve, tmp_path / "qmp.sock"):
        yield served
        served.hang_up()


async def until_it_fails(monitor: Monitor) -> None:
    while True:
        await monitor.status()


async def test_the_end_of_qemu_is_nobody_elses_error(qemu: Qemu, tmp_path: Path) -> None:
    found: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: found.append(said["message"]))
    monitor = Monitor(str(tmp_path / "qmp.sock"), "one")
    assert "running" == await monitor.status()
    qemu.hang_up()
    with pytest.raises(RuntimeFailed):
        await until_it_fails(monitor)
    assert "running" == await monitor.status()  # connected again
    qemu.hang_up()
    client = monitor._client
    assert isinstance(client, QMPClient)
    while client.runstate is Runstate.RUNNING:
        await client.runstate_changed()
    closing = asyncio.create_task(monitor.close())
    await asyncio.sleep(0)
    closing.cancel()  # the daemon ends in this moment
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    del monitor, client, closing
    for _ in range(10):  # turns of the loop in which what is left comes to its end
        await asyncio.sleep(0)
        gc.collect()
    assert [] == found
