"""--cap-add and --cap-drop, as moby's oci/caps tests them."""

from __future__ import annotations

import pytest

from insula.errors import InvalidRequest
from insula.security.capabilities import ALL, DEFAULT, finalize_capabilities, from_mask, normalise


def test_default_is_dockers_fourteen() -> None:
    assert finalize_capabilities() == tuple(sorted(DEFAULT))
    assert len(DEFAULT) == 14


@pytest.mark.parametrize("name", ["net_admin", "NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin"])
def test_names_with_and_without_prefix_are_the_same(name: str) -> None:
    assert normalise([name]) == ("CAP_NET_ADMIN",)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["NET_ADMIN"], [], DEFAULT | {"CAP_NET_ADMIN"}),
        ([], ["CHOWN"], DEFAULT - {"CAP_CHOWN"}),
        (["CHOWN"], ["CHOWN"], DEFAULT),
        ([], ["ALL"], set()),
        (["NET_ADMIN"], ["ALL"], {"CAP_NET_ADMIN"}),
        (["ALL"], [], set(ALL)),
        (["ALL"], ["SYS_ADMIN"], set(ALL) - {"CAP_SYS_ADMIN"}),
    ],
)
def test_adding_and_dropping(add: list[str], drop: list[str], expected: set[str]) -> None:
    assert finalize_capabilities(add, drop) == tuple(sorted(expected))


def test_privileged_has_everything_whatever_is_dropped() -> None:
    assert finalize_capabilities(drop=["ALL"], privileged=True) == tuple(sorted(ALL))


def test_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match='invalid CapAdd: unknown capability: "CAP_FLY"'):
        finalize_capabilities(["FLY"])


def test_mask_of_proc_status() -> None:
    assert from_mask(0xA80425FB) == DEFAULT
    assert "CAP_SYS_RESOURCE" not in from_mask(0x1FFFEFFFFFF)
