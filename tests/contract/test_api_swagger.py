"""Every page that answers with JSON, held against Docker's published swagger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api_wire import ask
from contract.schema import complaints, find_schema, swagger
from fake_house import House, start_house

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
    "/session",
)
# no JSON document, no such page here, or nothing to answer with but a real registry or a real layer
_ELSEWHERE = {
    *("GET /_ping", "HEAD /_ping", "GET /events", "GET /images/get", "GET /images/{name}/get"),
    *("GET /images/search", "GET /distribution/{name}/json", "POST /networks/create"),
    *("POST /auth", "POST /commit", "POST /build"),
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
        got, headers, answer = await ask(self._house, method, f"/v1.45{target}", body)
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
    await look("POST", f"/containers/{made}/update", 200, {"Memory": 1 << 27, "MemorySwap": 1 << 28})
    run = (await look("POST", f"/containers/{made}/exec", 201, {"Cmd": ["true"], "AttachStdout": True}))["Id"]
    await look("GET", f"/exec/{run}/json", 200)
    await look("POST", "/images/busybox/tag?repo=copy", 201)
    await look("DELETE", "/images/copy", 200)
    waiting = asyncio.create_task(ask(house, "POST", f"/v1.45/containers/{made}/wait"))
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
    assert set() == expected() - visitor.seen - _ELSEWHERE


@pytest.mark.parametrize(
    ("target", "status", "wrong"),
    [
        ("/containers/json", 200, [{"Id": 5}]),
        ("/v1.45/containers/json", 200, {}),
        ("/containers/a/json", 404, {"error": "no message"}),
        ("/containers/a/json", 200, {"HostConfig": {"Isolation": "jail"}}),
        ("/containers/a/json", 200, {"State": {"Status": "odd"}}),
        ("/images/a/b:c/json", 200, {"RepoTags": "a/b:c"}),
    ],
)
def test_what_is_wrong_is_found(target: str, status: int, wrong: Any) -> None:
    assert len(complaints("GET", target, status, json.dumps(wrong).encode())) == 1
