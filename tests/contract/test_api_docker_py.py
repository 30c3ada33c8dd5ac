"""docker-py against the API, with the fake backend behind the engine."""

from __future__ import annotations

import asyncio
import gc
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound

from fake_house import House, start_house

pytestmark = [
    pytest.mark.timeout(60),
    # docker-py leaves the sockets of its streams to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started
    gc.collect()


async def use(house: House, what: Callable[[docker.DockerClient], Any], version: str = "auto") -> Any:
    """docker-py blocks: in a thread, so that the server beside it can answer."""

    def run() -> Any:
        client = docker.DockerClient(base_url=house.host, version=version, timeout=30)
        try:
            return what(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)


@pytest.mark.parametrize("version", ["1.40", "1.41", "1.42", "1.44", "1.47"])
async def test_run_in_every_version(house: House, version: str) -> None:
    assert await use(house, lambda c: c.containers.run("busybox", "echo hi", remove=True), version) == b"hi\n"


async def test_a_failing_command_raises_with_its_output(house: House) -> None:
    def run(client: docker.DockerClient) -> None:
        with pytest.raises(ContainerError) as caught:
            client.containers.run("busybox", ["sh", "-c", "echo why >&2; exit 2"], remove=True, stderr=True)
        assert caught.value.exit_status == 2

    await use(house, run)


async def test_a_container_s_life(house: House) -> None:
    def run(client: docker.DockerClient) -> None:
        container = client.containers.run(
            "busybox", "sleep 1000", name="web", detach=True, ports={"80/tcp": 8080}, labels={"a": "b"},
            environment={"A": "b"}, isolation="vm", mem_limit="64m", tmpfs={"/run": "size=1m"},
        )  # fmt: skip
        container.reload()
        assert container.status == "running"
        assert container.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "8080/tcp": None}
        assert container.attrs["HostConfig"]["Isolation"] == "vm"
        assert container.exec_run("cat /etc/os-release").output == b"ID=fake\n"
        code, (out, err) = container.exec_run(["sh", "-c", "echo o; echo e >&2; exit 7"], demux=True)
        assert (code, out, err) == (7, b"o\n", b"e\n")
        assert b"".join(container.exec_run("seq 3", stream=True).output) == b"1\n2\n3\n"
        assert container.top()["Processes"][0][-1] == "sleep 1000"
        stats = container.stats(stream=False)
        assert (stats["name"], stats["pids_stats"]["current"]) == ("/web", 1)
        assert client.containers.list(filters={"label": "a=b"}) == [container]
        container.pause()
        container.unpause()
        container.rename("site")
        container.update(mem_limit="128m", memswap_limit="256m")
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        container.start()
        container.kill()
        container.remove(force=True)
        with pytest.raises(NotFound):
            client.containers.get("site")

    await use(house, run)


async def test_logs_and_attach(house: House) -> None:
    def run(client: docker.DockerClient) -> None:
        container = client.containers.create("busybox", "cat", stdin_open=True)
        socket = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        container.start()
        socket._sock.sendall(b"said\n")
        header = socket.read(8)
        assert socket.read(int.from_bytes(header[4:], "big")) == b"said\n"
        container.kill()
        socket.close()
        container.wait()
        assert container.logs() == b"said\n"
        assert list(container.logs(stream=True, follow=True)) == [b"said\n"]
        assert container.attach(logs=True, stream=False) == b"said\n"

    await use(house, run)


async def test_archives(house: House) -> None:
    def run(client: docker.DockerClient) -> None:
        container = client.containers.run("busybox", "sleep 1000", detach=True)
        for mode in ("w", "w:gz", "w:bz2", "w:xz"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=mode) as tar:
                member = tarfile.TarInfo("note")
                member.size = len(mode)
                tar.addfile(member, io.BytesIO(mode.encode()))
            assert container.put_archive("/tmp", buffer.getvalue())
            pieces, stat = container.get_archive("/tmp/note")
            assert (stat["name"], stat["size"]) == ("note", len(mode))
            with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
                extracted = tar.extractfile("note")
                assert extracted is not None
                assert extracted.read() == mode.encode()
        with pytest.raises(NotFound):
            container.get_archive("/nothing")
        with pytest.raises(APIError) as caught:
            container.put_archive("/tmp", b"\x1f\x8b damaged, and certainly no archive")
        assert caught.value.status_code == 400

    await use(house, run)


async def test_images_networks_volumes_system(house: House) -> None:
    def run(client: docker.DockerClient) -> None:
        image = client.images.get("busybox")
        assert image.tags == ["busybox:latest"]
        image.tag("mine", "1")
        assert client.images.list(name="mine")[0].id == image.id
        client.images.remove("mine:1")
        with pytest.raises(ImageNotFound):
            client.images.get("mine:1")
        assert {n.name for n in client.networks.list()} == {"bridge", "host", "none"}
        assert client.networks.get("bridge").attrs["Driver"] == "bridge"
        volume = client.volumes.create("data", labels={"a": "b"})
        assert client.volumes.list(filters={"label": "a=b"}) == [volume]
        volume.remove()
        assert client.version()["ApiVersion"] == "1.47"
        info = client.info()
        assert (info["Isolation"], info["Images"]) == ("process", 1)
        assert client.df()["Images"][0]["Id"] == image.id
        assert client.ping()

    await use(house, run)


async def test_events(house: House) -> None:
    def run(client: docker.DockerClient) -> None:
        events = client.events(decode=True, filters={"type": "container", "event": ["create", "die"]})
        client.containers.run("busybox", "true", remove=True)
        assert [next(events)["Action"], next(events)["Action"]] == ["create", "die"]
        events.close()

    await use(house, run)
