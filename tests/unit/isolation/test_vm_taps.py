"""The tap of a VM that was made ahead goes to wherever the one beside it is."""

from __future__ import annotations

import os

import pytest

from insula.errors import Failure
from insula.isolation.vm.taps import plug_in_beside
from insula.system import links, namespaces
from insula.system.tap import make_tap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_it_follows_to_a_bridge_that_was_made_anew() -> None:
    home = namespaces.open_netns()
    namespaces.unshare_net()
    try:
        for name in ("made", "spare"):
            make_tap(name)
        with pytest.raises(Failure, match="made is on no bridge"):
            plug_in_beside("spare", "made")
        with links.open_route() as route:
            for _ in range(2):
                route.send(links.bridge_message("bridge0", "02:00:00:00:00:01"))
                bridge = links.find_link(route, "bridge0")
                assert bridge is not None
                route.send(*links.port_messages("made", bridge.index, isolated=True))
                for _ in range(2):
                    plug_in_beside("spare", "made")
                    spare = links.find_link(route, "spare")
                    assert spare is not None
                    assert (spare.master, spare.isolated, spare.up) == (bridge.index, True, True)
                links.delete_link(route, "bridge0")
    finally:
        namespaces.enter(home)
        os.close(home)
