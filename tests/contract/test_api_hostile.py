"""Every page, asked with nonsense: an answer below 500 (or an honest 501, 503), and a message."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from api_wire import act, ask, create
from fake_house import House, start_house
from insula.api.routes.table import ROUTES

BODIES = (
    b"",
    b"null",
    b"{}",
    b"[]",
    b'"x"',
    b"\x00\xff",
    b'{"Cmd":5,"Detach":"x","Labels":[],"RestartPolicy":7,"username":[],"Name":{}}',
    b'{"Cmd":["\\u0000"],"Env":["\\u0000"],"User":"\\u0000","Memory":-1,"Name":"../..","ConsoleSize":[1,2,3]}',
)
QUERIES = (
    "",
    "?t=%00&h=%00&w=%00&limit=%00&tail=%00&since=%00&until=%00&path=%00&name=%00&repo=%00&tag=%00",
    "?t=x&h=-1&w=99999999999999999999&limit=-5&signal=NOPE&condition=x&filters=%7B%22label%22%3A5%7D&stdout=1",
    "?path=%2F..%2F..&signal=0&name=%2F&repo=UPPER&tag=%20&stdout=1&since=9e99&until=-1&size=1&fromImage=%00&detachKeys=x",
)  # fmt: skip
STREAMS = ("/events", "/containers/{id}/stats", "/containers/{id}/wait", "/containers/{id}/attach")


@pytest.mark.timeout(150)
async def test_no_page_breaks(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        broken = []
        for route in ROUTES:
            if route.pattern in STREAMS:
                continue
            for name in ("web", "%00", "..", "a" * 300, "%F0%9F%92%A9"):
                found = await probe(
                    house, route.method, re.sub(r"\{\w+\*?\}", name, route.pattern), name == "web"
                )
                broken += found
        assert not broken, "\n".join(f"{m} {p} {n} {a}" for m, p, n, a in broken)


async def probe(house: House, method: str, path: str, thorough: bool) -> list[tuple[str, str, int, str]]:
    broken = []
    for query in QUERIES if thorough else QUERIES[:1]:
        for body in BODIES if method in ("POST", "PUT") and thorough else (b"",):
            if path == "/insula/v1/images/bootstrap" and "name=" in query:
                continue  # would fetch packages
            if path == "/distribution/web/json" or (path == "/images/create" and "fromImage" in query):
                continue  # would ask a registry
            if path.startswith("/distribution/web"):
                continue  # so would this
            status, _, answer = await ask(house, method, path + query, body)
            honest = status < 500 or status in (501, 503)
            if status >= 400 and method != "HEAD" and honest:
                honest = bool(json.loads(answer)["message"])
            if not honest:
                broken.append((method, path + query, status, answer[:200].decode()))
    return broken


async def test_a_running_container_withstands_it_too(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        ident = await create(house, "sleep", "1000")
        await act(house, f"/containers/{ident}/start")
        for part in (
            "resize",
            "kill",
            "rename",
            "update",
            "exec",
            "top",
            "json",
            "logs",
            "changes",
        ):
            for method in ("GET", "POST", "PUT", "HEAD"):
                assert await probe(house, method, f"/containers/{ident}/{part}", True) == []
