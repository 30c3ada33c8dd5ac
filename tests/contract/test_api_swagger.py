"""Every page that answers with JSON, held against Docker's published swagger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api_wire import ask
from contract.schema import complaints, find_schema, swagger
from fake_house import House, start_house
from integration.images.fake_registry import make_tar, start_fake_registry

pytestmark = pytest.mark.timeout(60)

# what this node is not
_ABSENT = (
    "/swarm",
    "/nodes",
    "/services",
    "/tasks",
    "/secrets",
    "/configs",
    "/plugins",
)
# no JSON document, or no such page here
_ELSEWHERE = {
    *("GET /_ping", "HEAD /_ping", "GET /images/get", "GET /images/{name}/get", "GET /images/search"),
    *("POST /build", "POST /session"),
}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started


class Visitor:
    """Asks, and remembers which pages have been seen."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.seen: set[str] = set()

    async def ask(self, method: str, target: str, status: int, body: Any = b"") -> Any:
        got, headers, answer = await ask(self._house, method, f"/v1.47{target}", body)
        assert status == got, (target, answer)
        found = find_schema(method, target, status)
        if found is not None and answer:
            self.seen.add(f"{method} {found[0]}")
        chunked = "chunked" in headers.get("transfer-encoding", "")
        return json.loads(answer) if answer and not chunked and "json" in headers["content-type"] else answer


def expected() -> set[str]:
    """Pages of which the swagger describes a good answer, but for those that we do not have."""
    found = set()
    for path, methods in swagger()["paths"].items():
        for method, answers in methods.items():
            good = next((code for code in answers if code.startswith("2")), None)
            if good and not path.startswith(_ABSENT) and find_schema(method, path, int(good)) is not None:
                found.add(f"{method.upper()} {path}")
    return found


async def test_every_answer_is_as_the_swagger_says(house: House) -> None:
    visitor = Visitor(house)
    look = visitor.ask
    await look("GET", "/info", 200)
    await look("GET", "/version", 200)
    config = {
        "Image": "busybox", "Cmd": ["sleep", "1000"], "Env": ["A=b"], "Labels": {"a": "b"},
        "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "StopTimeout": 3,
        "HostConfig": {
            "Isolation": "vm",
            "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}, "Memory": 1 << 26, "NanoCpus": 10**9,
            "Binds": ["named:/n:ro"], "Tmpfs": {"/t": "size=1m"}, "RestartPolicy": {"Name": "on-failure"},
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}], "CapAdd": ["NET_ADMIN"],
            "Mounts": [{"Type": "tmpfs", "Target": "/m"}], "ExtraHosts": ["a:1.2.3.4"],
        },
    }  # fmt: skip
    made = (await look("POST", "/containers/create?name=one", 201, config))["Id"]
    await look("GET", f"/containers/{made}/json?size=1", 200)
    await look("POST", f"/containers/{made}/start", 204)
    for target in (
        "/containers/json?all=1&size=1", f"/containers/{made}/json", f"/containers/{made}/top",
        f"/containers/{made}/changes", f"/containers/{made}/stats?stream=0", "/images/json?all=1",
        "/images/busybox/json", "/images/busybox/history", "/networks", "/networks/bridge", "/volumes",
        "/volumes/named", "/system/df",
    ):  # fmt: skip
        await look("GET", target, 200)
    await _join_and_leave(visitor, made)
    await look("POST", f"/containers/{made}/update", 200, {"Memory": 1 << 27, "MemorySwap": 1 << 28})
    run = (await look("POST", f"/containers/{made}/exec", 201, {"Cmd": ["true"], "AttachStdout": True}))["Id"]
    await look("GET", f"/exec/{run}/json", 200)
    await look("POST", "/images/busybox/tag?repo=copy", 201)
    await look("DELETE", "/images/copy", 200)
    waiting = asyncio.create_task(ask(house, "POST", f"/v1.47/containers/{made}/wait"))
    await look("POST", f"/containers/{made}/kill", 204)
    status, _, chunked = await waiting  # its headers come before its one chunk
    assert [] == complaints("POST", f"/containers/{made}/wait", status, chunked.split(b"\r\n")[1])
    visitor.seen.add("POST /containers/{id}/wait")
    await look("POST", "/containers/prune", 200)
    await look("POST", "/images/prune", 200)
    await look("POST", "/build/prune", 200)
    await look("POST", "/networks/prune", 200)
    await look("POST", "/volumes/prune?all=1", 200)
    await look("POST", "/volumes/create", 201, {"Name": "vol", "Labels": {"a": "b"}})
    for method, target in (
        ("GET", "/containers/none/json"),
        ("DELETE", "/images/none"),
        ("GET", "/volumes/none"),
    ):
        await look(method, target, 404)
    await look("POST", "/build/prune", 200)
    await look_at_registry(visitor, house)
    await look_at_commit(visitor)
    since = f"since=0&until={time.time():.6f}"
    events = await look("GET", f"/events?{since}", 200)
    assert {"container", "image", "volume"} <= {e["Type"] for e in check_stream("/events", events)}
    assert set() == expected() - visitor.seen - _ELSEWHERE


