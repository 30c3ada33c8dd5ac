"""The benches, and `make`, which gives a plan and takes everything back after the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from contract.benches import Bench, FakeBench, ProcessBench, VmBench, make_plan, make_tree
from insula.isolation.plan import LaunchPlan
from insula.model.root import IMAGE_DISK_BYTES

BENCHES = [
    "fake",
    pytest.param("process", marks=pytest.mark.integration),
    pytest.param("vm", marks=[pytest.mark.integration, pytest.mark.vm]),
]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tree(str(tmp_path_factory.mktemp("tree") / "root"))


@pytest.fixture(scope="session")
def image_disk(tree: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("disk") / "image.erofs")
    subprocess.run(["mkfs.erofs", "-zlz4", path, tree], check=True, capture_output=True)
    os.truncate(path, IMAGE_DISK_BYTES)
    return path


@pytest.fixture(params=BENCHES)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    kind = request.param
    made: Bench
    if kind == "fake":
        made = FakeBench()
    else:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        (tmp_path / "data").mkdir()
        (tmp_path / "run").mkdir()
        if kind == "process":
            made = ProcessBench(str(tmp_path), request.getfixturevalue("tree"))
        else:
            for name in ("guest", "templates"):
                (tmp_path / "data" / name).symlink_to(request.getfixturevalue("guest_cache").parent / name)
            made = VmBench(str(tmp_path), request.getfixturevalue("image_disk"))
    await made.backend.start()
    assert made.backend.info().problem == ""
    yield made
    await made.backend.stop()


@pytest.fixture
async def make(bench: Bench, tmp_path: Path) -> AsyncIterator[Callable[..., LaunchPlan]]:
    plans: list[LaunchPlan] = []

    def one(*args: str, **fields: object) -> LaunchPlan:
        plan = make_plan(bench, str(tmp_path), *args, **fields)
        plans.append(plan)
        return plan

    yield one
    for plan in plans:
        await bench.backend.discard(plan)
        bench.clean(plan)
