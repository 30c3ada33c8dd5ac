"""Web pages in a browser are refused on TCP; other clients are not looked at."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from multidict import CIMultiDict

from fake_house import start_house
from insula.api.browsers import is_own_name, refuse_web_pages
from insula.errors import Forbidden

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0)"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "127.0.0.1:2375", "Origin": "https://evil.example"},
        {"Host": "127.0.0.1:2375", "Origin": "null"},
        {"Host": "127.0.0.1:2375", "Origin": "http://127.0.0.1:8080"},
        {"Origin": "https://evil.example"},
        {"Host": "localhost:2375", "Sec-Fetch-Site": "cross-site"},
        {"Host": "localhost:2375", "sec-fetch-site": "same-site"},
        {"Host": "evil.example:2375", "User-Agent": AGENT},
        {"Host": "evil.example:2375", "Origin": "http://evil.example:2375", "Accept-Language": "en"},
        {"Host": "evil.example:2375", "Sec-Fetch-Site": "same-origin"},
        {"Host": "[::1", "User-Agent": AGENT},
        {"User-Agent": AGENT},
    ],
)
def test_a_web_page_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        refuse_web_pages(CIMultiDict(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "docker:2375", "User-Agent": "Docker-Client/28.0 (linux)"},
        {"Host": "docker:2375", "Origin": "http://docker:2375"},  # docker-py's websockets
        {"Host": "127.0.0.1:2375", "User-Agent": "curl/7.88"},
        {"Host": "docker:2375", "User-Agent": "node", "Accept-Language": "*", "Sec-Fetch-Mode": "cors"},
        {"Host": "127.0.0.1:2375", "User-Agent": AGENT, "Sec-Fetch-Site": "none"},
        {"Host": "[::1]:2375", "User-Agent": AGENT, "Origin": "http://[::1]:2375"},
    ],
)
def test_other_clients_are_not(headers: dict[str, str]) -> None:
    refuse_web_pages(CIMultiDict(headers))


def test_names_of_this_host() -> None:
    own = ("localhost", "a.localhost:1", "10.1.2.3", "[fe80::1]:2", socket.gethostname())
    others = ("", "example.org", "localhost.example.org", "127.0.0.1.example.org:80")
    assert [True] * 5 + [False] * 4 == [is_own_name(name) for name in own + others]


async def test_it_is_so_on_tcp_and_only_there(tmp_path: Path) -> None:
    async def ask(where: socket.socket) -> bytes:
        reader, writer = await asyncio.open_connection(sock=where)
        writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\nConnection: close\r\n\r\n")
        try:
            return await reader.read()
        finally:
            writer.close()

    async with start_house(tmp_path) as house:
        listener = socket.create_server(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(house.server._http, sock=listener)
        async with server:
            over_tcp = await ask(socket.create_connection(listener.getsockname()))
        unix = socket.socket(socket.AF_UNIX)
        unix.connect(house.socket)
        over_unix = await ask(unix)
    assert over_tcp.startswith(b"HTTP/1.1 403 ")
    assert b"web page of 'http://y'" in over_tcp
    assert over_unix.startswith(b"HTTP/1.1 200 ")
