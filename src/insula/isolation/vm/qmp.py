"""QEMU's monitor: the few commands we use, through the qemu.qmp package.  Async.

Connected when first needed and kept.  Never qemu.qmp.legacy (GPL-2 only).
"""

from __future__ import annotations

import asyncio
import logging

from insula.errors import RuntimeFailed
from insula.isolation.vm import sockets

_TIMEOUT_S = 20.0
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs every ended VM as an error


class Monitor:
    """One VM's monitor.  Its methods raise RuntimeFailed when QEMU does not answer."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self._lock = asyncio.Lock()
        self._client: object | None = None

    async def _execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        from qemu.qmp import QMPClient, QMPError  # 40 ms to import: not at the daemon's start

        async with self._lock:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    client = self._client
                    if not isinstance(client, QMPClient):
                        client = QMPClient(self._name)
                        await client.connect(sockets.connect(self._path))
                        self._client = client
                    return await client.execute(command, arguments)
            except (QMPError, OSError, TimeoutError) as error:
                await self._drop()
                raise RuntimeFailed(
                    f"QEMU did not carry out {command} for {self._name}: {error or 'no answer in time'}"
                ) from error

    async def _drop(self) -> None:
        from qemu.qmp import QMPClient

        client, self._client = self._client, None
        if isinstance(client, QMPClient):
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await client.disconnect()
            except Exception as error:  # its session errors come out here; the session is over either way
                logging.getLogger(__name__).debug("closing the monitor of %s: %s", self._name, error)

    async def close(self) -> None:
        if self._client is not None:
            async with self._lock:
                await self._drop()

    async def pause(self) -> None:
        await self._execute("stop")

    async def resume(self) -> None:
        await self._execute("cont")

    async def status(self) -> str:
        """`running`, `paused`, `guest-panicked`, … (QEMU's RunState)."""
        answer = await self._execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""
