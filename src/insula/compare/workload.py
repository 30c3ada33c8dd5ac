"""The probe inside an image, and instances that run it: what `measure` times.  Synchronous."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from insula.client import Client
from insula.errors import DaemonRefused, Failure, InsulaError, NoSuchImage

PROBE = "/.insula-probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One way to run the image: an engine and, for insula, the isolation."""

    title: str
    client: Client
    isolation: str
    local: bool


def read_probe() -> bytes:
    """The static program that measures from inside.  Raises Failure when the package was built without it."""
    name = f"probe-{platform.machine()}"
    try:
        return resources.files("insula").joinpath("_guest", name).read_bytes()
    except FileNotFoundError:
        raise Failure(f"this installation has no {name}", hint="make setup builds it") from None


def _probe_archive(probe: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(PROBE.lstrip("/"))
        member.size, member.mode = len(probe), 0o755
        tar.addfile(member, io.BytesIO(probe))
    return buffer.getvalue()


@contextlib.contextmanager
def start_image(client: Client, image: str, probe: bytes, isolation: str) -> Iterator[str]:
    """A temporary image: `image` with the probe in it and as its entrypoint.  Removed afterwards.

    `isolation` is that of the instance which carries the probe in ("": the engine's default); files are put
    fastest into a container.

    Raises NoSuchImage when the engine does not have the image.
    """
    body: dict[str, Any] = {"Image": image, "Cmd": ["idle"], "Entrypoint": [PROBE]}
    if isolation:
        body["HostConfig"] = {"Isolation": isolation}
    try:
        base = client.post("/containers/create", body)["Id"]
    except DaemonRefused as error:
        if error.http_status == 404:
            raise NoSuchImage(image, hint=f"pull it first: insula pull {image}") from error
        raise
    tag = f"compare-{os.getpid()}"
    try:
        put = client.request(
            "PUT", f"/containers/{base}/archive", query={"path": "/"}, raw=_probe_archive(probe)
        )
        put.close()
        query = {"container": base, "repo": "insula-compare", "tag": tag}
        client.request("POST", "/commit", query=query, body={"Entrypoint": [PROBE], "Cmd": ["idle"]}).close()
    finally:
        client.delete(f"/containers/{base}", force=True)
    try:
        yield f"insula-compare:{tag}"
    finally:
        client.delete(f"/images/insula-compare:{tag}", force=True)


@dataclass(slots=True)
class Bench:
    """Instances of one column.  A context manager: what it has started is removed at its end."""

    column: Column
    image: str
    network: str = "default"
    _made: list[str] = field(default_factory=list)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        for instance in self._made:
            with contextlib.suppress(InsulaError):
                self.column.client.delete(f"/containers/{instance}", force=True, v=True)

    def create(self, *arguments: str, auto_remove: bool = False) -> str:
        host: dict[str, Any] = {"NetworkMode": self.network, "AutoRemove": auto_remove}
        if self.column.isolation:
            host["Isolation"] = self.column.isolation
        body = {
            "Image": self.image,
            "Entrypoint": [PROBE],
            "Cmd": list(arguments),
            "User": "0",
            "AttachStdout": True,
            "AttachStderr": True,
            "HostConfig": host,
        }
        instance = str(self.column.client.post("/containers/create", body)["Id"])
        self._made.append(instance)
        return instance

    def start(self, *arguments: str) -> str:
        instance = self.create(*arguments)
        self.column.client.post(f"/containers/{instance}/start")
        return instance

    def remove(self, instance: str) -> None:
        self.column.client.delete(f"/containers/{instance}", force=True, v=True)
        self._made.remove(instance)

    def run(self, *arguments: str) -> tuple[float, str]:
        """Seconds from the create request to the first byte of output, and all the output.

        Raises Failure when the probe fails.
        """
        client, began, first = self.column.client, time.perf_counter(), 0.0
        instance = self.create(*arguments)
        query = {"stream": True, "stdout": True, "stderr": True}
        connection = client.hijack(f"/containers/{instance}/attach", query=query)
        connection.multiplexed = True
        output: dict[int, bytes] = {1: b"", 2: b""}
        with contextlib.closing(connection):
            client.post(f"/containers/{instance}/start")
            for channel, data in connection.frames():
                first = first or time.perf_counter() - began
                output[channel] += data
        code = client.post(f"/containers/{instance}/wait")["StatusCode"]
        self.remove(instance)
        if code != 0 or not first:
            detail = (output[2] or output[1]).decode(errors="replace").strip()
            raise Failure(f"{self.column.title}: probe {' '.join(arguments)}: exit code {code}: {detail}")
        return first, output[1].decode()

    def exec(self, instance: str, *arguments: str) -> tuple[float, str]:
        """Seconds from the exec request to the end of its output, and the output.  Raises Failure."""
        client, began = self.column.client, time.perf_counter()
        body = {"Cmd": [PROBE, *arguments], "AttachStdout": True, "AttachStderr": True, "User": "0"}
        started = client.post(f"/containers/{instance}/exec", body)["Id"]
        connection = client.hijack(f"/exec/{started}/start", body={"Detach": False, "Tty": False})
        connection.multiplexed = True
        output: dict[int, bytes] = {1: b"", 2: b""}
        with contextlib.closing(connection):
            for channel, data in connection.frames():
                output[channel] += data
        took = time.perf_counter() - began
        code = client.get(f"/exec/{started}/json")["ExitCode"]
        if code != 0:
            detail = (output[2] or output[1]).decode(errors="replace").strip()
            raise Failure(f"{self.column.title}: probe {' '.join(arguments)}: exit code {code}: {detail}")
        return took, output[1].decode()

    def pid(self, instance: str) -> str:
        return str(self.column.client.get(f"/containers/{instance}/json")["State"]["Pid"])

    def address(self, instance: str) -> str:
        networks = self.column.client.get(f"/containers/{instance}/json")["NetworkSettings"]["Networks"]
        return next((str(n["IPAddress"]) for n in networks.values() if n.get("IPAddress")), "")


def parse_values(output: str) -> dict[str, str]:
    """The probe's `key value` lines."""
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
