"""Pull and load on a disk that is too small: a sentence, nothing left, and it works once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from insula.errors import DiskFull
from insula.events import EventBus
from insula.images.images import Images
from insula.store.store import Store
from integration.images.fake_registry import FakeRegistry, make_tar

pytestmark = pytest.mark.integration

_MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """70 MiB: unpacking leaves 64 of them free."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=70m", "small", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
async def cramped(small_disk: Path, tmp_path: Path) -> AsyncIterator[Images]:
    store = Store(str(tmp_path / "insula.db"))
    images = Images(str(small_disk), store, EventBus(), retry_s=0.01)
    await images.start()
    yield images
    store.close()


def _fill(disk: Path, leave: int) -> Path:
    room = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)
    return filler


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.mark.parametrize("leave", [_MIB, 66 * _MIB], ids=["while downloading", "while unpacking"])
async def test_pull_on_a_full_disk(
    cramped: Images, small_disk: Path, source: FakeRegistry, leave: int
) -> None:
    source.put_image(layers=[{"big": os.urandom(2 * _MIB)}, {"zeros": bytes(3 * _MIB)}])
    filler = _fill(small_disk, leave)
    with pytest.raises(DiskFull):
        await cramped.pull(f"{source.domain}/test/image")
    assert cramped.list() == ()
    assert cramped.content.digests() == ()
    assert cramped.layers.diff_ids() == ()
    assert os.listdir(f"{small_disk}/ingest") == os.listdir(f"{small_disk}/tmp") == []
    filler.unlink()
    source.put_image(tag="small", layers=[{"small": b"1"}])
    image = await cramped.pull(f"{source.domain}/test/image:small")
    assert cramped.layers.has(image.diff_ids[0])


async def test_import_on_a_full_disk(cramped: Images, small_disk: Path) -> None:
    _fill(small_disk, _MIB)
    with pytest.raises(DiskFull):
        await cramped.import_(_one(make_tar({"big": bytes(3 * _MIB)})), ref="x")
    assert cramped.list() == ()
    assert cramped.content.digests() == ()
    assert os.listdir(f"{small_disk}/ingest") == []
