"""A really full file system: a sentence, nothing half-written, and deleting makes room again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import DiskFull
from insula.store.store import Store
from insula.system import mounts

pytestmark = pytest.mark.integration


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = str(tmp_path / "disk")
    os.mkdir(path)
    mounts.mount("tmpfs", path, "tmpfs", options=f"size={getattr(request, 'param', '1m')}")
    yield path
    mounts.umount(path, lazy=True)


def fill(path: str) -> None:
    fd = os.open(f"{path}/ballast", os.O_WRONLY | os.O_CREAT)
    while os.statvfs(path).f_bfree:
        os.write(fd, b"\0" * 4096)
    os.close(fd)


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_what_is_small_is_still_recorded_on_a_full_disk(small_disk: str) -> None:
    store = Store(f"{small_disk}/insula.db")
    fill(small_disk)
    for number in range(1000):  # more than the log holds: it is begun anew
        store.put_plan(f"i{number % 10}", f"{number}" * 500)
    second = Store(f"{small_disk}/insula.db")  # as after a crash
    second.put_plan("i0", "later")
    assert second.get_plan("i0") == "later"
    second.close()
    store.close()


def test_a_full_disk_is_said_and_survived(small_disk: str) -> None:
    store = Store(f"{small_disk}/insula.db")
    with pytest.raises(DiskFull, match="no space left"):  # noqa: PT012
        for number in range(10_000):
            store.put_plan(f"i{number}", "x" * 4000)
    written = number - 1
    assert store.get_plan(f"i{written}") == "x" * 4000
    assert store.get_plan(f"i{number}") is None
    with pytest.raises(DiskFull):
        store.set_meta("k", "v" * 100_000)
    store.close()
    again = Store(f"{small_disk}/insula.db")  # closing has moved the log into the database, or could not
    assert again.get_plan("i0") == "x" * 4000
    again.close()


def test_a_disk_without_room_for_the_database(small_disk: str) -> None:
    fill(small_disk)
    with pytest.raises(DiskFull):
        Store(f"{small_disk}/insula.db")
