"""Steps that copy files: what is known of a directory is not read again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from insula.build.copying import CopyOrder, Item
from insula.build.files import FileSteps

ORDER = CopyOrder(
    word="COPY",
    target="/x/",
    target_layers=("image",),
    roots=(("/context", "/empty"),),
    items=(Item(root=0, pattern="a*"),),
    created_ns=1,
)


class Counted:
    def __init__(self) -> None:
        self.count = 0

    async def digest(self, order: CopyOrder) -> str:
        self.count += 1
        return f"file:{self.count}"


async def find_root(name: str) -> Any:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("other", "count"),
    [
        ({}, 1),
        ({"target_layers": ("other",), "created_ns": 2, "newest_ns": 3}, 1),
        ({"items": (Item(root=0, pattern="b"),)}, 2),
        ({"mode": "0755"}, 2),
        ({"exclude": ("x",)}, 2),
        ({"chown": "somebody"}, 2),
        ({"items": (Item(root=0, pattern="a*", unpack=True),)}, 2),
        ({"roots": (("/context", "/empty"), ("/made",))}, 2),
        ({"roots": (("/else", "/empty"),)}, 2),
    ],
)
async def test_a_digest_is_known_for_the_same_of_the_same(other: dict[str, Any], count: int) -> None:
    copying: Any = Counted()
    steps = FileSteps(copying, "/state", ("/context", "/empty"), find_root, digests={"/context": {}})
    first = await steps.digest(ORDER)
    second = await steps.digest(replace(ORDER, **other))
    assert (count, count == 1) == (copying.count, first == second)


async def test_without_a_place_for_it_nothing_is_known() -> None:
    copying: Any = Counted()
    steps = FileSteps(copying, "/state", ("/context", "/empty"), find_root)
    assert await steps.digest(ORDER) != await steps.digest(ORDER)
