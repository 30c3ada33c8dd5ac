"""Every page of Docker's published swagger is asked for here, and answers what is documented, or is of what
this engine has none of and says so as docs/compatibility.md has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api_wire import ask, create
from contract.schema import VERSIONS, swagger
from fake_house import start_house
from insula.api.routes.table import ROUTES
from insula.api.routing import Router
from insula.api.versions import NEWEST, Version
from integration.images.fake_registry import make_tar

pytestmark = pytest.mark.timeout(60)

_COMPATIBILITY = Path(__file__).parents[2] / "docs" / "compatibility.md"
_TAR = make_tar({"note": b"x"})

# of what there is none: the word for it in docs/compatibility.md, and the status
ABSENT = {
    "/swarm": ("swarm", 503), "/nodes": ("nodes", 503), "/services": ("services", 503),
    "/tasks": ("tasks", 503), "/secrets": ("secrets", 503), "/configs": ("configs", 503),
    "/images/search": ("search", 501),
    "/plugins/pull": ("installing plugins", 501), "/plugins/create": ("installing plugins", 501),
    "/plugins/privileges": ("installing plugins", 501), "/plugins/{name}/": ("installing plugins", 501),
}  # fmt: skip

# page, what is asked, its body, and the answer's status; in this order, of a container `c` that runs
VISITS: tuple[tuple[str, str, Any, int], ...] = (
    ("GET /_ping", "", b"", 200),
    ("HEAD /_ping", "", b"", 200),
    ("GET /version", "", b"", 200),
    ("GET /info", "", b"", 200),
    ("GET /system/df", "", b"", 200),
    ("GET /events", "?since=0&until=1", b"", 200),
    ("POST /auth", "", {}, 400),
    ("POST /build/prune", "", b"", 200),
    ("POST /session", "", b"", 400),  # without an upgrade
    ("POST /containers/create", "", {"Image": "busybox"}, 201),
    ("GET /containers/json", "", b"", 200),
    ("GET /containers/{id}/json", "", b"", 200),
    ("GET /containers/{id}/top", "", b"", 200),
    ("GET /containers/{id}/logs", "?stdout=1", b"", 200),
    ("GET /containers/{id}/changes", "", b"", 200),
    ("GET /containers/{id}/export", "", b"", 200),
    ("GET /containers/{id}/stats", "?stream=0&one-shot=1", b"", 200),
    ("POST /containers/{id}/resize", "?h=10&w=20", b"", 200),
    ("POST /containers/{id}/pause", "", b"", 204),
    ("POST /containers/{id}/unpause", "", b"", 204),
    ("POST /containers/{id}/attach", "?logs=1&stdout=1", b"", 200),
    ("GET /containers/{id}/attach/ws", "", b"", 400),
    ("PUT /containers/{id}/archive", "?path=/tmp", _TAR, 200),
    ("HEAD /containers/{id}/archive", "?path=/tmp/note", b"", 200),
    ("GET /containers/{id}/archive", "?path=/tmp/note", b"", 200),
    ("POST /containers/{id}/exec", "", {"Cmd": ["cat"], "AttachStdin": True}, 201),
    ("GET /exec/{id}/json", "", b"", 200),
    ("POST /exec/{id}/resize", "?h=10&w=20", b"", 409),
    ("POST /exec/{id}/start", "", {"Detach": True}, 200),
    ("POST /containers/{id}/update", "", {"CpuShares": 512}, 200),
    ("POST /containers/{id}/rename", "?name=other", b"", 204),
    ("POST /containers/{id}/restart", "?t=0", b"", 204),
    ("POST /containers/{id}/kill", "", b"", 204),
    ("POST /containers/{id}/wait", "", b"", 200),
    ("POST /containers/{id}/start", "", b"", 204),
    ("POST /containers/{id}/stop", "?t=0", b"", 204),
    ("DELETE /containers/{id}", "", b"", 204),
    ("POST /containers/prune", "", b"", 200),
    ("POST /images/create", "?fromSrc=-&repo=real", _TAR, 200),
    ("POST /commit", "", b"", 400),
    ("GET /images/json", "", b"", 200),
    ("GET /images/{name}/json", "", b"", 200),
    ("GET /images/{name}/history", "", b"", 200),
    ("POST /images/{name}/tag", "?repo=copy", b"", 201),
    ("POST /images/{name}/push", "?tag=none", b"", 200),  # as dockerd: its error follows the first line
    ("GET /images/get", "?names=real", b"", 200),
    ("GET /images/{name}/get", "", b"", 200),
    ("POST /images/load", "", _TAR, 200),
    ("GET /images/search", "", b"", 400),
    ("GET /distribution/{name}/json", "", b"", 500),
    ("DELETE /images/{name}", "", b"", 200),
    ("POST /images/prune", "", b"", 200),
    ("POST /build", "", b"", 400),
    ("GET /networks", "", b"", 200),
    ("GET /networks/{id}", "", b"", 200),
    ("POST /networks/create", "", {}, 400),
    ("POST /networks/{id}/connect", "", {"Container": "none"}, 404),
    ("POST /networks/{id}/disconnect", "", {"Container": "none"}, 404),
    ("DELETE /networks/{id}", "", b"", 404),
    ("POST /networks/prune", "", b"", 200),
    ("POST /volumes/create", "", {"Name": "volume"}, 201),
    ("GET /volumes", "", b"", 200),
    ("GET /volumes/{name}", "", b"", 200),
    ("PUT /volumes/{name}", "", {}, 503),
    ("DELETE /volumes/{name}", "", b"", 204),
    ("POST /volumes/prune", "", b"", 200),
    ("GET /plugins", "", b"", 200),
    ("GET /plugins/{name}/json", "", b"", 404),
    ("DELETE /plugins/{name}", "", b"", 404),
)
NAMES = {
    "/images/": "real",
    "/distribution/": "localhost:1/none",
    "/networks/": "bridge",
    "/volumes/": "volume",
}


def pages(version: Version = NEWEST) -> set[str]:
    paths = swagger(version)["paths"].items()
    return {f"{method.upper()} {path}" for path, methods in paths for method in methods}


def absent_as(page: str) -> tuple[str, int] | None:
    path = page.partition(" ")[2]
    return next((found for prefix, found in ABSENT.items() if path.startswith(prefix)), None)


def test_every_page_is_visited_or_of_what_is_absent() -> None:
    visited = {page for page, *_ in VISITS}
    assert set() == {page for page in pages() - visited if absent_as(page) is None}
    assert set() == visited - pages()
    assert set() == {page for version in VERSIONS for page in pages(version)} - pages()
    rows = [line for line in _COMPATIBILITY.read_text().splitlines() if line.startswith("|")]
    for word, status in ABSENT.values():
        assert any(word in row.split("|")[1] and str(status) in row for row in rows), word


def test_every_page_has_a_handler() -> None:
    router = Router(ROUTES)
    found = {
        page: router.find(page.split(" ")[0], page.split(" ")[1].replace("{", "").replace("}", ""))
        for page in pages()
    }
    assert [] == [page for page, route in found.items() if route is None]


async def test_pages_answer_as_documented(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        command = ["sh", "-c", "sleep 1000"]
        ident = await create(house, *command, Tty=True, OpenStdin=True)
        assert 204 == (await ask(house, "POST", f"/containers/{ident}/start"))[0]
        names = {**NAMES, "/containers/": ident, "/exec/": "none", "/plugins/": "none"}
        for page, query, body, expected in VISITS:
            method, path = page.split(" ")
            name = next((named for prefix, named in names.items() if path.startswith(prefix)), "")
            if page == "DELETE /networks/{id}":
                name = "none-such"
            target = path.replace("{id}", name).replace("{name}", name) + query
            kind = "Content-Type: application/x-tar\r\n" if body is _TAR else ""
            status, _, answer = await ask(house, method, f"/v1.47{target}", body, kind)
            assert expected == status, (page, answer)
            if page == "POST /containers/{id}/exec":
                names["/exec/"] = json.loads(answer)["Id"]


async def test_what_is_absent_says_so(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        visited = {page for page, *_ in VISITS}
        for page in sorted(pages() - visited):
            absent = absent_as(page)
            assert absent is not None
            method, path = page.split(" ")
            status, _, answer = await ask(
                house, method, path.replace("{id}", "x").replace("{name}", "x"), b"{}"
            )
            assert (absent[1], True) == (status, bool(json.loads(answer)["message"])), page
            if status == 503:
                assert "This node is not a swarm manager." in json.loads(answer)["message"]
