"""Health checks of instances that run: one task each, which sleeps, probes and records.  Async.

A probe is an exec like any other, so it works the same in both isolations and holds nothing up.  While an
instance is paused or does not run, nobody probes; a daemon that comes back goes on from what is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

from insula.engine.execs import Execs
from insula.engine.health import (
    after_probe,
    cut_output,
    pause_ns,
    probe_args,
    timed_out,
    timeout_ns,
    without_probes,
)
from insula.engine.instances import Entry, Instances
from insula.errors import InsulaError
from insula.model.health import Health, HealthCheck, ProbeResult
from insula.model.instance import State

log = logging.getLogger(__name__)

_CLOSE_S = 2.0


class Probing:
    def __init__(self, instances: Instances, execs: Execs) -> None:
        self._instances = instances
        self._execs = execs

    def watch(self, entry: Entry) -> None:
        """Probe it from now on, if it is to be probed and runs."""
        check = entry.config.health
        args = probe_args(check, entry.config.shell)
        if (
            check is None
            or not args
            or entry.record.health is None
            or entry.record.state is not State.RUNNING
        ):
            return
        self.cancel(entry)
        entry.prober = asyncio.create_task(self._watch(entry, check, args), name=f"health of {entry.id}")

    def cancel(self, entry: Entry) -> None:
        """No more probes; one that runs is killed."""
        if entry.prober is not None:
            entry.prober.cancel()
            entry.prober = None

    @contextlib.contextmanager
    def held(self, entry: Entry) -> Iterator[None]:
        """Nobody probes from here on: what begins in a half frozen machine fails.  They go on if the block
        fails."""
        self.cancel(entry)
        try:
            yield
        except BaseException:
            self.watch(entry)
            raise

    def stop(self, entry: Entry) -> Health | None:
        """As `cancel`; returns what is to be recorded of its health."""
        self.cancel(entry)
        return without_probes(entry.record.health)

    async def close(self) -> None:
        """The daemon ends.  A guest that does not answer does not keep it."""
        probers = list(self._probers())
        for prober in probers:
            prober.cancel()
        if probers:
            await asyncio.wait(probers, timeout=_CLOSE_S)

    def _probers(self) -> Iterator[asyncio.Task[None]]:
        return (entry.prober for entry in self._instances.all() if entry.prober is not None)

    async def _watch(self, entry: Entry, check: HealthCheck, args: tuple[str, ...]) -> None:
        while (health := entry.record.health) is not None:
            age_ns = time.time_ns() - entry.record.started_ns
            await asyncio.sleep(pause_ns(check, health.status, age_ns=age_ns) / 1e9)
            result = await self._probe(entry, check, args)
            try:
                self._record(entry, check, result)
            except InsulaError as error:  # a full disk: what is not recorded is asked again
                log.error("instance %s: its health cannot be recorded: %s", entry.id, error)

    async def _probe(self, entry: Entry, check: HealthCheck, args: tuple[str, ...]) -> ProbeResult:
        start_ns = time.time_ns()
        try:
            code, output = await self._execs.probe(entry, args, timeout_s=timeout_ns(check) / 1e9)
            text = timed_out(check, output) if code is None else cut_output(output)
        except (InsulaError, OSError) as error:  # also a failure of ours: the next one may go better
            code, text = None, error.message if isinstance(error, InsulaError) else str(error)
        return ProbeResult(
            start_ns=start_ns, end_ns=time.time_ns(), exit_code=-1 if code is None else code, output=text
        )

    def _record(self, entry: Entry, check: HealthCheck, result: ProbeResult) -> None:
        before = entry.record.health
        if before is None or entry.record.state is not State.RUNNING:
            return  # it has just ended
        after = after_probe(before, check, result, started_ns=entry.record.started_ns)
        self._instances.put(entry, health=after)
        if after.status is not before.status:
            self._instances.event(entry, f"health_status: {after.status}")
