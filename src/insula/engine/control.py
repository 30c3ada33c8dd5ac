"""What a user does to an instance that exists: stop, kill, restart, pause, rename, update.  Async.

A signal is sent while the instance is held; waiting for its effect is not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal as signals
from typing import TYPE_CHECKING

from insula.engine.checks import check_limits, check_restart
from insula.engine.instances import Entry, Instances
from insula.engine.legality import Action, check
from insula.engine.lifecycle import Lifecycle
from insula.engine.merge import DEFAULT_STOP_SIGNAL
from insula.engine.operations import exclusive
from insula.engine.probing import Probing
from insula.engine.signals import parse_signal
from insula.errors import Conflict, Failure, InvalidRequest, NoSuchInstance, NotModified
from insula.model.ids import check_name
from insula.model.instance import RestartPolicy, State
from insula.model.limits import Limits

if TYPE_CHECKING:
    from insula.engine.kit import Kit

_GRACE_S = 10
_KILL_PATIENCE_S = 30


class Control:
    def __init__(self, kit: Kit, instances: Instances, lifecycle: Lifecycle, probing: Probing) -> None:
        self._kit = kit
        self._probing = probing
        self._instances = instances
        self._lifecycle = lifecycle

    async def stop(self, entry: Entry, ref: str, *, timeout_s: int | None, signal: str | None) -> None:
        """Returns when it has ended.  `timeout_s` None: its own or 10; negative: however long it takes."""
        check(Action.STOP, entry.record, ref)
        chosen = signal or entry.config.stop_signal or DEFAULT_STOP_SIGNAL
        number = parse_signal(chosen)
        if timeout_s is None:
            timeout_s = entry.record.spec.stop_timeout_s
        grace_s = _GRACE_S if timeout_s is None else timeout_s
        run = entry.run
        try:
            await self._send(entry, ref, number, Action.STOP, final=True)
        except NotModified:
            return  # it ended by itself a moment ago
        if run is None or entry.record.state is State.EXITED:
            self._instances.event(entry, "stop")
            return
        try:
            async with asyncio.timeout(None if grace_s < 0 else grace_s):
                await run.over.wait()
        except TimeoutError:
            await self.end(entry)
        self._instances.event(entry, "stop")

    async def kill(self, entry: Entry, ref: str, signal: str) -> None:
        """SIGKILL waits for the end; any other signal is only sent."""
        number = parse_signal(signal or "KILL")
        check(Action.KILL, entry.record, ref)
        stop = parse_signal(entry.config.stop_signal or DEFAULT_STOP_SIGNAL)
        # moby takes any signal so when there is no stop signal; a HUP is no wish to end
        final = number in (signals.SIGKILL, stop)
        run = entry.run
        await self._send(entry, ref, number, Action.KILL, final=final)
        if number == signals.SIGKILL and run is not None:
            await self._over(entry, run.over)

    async def end(self, entry: Entry) -> None:
        """SIGKILL whatever runs and wait until that is over; nothing to do if nothing does."""
        run = entry.run
        try:
            await self._send(entry, entry.id, signals.SIGKILL, Action.STOP, final=True)
        except (NotModified, NoSuchInstance):
            return
        except Conflict:
            return  # being removed
        if run is not None:
            await self._over(entry, run.over)

    async def restart(self, entry: Entry, ref: str, *, timeout_s: int | None, signal: str | None) -> None:
        """Stop it if it runs, without its auto-removal, then start it.

        Who looks meanwhile sees that it restarts, not that it has ended: `docker compose up` would end too.
        """
        entry.keep_on_exit = entry.restarting = True
        try:
            try:
                await self.stop(entry, ref, timeout_s=timeout_s, signal=signal)
            except NotModified:
                pass  # it does not run: a restart is a start then
            entry.keep_on_exit = False
            try:
                await self._lifecycle.start(entry, ref)
            except NotModified:
                pass  # somebody else has started it meanwhile
        finally:
            entry.keep_on_exit = entry.restarting = False
        self._instances.event(entry, "restart")

    async def pause(self, entry: Entry, ref: str) -> None:
        async with exclusive(entry, "pause"):
            check(Action.PAUSE, entry.record, ref)
            with self._probing.held(entry):
                await self._kit.backend(entry.record.spec.isolation).freeze(entry.id, True)
            self._instances.put(entry, state=State.PAUSED, health=self._probing.stop(entry))
            self._instances.event(entry, "pause")

    async def unpause(self, entry: Entry, ref: str) -> None:
        async with exclusive(entry, "unpause"):
            check(Action.UNPAUSE, entry.record, ref)
            await self._thaw(entry)

    async def rename(self, entry: Entry, ref: str, new: str) -> None:
        if not new:
            raise InvalidRequest("Neither old nor new names may be empty")
        name = check_name(new)
        async with exclusive(entry, "rename"):
            check(Action.RENAME, entry.record, ref)
            old = entry.record.name
            if name == old:
                raise InvalidRequest("Renaming a container with the same name as its current name")
            self._instances.reserve(name, entry.id)
            try:
                self._instances.put(entry, name=name)
            except BaseException:
                self._instances.release(name, entry.id)
                raise
            self._instances.release(old, entry.id)
            self._kit.networks.rename(entry.id, old, name)
            self._instances.event(entry, "rename", oldName=f"/{old}")

    async def update(
        self, entry: Entry, ref: str, *, limits: Limits | None, restart: RestartPolicy | None
    ) -> tuple[str, ...]:
        async with exclusive(entry, "update"):
            check(Action.UPDATE, entry.record, ref)
            warnings: tuple[str, ...] = ()
            spec = entry.record.spec
            if limits is not None:
                check_limits(limits)
                spec = dataclasses.replace(spec, limits=limits)
            if restart is not None:
                check_restart(restart)
                if spec.auto_remove and restart.name not in ("", "no"):
                    raise InvalidRequest(  # moby's words
                        "Restart policy cannot be updated because AutoRemove is enabled for the container"
                    )
                spec = dataclasses.replace(spec, restart=restart)
            backend = self._kit.backend(spec.isolation)
            if limits is not None and entry.plan is not None:
                plan = dataclasses.replace(entry.plan, limits=limits)
                known = backend.check(entry.plan)
                warnings = tuple(one for one in backend.check(plan) if one not in known)
                if entry.alive:
                    warnings += await backend.update(entry.id, limits)
                self._instances.put_plan(entry, plan)
            self._instances.put(entry, spec=spec)
            self._instances.event(entry, "update")
        return warnings

    async def _send(self, entry: Entry, ref: str, number: int, action: Action, *, final: bool) -> None:
        """`final`: the user wants it to end, so no policy shall bring it back."""
        async with exclusive(entry, "kill"):
            check(action, entry.record, ref)
            if entry.record.state is State.RESTARTING:
                self._lifecycle.cancel_restart(entry)
                self._instances.put(entry, state=State.EXITED, stopped_by_user=True)
                self._instances.wake(entry)
                self._kit.growth.poke(self._kit.log_path(entry.id))
                return
            if not entry.alive:
                return
            if final:
                entry.no_restart = True
                self._instances.put(entry, stopped_by_user=True)
            backend = self._kit.backend(entry.record.spec.isolation)
            try:
                await backend.signal(entry.id, number)
            except NoSuchInstance:
                return  # it has just ended; its watcher is about to say so
            if final and entry.record.state is State.PAUSED:
                await self._thaw(entry)  # a frozen process takes no signal
            self._instances.event(entry, "kill", signal=str(number))

    async def _thaw(self, entry: Entry) -> None:
        await self._kit.backend(entry.record.spec.isolation).freeze(entry.id, False)
        self._instances.put(entry, state=State.RUNNING)
        self._probing.watch(entry)
        self._instances.event(entry, "unpause")

    async def _over(self, entry: Entry, over: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(_KILL_PATIENCE_S):
                await over.wait()
        except TimeoutError:
            raise Failure(
                f"tried to kill container {entry.id}, but it has not ended within {_KILL_PATIENCE_S} s"
            ) from None
