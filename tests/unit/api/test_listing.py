"""`docker ps --filter publish=… expose=…`: by the host's port, and by the instance's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from insula.api.filters import Filters
from insula.api.listing import _matches_view
from insula.engine.types import InstanceView
from insula.model.network import PortBinding


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"publish": ["8080"]}, True),
        ({"publish": ["80"]}, False),
        ({"publish": ["8000-8100/tcp"]}, True),
        ({"publish": ["8080/udp"]}, False),
        ({"expose": ["80"]}, True),
        ({"expose": ["8080"]}, False),
        ({"expose": ["53/udp"]}, True),
        ({"publish": ["1"], "expose": ["80"]}, True),
        ({"publish": ["8080"], "expose": ["1"]}, True),
        ({"publish": ["1"], "expose": ["1"]}, False),
    ],
)
def test_ports(wanted: dict[str, list[str]], expected: bool) -> None:
    view: Any = SimpleNamespace(
        ports=(PortBinding(container_port=80, protocol="tcp", host_port=8080),),
        config=SimpleNamespace(exposed_ports=("53/udp", "80")),
    )
    assert expected == _matches_view(
        cast(InstanceView, view), Filters({name: tuple(values) for name, values in wanted.items()})
    )