async def _join_and_leave(visitor: Visitor, instance: str) -> None:
    """A network with every field that Docker documents for one, and an endpoint with every one of its own."""
    network = {
        "Name": "lan", "CheckDuplicate": True, "Driver": "bridge", "Scope": "local", "Internal": False,
        "Attachable": True, "Ingress": False, "ConfigOnly": False, "ConfigFrom": {"Network": ""},
        "EnableIPv6": True, "Labels": {"a": "b"},
        "IPAM": {
            "Driver": "default", "Options": {},
            "Config": [
                {"Subnet": "10.8.0.0/24", "IPRange": "10.8.0.128/25", "Gateway": "10.8.0.1",
                 "AuxiliaryAddresses": {"kept": "10.8.0.130"}},
                {"Subnet": "fd00:8::/64", "IPRange": "fd00:8::8000/113", "Gateway": "fd00:8::1",
                 "AuxiliaryAddresses": {"kept6": "fd00:8::8001"}},
            ],
        },
        "Options": {"com.docker.network.bridge.enable_icc": "true", "com.docker.network.driver.mtu": "1400"},
    }  # fmt: skip
    await visitor.ask("POST", "/networks/create", 201, network)
    shown = await visitor.ask("GET", "/networks/lan?verbose=true", 200)
    for field in ("Name", "Driver", "Scope", "EnableIPv6", "Internal", "Attachable", "Labels", "Options"):
        assert shown[field] == network[field], field
    assert shown["IPAM"]["Config"] == network["IPAM"]["Config"]  # type: ignore[index]
    endpoint = {
        "IPAMConfig": {
            "IPv4Address": "10.8.0.9", "IPv6Address": "fd00:8::9", "LinkLocalIPs": ["169.254.1.1", "fe80::9"]
        },
        "Links": ["other:alias"], "Aliases": ["web"], "MacAddress": "02:42:0a:08:00:09",
        "DriverOpts": {"com.example.some-label": "some-value"},
    }  # fmt: skip
    joined = {"Container": instance, "EndpointConfig": endpoint}
    await visitor.ask("POST", "/networks/lan/connect", 200, joined)
    settings = (await visitor.ask("GET", f"/containers/{instance}/json", 200))["NetworkSettings"]
    seen = settings["Networks"]["lan"]
    assert {field: seen[field] for field in endpoint} == endpoint
    member = (await visitor.ask("GET", "/networks/lan", 200))["Containers"][instance]
    assert member["IPv4Address"].startswith("10.8.0.9/")
    await visitor.ask("POST", "/networks/lan/disconnect", 200, {"Container": instance, "Force": True})
    await visitor.ask("DELETE", "/networks/lan", 204)


async def look_at_registry(visitor: Visitor, house: House) -> None:
    async with start_fake_registry() as registry:
        registry.put_image("some/image", layers=[{"f": b"x"}])
        name = f"{registry.domain}/some/image"
        await visitor.ask("GET", f"/distribution/{name}/json", 200)
        await visitor.ask("GET", f"/distribution/{name}:none/json", 404)
        login = {"username": "a", "password": "b", "serveraddress": registry.domain}
        await visitor.ask("POST", "/auth", 200, login)
        await visitor.ask("POST", "/auth", 400, {})
    await visitor.ask("GET", "/images/search?term=x", 501)
    await visitor.ask("GET", "/images/search", 400)


async def look_at_commit(visitor: Visitor) -> None:
    """Of an image with a layer, which an import brings."""
    progress = await visitor.ask("POST", "/images/create?fromSrc=-&repo=real", 200, make_tar({"f": b"x"}))
    check_stream("/images/create", progress)
    made = (await visitor.ask("POST", "/containers/create", 201, {"Image": "real", "Cmd": ["sh"]}))["Id"]
    image = (await visitor.ask("POST", f"/commit?container={made}&repo=more", 201, {"Cmd": ["x"]}))["Id"]
    document = await visitor.ask("GET", f"/images/{image}/json", 200)
    assert (made, "real") == (document["Container"], document["ContainerConfig"]["Image"])
    await visitor.ask("POST", "/commit", 400)


def check_stream(page: str, body: bytes) -> list[Any]:
    """Each document of a chunked answer, held against the schema of the page's."""
    lines = [line for line in body.split(b"\r\n") if line.startswith(b"{")]
    documents = [document for line in lines for document in line.splitlines()]
    if page == "/events":
        assert [] == [wrong for each in documents for wrong in complaints("GET", page, 200, each)]
    assert documents
    return [json.loads(each) for each in documents]


@pytest.mark.parametrize(
    ("target", "status", "wrong"),
    [
        ("/containers/json", 200, [{"Id": 5}]),
        ("/v1.47/containers/json", 200, {}),
        ("/containers/a/json", 404, {"error": "no message"}),
        ("/containers/a/json", 200, {"HostConfig": {"Isolation": "jail"}}),
        ("/containers/a/json", 200, {"State": {"Status": "odd"}}),
        ("/images/a/b:c/json", 200, {"RepoTags": "a/b:c"}),
    ],
)
def test_what_is_wrong_is_found(target: str, status: int, wrong: Any) -> None:
    assert len(complaints("GET", target, status, json.dumps(wrong).encode())) == 1
