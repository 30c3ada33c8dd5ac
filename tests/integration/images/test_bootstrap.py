"""An image from the distribution's packages, with the real mmdebstrap and the host's own archives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from insula.errors import InvalidRequest
from insula.images.bootstrap import bootstrap
from insula.images.content import ContentStore
from insula.images.layers import Layers
from insula.system import mounts

pytestmark = pytest.mark.integration


async def test_what_the_host_does_not_know_is_refused(tmp_path: Path) -> None:
    content = ContentStore(str(tmp_path))
    for name in ("nosuchdistribution:1", "debian:nosuchrelease"):
        with pytest.raises(InvalidRequest):
            await bootstrap(content, str(tmp_path), name)
    assert sorted(os.listdir(tmp_path)) == ["blobs", "ingest", "partial"]


@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")
@pytest.mark.timeout(400)
async def test_a_debian_image_is_made(tmp_path: Path) -> None:
    content = ContentStore(str(tmp_path))
    layers = Layers(str(tmp_path), content)
    told: list[str] = []

    def progress(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        told.append(status)

    made = await bootstrap(content, f"{tmp_path}/tmp", "debian:12-slim", progress)
    await layers.unpack(blob=made.layer.blob, diff_id=made.layer.diff_id)
    root = Path(layers.path(made.layer.diff_id))
    assert (root / "etc/debian_version").read_text().startswith("12.")
    assert os.access(root / "usr/bin/bash", os.X_OK)
    assert not (root / "etc/resolv.conf").exists()
    assert list((root / "usr/share/man").rglob("*.gz")) == []
    document = json.loads(made.config)
    assert document["config"]["Cmd"] == ["bash"]
    newest = max(os.lstat(p).st_mtime for p in root.rglob("*"))
    assert document["created"][:4] == "20" + document["created"][2:4]
    assert newest <= os.path.getmtime(tmp_path)
    assert any("downloading" in status for status in told)
    assert os.listdir(tmp_path / "tmp") == []
    assert mounts.mount_points(str(tmp_path)) == ()
