"""kill -9 while images come and go: the catalog is whole, and nothing else is left after a start."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest

from insula.events import EventBus
from insula.images.images import Images
from insula.store.store import Store
from integration.images.fake_registry import FakeRegistry

pytestmark = pytest.mark.integration

_CHILD = """
import asyncio, sys
from insula.events import EventBus
from insula.images.images import Images
from insula.store.store import Store

def say(status, *, id="", current=0, total=0):
    print(status, flush=True)

async def main(root, name):
    images = Images(f"{root}/images", Store(f"{root}/insula.db"), EventBus())
    await images.start()
    while True:
        await asyncio.gather(*(images.pull(f"{name}:{tag}", progress=say) for tag in "ab"))
        say("both here")
        await images.remove(f"{name}:a", in_use=lambda _: None)
        say("one gone")
        await images.remove(f"{name}:b", in_use=lambda _: None)
        say("none here")

asyncio.run(main(*sys.argv[1:]))
"""


async def _kill_after(root: Path, name: str, lines: int) -> None:
    """Run the child until it has said so many lines, then kill it at once."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, str(root), name, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    for _ in range(lines):
        assert await child.stdout.readline(), "the child ended by itself"
    child.kill()
    await child.communicate()


def _check(images: Images) -> None:
    needed: set[str] = set()
    for image in images.list():
        blobs = {image.id, image.manifest, *(layer.digest for layer in image.layers)}
        needed |= blobs
        for blob in blobs:
            data = Path(images.content.path(blob)).read_bytes()
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob
        for diff_id in image.diff_ids:
            assert images.layers.size(diff_id) >= 0
            assert os.listdir(images.layers.path(diff_id))
    assert set(images.content.digests()) == needed
    assert set(images.layers.diff_ids()) == {d for image in images.list() for d in image.diff_ids}
    assert os.listdir(f"{images.content.root}/ingest") == []
    assert os.listdir(f"{images.content.root}/tmp") == []


@pytest.mark.parametrize("lines", [2, 9, 18, 22, 29])
async def test_killed_at_some_point(tmp_path: Path, source: FakeRegistry, lines: int) -> None:
    common = {"common": os.urandom(300_000)}
    for tag in "ab":
        source.put_image(tag=tag, layers=[common, {tag: os.urandom(200_000)}])
    name = f"{source.domain}/test/image"
    await _kill_after(tmp_path, name, lines)
    store = Store(str(tmp_path / "insula.db"))
    images = Images(str(tmp_path / "images"), store, EventBus())
    await images.start()
    _check(images)
    for tag in "ab":
        await images.pull(f"{name}:{tag}")
    _check(images)
    assert len(images.list()) == 2
    store.close()
