"""Which action is legal in which state: the one table.  Pure.

The wording and the status of each refusal are moby's, because clients look at them.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator
from typing import Protocol

from insula.errors import Conflict, InsulaError, NoSuchInstance, NotModified
from insula.model.instance import Instance, State


class Action(enum.StrEnum):
    START = "start"
    STOP = "stop"
    KILL = "kill"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    REMOVE = "remove"
    FORCE_REMOVE = "force-remove"
    RENAME = "rename"
    UPDATE = "update"
    ATTACH = "attach"
    RESIZE = "resize"
    EXEC = "exec"
    TOP = "top"
    FILES = "files"
    COPY = "copy"
    CONNECT = "connect"


Refusal = Callable[[Instance, str], InsulaError]


def _modified(instance: Instance, ref: str) -> InsulaError:
    return NotModified(f"container {ref} is already {instance.state}")


def _conflict(pattern: str) -> Refusal:
    def refuse(instance: Instance, ref: str) -> InsulaError:
        return Conflict(pattern.format(id=instance.id, name=instance.name, ref=ref, state=instance.state))

    return refuse


_NOT_RUNNING = _conflict("container {id} is not running")
_RESTARTING = _conflict("container {id} is restarting, wait until the container is running")
_CANNOT_KILL = _conflict("Cannot kill container: {ref}: Container {id} is not running")
_MARKED = _conflict("container {id} is marked for removal")
_NOT_PAUSED = _conflict("Container {id} is not paused")  # dockerd: 500
_IN_PROGRESS = _conflict("removal of container {ref} is already in progress")
_MUST_STOP = _conflict(
    'You cannot remove a {state} container {id} ("/{name}"): container is {state}: '
    "stop the container before removing or force remove"  # dockerd's words, of 20.10 and of now
)
_MUST_UNPAUSE = _conflict('cannot remove container "/{name}": container is paused and must be unpaused first')

_C, _R, _P, _RS, _RM, _E, _D = (
    State.CREATED,
    State.RUNNING,
    State.PAUSED,
    State.RESTARTING,
    State.REMOVING,
    State.EXITED,
    State.DEAD,
)

# A state that is absent from an action's row allows it.
REFUSALS: dict[Action, dict[State, Refusal]] = {
    Action.START: {
        _R: _modified,
        _RS: _modified,
        _P: _conflict("cannot start a paused container, try unpause instead"),
        _RM: _conflict("container is marked for removal and cannot be started"),
        _D: _conflict("container is marked for removal and cannot be started"),
    },
    Action.STOP: {_C: _modified, _E: _modified, _D: _modified, _RM: _MARKED},
    Action.KILL: {_C: _CANNOT_KILL, _E: _CANNOT_KILL, _D: _CANNOT_KILL, _RM: _CANNOT_KILL},
    Action.PAUSE: {
        _C: _NOT_RUNNING,
        _E: _NOT_RUNNING,
        _D: _NOT_RUNNING,
        _RM: _NOT_RUNNING,
        _P: _conflict("Container {id} is already paused"),
        _RS: _RESTARTING,
    },
    Action.UNPAUSE: {
        _C: _NOT_PAUSED,
        _E: _NOT_PAUSED,
        _D: _NOT_PAUSED,
        _RM: _NOT_PAUSED,
        _R: _NOT_PAUSED,
        _RS: _NOT_PAUSED,
    },
    Action.REMOVE: {_R: _MUST_STOP, _RS: _MUST_STOP, _P: _MUST_UNPAUSE, _RM: _IN_PROGRESS},
    Action.FORCE_REMOVE: {_RM: _IN_PROGRESS},
    Action.RENAME: {_RM: _MARKED, _D: _MARKED},
    Action.UPDATE: {_RM: _MARKED, _D: _MARKED},
    Action.ATTACH: {
        _P: _conflict("container {ref} is paused, unpause the container before attach"),
        _RS: _conflict("container {ref} is restarting, wait until the container is running"),
        _RM: _MARKED,
        _D: _MARKED,
    },
    Action.RESIZE: {
        _C: _NOT_RUNNING,
        _E: _NOT_RUNNING,
        _D: _NOT_RUNNING,
        _RM: _NOT_RUNNING,
        _RS: _RESTARTING,
    },
    Action.EXEC: {
        _C: _NOT_RUNNING,
        _E: _NOT_RUNNING,
        _D: _NOT_RUNNING,
        _RM: _NOT_RUNNING,
        _P: _conflict("Container {ref} is paused, unpause the container before exec"),
        _RS: _RESTARTING,
    },
    Action.TOP: {_C: _NOT_RUNNING, _E: _NOT_RUNNING, _D: _NOT_RUNNING, _RM: _NOT_RUNNING, _RS: _RESTARTING},
    Action.FILES: {_RM: _MARKED, _D: _MARKED},
    Action.COPY: {
        _C: _NOT_RUNNING,
        _E: _NOT_RUNNING,
        _D: _NOT_RUNNING,
        _RM: _NOT_RUNNING,
        _P: _conflict("container {ref} is paused, unpause the container before you copy it"),
        _RS: _RESTARTING,
    },
    Action.CONNECT: {_RM: _MARKED, _D: _MARKED},
}


def check(action: Action, instance: Instance, ref: str) -> None:
    """Raise what moby would.  `ref` is how the user named the instance.  Raises Conflict, NotModified."""
    refuse = REFUSALS[action].get(instance.state)
    if refuse is not None:
        raise refuse(instance, ref)


class HasRecord(Protocol):
    @property
    def record(self) -> Instance: ...


@contextlib.contextmanager
def still_running(holder: HasRecord) -> Iterator[None]:
    """The backend may know of an end before the engine has recorded it: then it is not running, which is
    another answer than that it does not exist."""
    try:
        yield
    except NoSuchInstance:
        raise _NOT_RUNNING(holder.record, holder.record.id) from None
