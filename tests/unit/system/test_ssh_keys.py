"""Host keys: which a root has, and new ones."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from insula.system.ssh_keys import find_host_keys, make_archive


def put(layer: Path, kind: str) -> None:
    (layer / "etc/ssh").mkdir(parents=True, exist_ok=True)
    (layer / f"etc/ssh/ssh_host_{kind}_key").write_text("baked")


def test_the_topmost_layer_that_says_something_decides(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    put(lower, "rsa")
    put(lower, "ed25519")
    put(upper, "ecdsa")
    assert ("rsa", "ecdsa", "ed25519") == find_host_keys((str(upper), str(lower)))
    os.symlink("/nowhere", upper / "etc/ssh/ssh_host_rsa_key")  # as a whiteout: something that is no file
    assert ("ecdsa", "ed25519") == find_host_keys((str(upper), str(lower)))


def test_no_link_of_a_layer_is_followed(tmp_path: Path) -> None:
    real, layer = tmp_path / "real", tmp_path / "layer"
    put(real, "rsa")
    layer.mkdir()
    os.symlink(real / "etc", layer / "etc")
    assert () == find_host_keys((str(layer),))


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_new_keys_are_new_each_time() -> None:
    made = []
    for _ in range(2):
        with tarfile.open(fileobj=io.BytesIO(make_archive(("ed25519",), "root@isle"))) as tar:
            assert [0o600, 0o644] == [member.mode for member in tar]
            private, public = (tar.extractfile(member) for member in tar)
            assert private is not None
            assert public is not None
            assert private.read().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
            made.append(public.read())
    assert made[0] != made[1]
    assert all(key.startswith(b"ssh-ed25519 ") and key.endswith(b" root@isle\n") for key in made)
