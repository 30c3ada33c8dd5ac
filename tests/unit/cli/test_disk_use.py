"""`system df` sums up as docker does."""

from __future__ import annotations

from typing import Any

from insula.cli.disk_use import make_summary


def summary(**found: Any) -> dict[str, tuple[Any, ...]]:
    rows = make_summary(found)
    return {row["Type"]: (row["TotalCount"], row["Active"], row["Size"], row["Reclaimable"]) for row in rows}


def test_nothing_takes_nothing() -> None:
    none = (0, 0, "0B", "0B")
    expected = dict.fromkeys(("Images", "Containers", "Local Volumes", "Build Cache"), none)
    assert expected == summary(Images=None, Containers=None, Volumes=None, BuildCache=None, LayersSize=0)


def test_what_images_share_is_freed_with_the_last_of_them() -> None:
    images = [
        {"Containers": 1, "Size": 800, "SharedSize": 300},
        {"Containers": 0, "Size": 500, "SharedSize": 300},
    ]
    assert summary(Images=images, LayersSize=1000)["Images"] == (2, 1, "1kB", "500B (50%)")


def test_instances_count_while_they_run() -> None:
    containers = [
        {"State": "running", "SizeRw": 300},
        {"State": "paused", "SizeRw": 0},
        {"State": "exited", "SizeRw": 100, "SizeRootFs": 9999},
        {"State": "created"},
    ]
    assert summary(Containers=containers)["Containers"] == (4, 2, "400B", "100B (25%)")


def test_a_volume_whose_size_nobody_knows_has_none() -> None:
    volumes = [
        {"UsageData": {"RefCount": 1, "Size": 600}},
        {"UsageData": {"RefCount": 0, "Size": 200}},
        {"UsageData": {"RefCount": 0, "Size": -1}},
    ]
    assert summary(Volumes=volumes)["Local Volumes"] == (3, 1, "800B", "200B (25%)")


def test_caches_have_no_share() -> None:
    caches = [{"InUse": False, "Size": 70}, {"InUse": True, "Size": 30}]
    assert summary(BuildCache=caches)["Build Cache"] == (2, 1, "100B", "70B")
