"""Restart policies: whether, and after how long.  Pure; the rules are moby's restartmanager."""

from __future__ import annotations

from dataclasses import dataclass

from insula.model.instance import Instance, RestartPolicy

_FIRST_MS = 100
_LONGEST_MS = 60_000
_STABLE_NS = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Decision:
    """`backoff_ms` is both how long to wait now and what to double next time."""

    restart: bool
    backoff_ms: int = 0


def decide_restart(
    policy: RestartPolicy, *, exit_code: int, stopped: bool, ran_ns: int, backoff_ms: int, restarts: int
) -> Decision:
    """After an exit.  `stopped`: by a user, who then does not want it back.

    The wait begins at 100 ms and doubles up to a minute; a run of ten seconds starts it afresh.
    """
    if stopped:
        return Decision(False)
    match policy.name:
        case "always" | "unless-stopped":
            restart = True
        case "on-failure":
            most = policy.maximum_retry_count
            restart = exit_code != 0 and (most == 0 or restarts < most)
        case _:
            restart = False
    if not restart:
        return Decision(False)
    if backoff_ms == 0 or ran_ns >= _STABLE_NS:
        return Decision(True, _FIRST_MS)
    return Decision(True, min(backoff_ms * 2, _LONGEST_MS))


def wanted_at_start(record: Instance) -> bool:
    """When the daemon starts: is this one, which has run and ended before, to run again?"""
    if record.started_ns == 0:
        return False
    policy = record.spec.restart
    match policy.name:
        case "always":
            return True
        case "unless-stopped":
            return not record.stopped_by_user
        case "on-failure":
            most = policy.maximum_retry_count
            few = most == 0 or record.restart_count < most
            return record.exit_code != 0 and not record.stopped_by_user and few
        case _:
            return False
