"""Pull and push against Debian's docker-registry, plain and with a password."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.cli.credentials import find_credentials
from insula.errors import NotFound, RegistryFailed, Unauthorized
from insula.images.images import Images
from insula.model.credentials import Credentials
from insula.model.image import Image
from integration.images.fake_registry import FakeRegistry

pytestmark = pytest.mark.integration

_PROGRAM = "/usr/bin/docker-registry"
SESAME = "$2b$04$3.U3EIu.kDLsNwNcLpShnOVn.cdedUHckLSOvSQ1rKk8Smjah0RiK"
_USER = Credentials(username="ali", password="sesame")
_BUSYBOX = "/usr/bin/busybox"


class Log:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        self.lines.append((id, status))

    def statuses(self) -> set[str]:
        return {status for _, status in self.lines}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def start_registry(directory: Path, htpasswd: str = "", netns: str = "") -> Iterator[str]:
    """docker-registry on a free port of the loopback (of `netns`); yields its `host:port` when it listens."""
    enter = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
    port = _free_port()
    (directory / "data").mkdir(parents=True)
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "not-much-of-one"},
    }
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd + "\n")
        config["auth"] = {"htpasswd": {"realm": "here", "path": str(directory / "htpasswd")}}
    (directory / "config.yml").write_text(json.dumps(config))
    process = subprocess.Popen(
        [*enter, _PROGRAM, "serve", str(directory / "config.yml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for_port(process, port, enter)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def _wait_for_port(process: subprocess.Popen[bytes], port: int, enter: list[str]) -> None:
    probe = [*enter, "bash", "-c", f": </dev/tcp/127.0.0.1/{port}"]
    while process.poll() is None:
        if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    assert process.stdout is not None
    pytest.fail(f"docker-registry ended: {process.stdout.read().decode()}")


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[str]:
    with start_registry(tmp_path / "plain") as address:
        yield address


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    with start_registry(tmp_path / "guarded", f"ali:{SESAME}") as address:
        yield address


@pytest.fixture
async def busybox(images: Images, source: FakeRegistry) -> Image:
    """A small image under the name `busybox`, whose blobs are as a registry gave them."""
    program = Path(_BUSYBOX).read_bytes()
    source.put_image(layers=[{"bin/busybox": program}, {"etc/motd": b"hello\n"}])
    await images.pull(f"{source.domain}/test/image")
    await images.tag(f"{source.domain}/test/image", "busybox")
    await images.remove(f"{source.domain}/test/image", in_use=lambda _: None)
    return images.find("busybox")


def _free(_: str) -> None:
    """Nobody uses any image."""


async def test_pushed_image_comes_back_with_the_same_digest(
    images: Images, busybox: Image, plain: str
) -> None:
    name, log = f"{plain}/tools/busybox:1", Log()
    await images.tag("busybox", name)
    digest = await images.push(name, progress=log)
    assert {"Preparing", "Pushing", "Pushed"} <= log.statuses()
    assert images.find(f"{plain}/tools/busybox@{digest}").id == busybox.id

    for ref in (name, "busybox"):
        await images.remove(ref, in_use=_free)
    assert images.list() == ()
    assert images.content.digests() == ()
    assert images.layers.diff_ids() == ()

    log = Log()
    again = await images.pull(name, progress=log)
    assert again.id == busybox.id
    assert again.digests == (f"{plain}/tools/busybox@{digest}",)
    assert {
        "Pulling fs layer",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
        f"Digest: {digest}",
        f"Status: Downloaded newer image for {name}",
    } <= log.statuses()
    assert Path(images.layers.path(again.diff_ids[0]), "bin/busybox").read_bytes()[:4] == b"\x7fELF"

    log = Log()
    await images.pull(name, progress=log)
    assert {"Already exists", f"Status: Image is up to date for {name}"} <= log.statuses()

    log = Log()
    assert await images.push(name, progress=log) == digest
    assert "Layer already exists" in log.statuses()
    assert "Pushed" not in log.statuses()


async def test_pull_by_digest_has_no_tag(images: Images, busybox: Image, plain: str) -> None:
    name = f"{plain}/busybox"
    await images.tag("busybox", name)
    digest = await images.push(name)
    await images.remove(f"{name}:latest", in_use=_free)
    image = await images.pull(f"{name}@{digest}")
    assert image.tags == ("busybox:latest",)
    assert f"{name}@{digest}" in image.digests


async def test_layer_is_mounted_from_a_repository_that_has_it(
    images: Images, busybox: Image, plain: str
) -> None:
    await images.tag("busybox", f"{plain}/first/one")
    await images.push(f"{plain}/first/one")
    await images.tag("busybox", f"{plain}/second/one")
    log = Log()
    await images.push(f"{plain}/second/one", progress=log)
    assert "Mounted from first/one" in log.statuses()
    assert "Pushing" not in log.statuses()
    await images.remove(busybox.id, force=True, in_use=_free)
    assert (await images.pull(f"{plain}/second/one")).id == busybox.id


async def test_every_tag_goes_up_and_comes_down(images: Images, busybox: Image, plain: str) -> None:
    for tag in ("a", "b"):
        await images.tag("busybox", f"{plain}/many:{tag}")
    await images.push(f"{plain}/many", all_tags=True)
    await images.remove(busybox.id, force=True, in_use=_free)
    pulled = await images.pull_all(f"{plain}/many")
    assert images.find(busybox.id).tags == (f"{plain}/many:a", f"{plain}/many:b")
    assert [image.id for image in pulled] == [busybox.id, busybox.id]


async def test_missing_tag_and_missing_repository(images: Images, busybox: Image, plain: str) -> None:
    await images.tag("busybox", f"{plain}/busybox")
    await images.push(f"{plain}/busybox")
    with pytest.raises(NotFound, match=r"manifest for .*busybox:nosuch not found: manifest unknown"):
        await images.pull(f"{plain}/busybox:nosuch")
    with pytest.raises(NotFound, match="not found"):
        await images.pull(f"{plain}/nothing/here")


async def test_password_is_asked_for_and_taken(images: Images, busybox: Image, guarded: str) -> None:
    name = f"{guarded}/private/busybox:1"
    await images.tag("busybox", name)
    with pytest.raises(RegistryFailed, match="authentication required"):
        await images.push(name)
    with pytest.raises(RegistryFailed):
        await images.push(name, auth=Credentials(username="ali", password="wrong"))
    digest = await images.push(name, auth=_USER)
    await images.remove(busybox.id, force=True, in_use=_free)
    with pytest.raises(RegistryFailed, match="authentication required"):
        await images.pull(name)
    image = await images.pull(name, auth=_USER)
    assert image.digests == (f"{guarded}/private/busybox@{digest}",)
    await images.login(Credentials(username="ali", password="sesame", server=guarded))
    with pytest.raises(Unauthorized):
        await images.login(Credentials(username="ali", password="wrong", server=guarded))


async def test_password_from_dockers_config_file(
    images: Images, busybox: Image, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docker").mkdir()
    entry = {"auth": "YWxpOnNlc2FtZQ=="}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {guarded: entry}}))
    await images.tag("busybox", f"{guarded}/b")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    digest = await images.push(f"{guarded}/b", auth=find_credentials(guarded))
    assert digest.startswith("sha256:")


async def test_pulls_side_by_side_share_layers(images: Images, busybox: Image, plain: str) -> None:
    await images.tag("busybox", f"{plain}/one")
    await images.push(f"{plain}/one")
    await images.tag("busybox", f"{plain}/two")
    await images.push(f"{plain}/two")
    await images.remove(busybox.id, force=True, in_use=_free)
    pulled = await asyncio.gather(*(images.pull(f"{plain}/{n}") for n in ("one", "two", "one")))
    assert {image.id for image in pulled} == {busybox.id}
    assert images.find(busybox.id).tags == (f"{plain}/one:latest", f"{plain}/two:latest")
