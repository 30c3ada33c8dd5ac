"""Which events a filter lets through: moby's rules (daemon/events/filter.go)."""

from __future__ import annotations

import json

import pytest

from insula.api.filters import parse_filters
from insula.api.translate_system import EVENT_FILTERS, event_matches, render_event
from insula.errors import InvalidRequest
from insula.events import Event

_ID = "ab" * 32
_DIED = Event(
    kind="container", action="die", actor_id=_ID, time_ns=1_500_000_000,
    attributes={"name": "web", "image": "nginx:1", "tier": "front", "exitCode": "0"},
)  # fmt: skip
_HEALTH = Event(kind="container", action="health_status: healthy", actor_id=_ID, attributes={"name": "web"})
_EXEC = Event(kind="container", action="exec_start: ls -l", actor_id=_ID, attributes={"name": "web"})
_TAGGED = Event(kind="image", action="tag", actor_id="sha256:1", attributes={"name": "nginx:1"})
_VOLUME = Event(kind="volume", action="create", actor_id="data", attributes={"driver": "local"})
_JOINED = Event(
    kind="network", action="connect", actor_id="cd" * 32, attributes={"name": "lan", "container": _ID}
)
_ALL = (_DIED, _HEALTH, _EXEC, _TAGGED, _VOLUME, _JOINED)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, _ALL),
        ({"type": ["image", "volume"]}, (_TAGGED, _VOLUME)),
        ({"event": ["die"]}, (_DIED,)),
        ({"event": ["health_status"]}, (_HEALTH,)),
        ({"event": ["health_status: healthy"]}, (_HEALTH,)),
        ({"event": ["exec_start"]}, (_EXEC,)),
        ({"container": ["web"]}, (_DIED, _HEALTH, _EXEC)),
        ({"container": [_ID[:12]]}, (_DIED, _HEALTH, _EXEC)),
        ({"container": ["other"]}, ()),
        ({"container": [""]}, (_DIED, _HEALTH, _EXEC)),
        ({"image": ["nginx"]}, (_DIED, _TAGGED)),
        ({"image": ["nginx:1"]}, (_DIED, _TAGGED)),
        ({"image": ["nginx:2"]}, ()),
        ({"label": ["tier"]}, (_DIED,)),
        ({"label": ["tier=front"]}, (_DIED,)),
        ({"label": ["tier=back"]}, ()),
        ({"volume": ["data"]}, (_VOLUME,)),
        ({"network": ["lan"]}, (_JOINED,)),
        ({"scope": ["local"]}, _ALL),
        ({"scope": ["swarm"]}, ()),
        ({"daemon": ["x"]}, ()),
        ({"type": ["container"], "event": ["die", "tag"], "container": ["web"]}, (_DIED,)),
    ],
)
def test_what_a_filter_lets_through(filters: dict[str, list[str]], kept: tuple[Event, ...]) -> None:
    for given in (filters, {name: dict.fromkeys(values, True) for name, values in filters.items()}):
        parsed = parse_filters(json.dumps(given)).accept(*EVENT_FILTERS)
        assert kept == tuple(event for event in _ALL if event_matches(event, parsed))


def test_a_filter_that_there_is_none_of() -> None:
    with pytest.raises(InvalidRequest, match="invalid filter 'colour'"):
        parse_filters('{"colour": ["red"]}').accept(*EVENT_FILTERS)


def test_what_clients_of_the_oldest_versions_read_is_there() -> None:
    document = render_event(_DIED)
    assert ("die", _ID, "nginx:1") == tuple(document[name] for name in ("status", "id", "from"))
    assert (1, 1_500_000_000, "local") == tuple(document[name] for name in ("time", "timeNano", "scope"))
    assert "from" not in render_event(_VOLUME)
