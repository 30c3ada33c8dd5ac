"""The API as bytes: versions, errors, hijacked connections, clients that vanish, hostile input."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from api_wire import UPGRADE, Wire, act, ask, create, dial
from fake_house import House, start_house
from insula.engine.types import LogBatch, LogRecord
from insula.errors import Failure
from insula.model.stream import Channel
from integration.images.fake_registry import make_tar

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started


# versions and errors


async def test_ping_has_the_headers_that_clients_negotiate_by(house: House) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        status, headers, got = await ask(house, method, "/_ping")
        assert (status, got) == (200, body)
        assert headers["api-version"] == "1.47"
        assert headers["ostype"] == "linux"
        assert headers["docker-experimental"] == "true"


async def test_versions_by_path(house: House) -> None:
    for version in ("1.24", "1.39", "1.40", "1.41", "1.47"):
        assert (await ask(house, "GET", f"/v{version}/version"))[0] == 200
        assert (await ask(house, "GET", f"/v{version}/containers/json?all=1"))[0] == 200
    status, _, body = await ask(house, "GET", "/v1.23/version")
    assert status == 400
    assert json.loads(body)["message"] == (
        "client version 1.23 is too old. Minimum supported API version is 1.24, "
        "please upgrade your client to a newer version"
    )
    status, _, body = await ask(house, "GET", "/v1.99/version")
    assert status == 400
    assert (
        json.loads(body)["message"] == "client version 1.99 is too new. Maximum supported API version is 1.47"
    )


async def test_unknown_pages(house: House) -> None:
    for target in ("/nothing", "/v1.47/nothing", "/", "/containers", "/containers/a/b/c"):
        status, headers, body = await ask(house, "GET", target)
        assert (status, json.loads(body)) == (404, {"message": "page not found"})
        assert headers["content-type"] == "application/json"


async def test_paths_are_cleaned_by_a_redirection(house: House) -> None:
    """As Go's router does; clients ask with the slash that names in answers begin with."""
    for asked, clean in (
        ("//info", "/info"),
        ("/v1.41/containers//web/json?size=1", "/v1.41/containers/web/json?size=1"),
        ("/containers/%2Fweb/json", "/containers/web/json"),
        ("/containers/../info", "/info"),
    ):
        status, headers, _ = await ask(house, "GET", asked)
        assert (301, clean) == (status, headers["location"])
    assert 404 == (await ask(house, "GET", "/info/"))[0]
    assert (200, b"") == (await ask(house, "OPTIONS", "/containers/json"))[::2]


async def test_headers_and_queries_may_be_long(house: House) -> None:
    """Credentials for many registries, names of many images; aiohttp stops at 8 KiB."""
    long = "x" * 200_000
    assert 200 == (await ask(house, "GET", f"/_ping?{long}", headers=f"X-Registry-Config: {long}\r\n"))[0]


async def test_http_1_0_is_spoken(house: House) -> None:
    async with dial(house) as wire:
        wire.writer.write(b"GET /containers/json HTTP/1.0\r\n\r\n")
        status, headers = await wire.head()
        assert (200, False) == (status, "transfer-encoding" in headers)
        assert [] == json.loads(await wire.reader.read())  # and the connection is closed


async def test_already_as_asked_is_304_without_a_body(house: House) -> None:
    ident = await create(house, "sleep", "100")
    assert await act(house, f"/containers/{ident}/start") == 204
    status, _, body = await ask(house, "POST", f"/containers/{ident}/start")
    assert (status, body) == (304, b"")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "EOF"),
        (b"{", "invalid JSON"),
        (b"[]", "Expected `object`"),
        (b'"x"', "Expected `object`"),
        (b"\xff\xfe", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"Image": 5}', "$.Image"),
        (b'{"Image":"busybox","HostConfig":{"Memory":"1g"}}', "$.HostConfig.Memory"),
        (b'{"Image":"busybox","HostConfig":{"Memory":99999999999999999999999}}', "$.HostConfig.Memory"),
        (b'{"Image":"busybox","HostConfig":{"Memory":-5}}', "negative"),
        (b'{"Image":"busybox","HostConfig":{"Memory":1e400}}', "out of range"),
        (b'{"Image":"busybox","HostConfig":{"PidsLimit":1.5}}', "PidsLimit"),
        (b'{"Image":"busybox","HostConfig":{"PortBindings":{"99999/tcp":[]}}}', "port"),
        (b'{"Image":"busybox","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"70000"}]}}}', "port"),
        (b'{"Image":"busybox","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"nowhere"}]}}}', "HostIp"),
        (b'{"Image":"busybox","HostConfig":{"Binds":["a:b:c:d"]}}', "volume specification"),
        (b'{"Image":"busybox","HostConfig":{"Binds":["/a:/"]}}', "destination can't be"),
        (b'{"Image":"busybox","HostConfig":{"Isolation":"jail"}}', "solation"),
        (b'{"Image":"busybox","HostConfig":{"RestartPolicy":{"Name":"maybe"}}}', "restart policy"),
        (b'{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"bind","Target":"/a"}]}}', "Source"),
        (b'{"Image":"busybox","HostConfig":{"ExtraHosts":["x"]}}', "add-host"),
        (b'{"Image":"busybox","StopSignal":"SIGNOPE"}', "SIGNOPE"),
        (b'{"Image":"busybox","Env":["=x"]}', "environment"),
        (b'{"Image":"","Cmd":["x"]}', "Image"),
        (b'{"Image":""}', "no command specified"),
        (b'{"HostConfig":{}}', "config cannot be empty in order to create a container"),
        (b'{"Image":"BAD NAME"}', "reference"),
    ],
)
async def test_a_bad_create_request_is_400_and_says_what(house: House, body: bytes, part: str) -> None:
    status, _, answer = await ask(house, "POST", "/containers/create", body)
    assert status == 400, answer
    assert part in json.loads(answer)["message"]


async def test_bodies_are_bounded(house: House) -> None:
    status, _, body = await ask(house, "POST", "/containers/create", b" " * (4 * 2**20 + 1))
    assert status == 413
    assert "4 MiB" in json.loads(body)["message"]


async def test_a_body_that_is_not_json_is_refused_by_its_type(house: House) -> None:
    status, _, body = await ask(
        house, "POST", "/containers/create", b"a=b", "Content-Type: application/x-www-form-urlencoded\r\n"
    )
    assert status == 400
    assert "must be 'application/json'" in json.loads(body)["message"]


@pytest.mark.parametrize(
    "target",
    [
        "/containers/json?limit=x",
        "/containers/json?limit=99999999999",
        "/containers/json?filters=%7B",
        "/containers/json?filters=%5B%5D",
        "/containers/json?filters=%7B%22status%22%3A%5B%22flying%22%5D%7D",
        "/containers/json?filters=%7B%22exited%22%3A%5B%22x%22%5D%7D",
        "/images/json?filters=%7B%22dangling%22%3A%5B%22x%22%5D%7D",
        "/events?since=yesterday",
        "/system/df?type=dust",
        "/images/get",
    ],
)
async def test_bad_parameters_are_400(house: House, target: str) -> None:
    status, _, body = await ask(house, "GET", target)
    assert status == 400, body
    assert json.loads(body)["message"]


@pytest.mark.parametrize("target", ["/images/", "/images/%20"])
async def test_an_image_to_be_removed_has_a_name(house: House, target: str) -> None:
    status, _, body = await ask(house, "DELETE", target)
    assert (400, "image name cannot be blank") == (status, json.loads(body)["message"])


async def test_import_fetches_from_an_address(house: House) -> None:
    archive = make_tar({"f": b"x"})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if asked.startswith(b"GET /root.tar ") else b"404 Not Found"
        length = b"Content-Length: %d" % len(archive)
        writer.write(b"\r\n".join((b"HTTP/1.1 " + status, length, b"Connection: close", b"", archive)))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for source in (f"http://{place}/root.tar", f"{place}/root.tar"):
            query = urlencode({"fromSrc": source, "repo": "fetched"})
            status, _, answer = await ask(house, "POST", f"/images/create?{query}")
            assert 200 == status, answer
            assert f"Imported from {source}" in await house.ok("history", "--no-trunc", "fetched")
        for source, words in ((f"http://{place}/no", "404 Not Found"), ("ftp://x/y", "address over HTTP")):
            _, _, answer = await ask(house, "POST", f"/images/create?{urlencode({'fromSrc': source})}")
            assert words in answer.decode()


async def test_default_fields_of_the_docker_client_pass(house: House) -> None:
    host = {
        "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}},
        "NetworkMode": "default",
        "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": False,
        "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0], "CapAdd": None, "CapDrop": None,
        "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": None,
        "GroupAdd": None,
        "IpcMode": "", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "", "Privileged": False,
        "SecurityOpt": None, "UTSMode": "", "UsernsMode": "", "ShmSize": 0, "Isolation": "", "CpuShares": 0,
        "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": [], "CpuPeriod": 0, "CpuRealtimePeriod": 0, "CpusetCpus": "", "Devices": [],
        "DeviceCgroupRules": None, "DeviceRequests": None, "MemoryReservation": 0, "MemorySwap": 0,
        "MemorySwappiness": -1, "OomKillDisable": False, "PidsLimit": 0, "Ulimits": [], "CpuCount": 0,
        "MaskedPaths": None, "ReadonlyPaths": None,
    }  # fmt: skip
    networking = {"EndpointsConfig": {"default": {}}}
    await create(house, "true", HostConfig=host, NetworkingConfig=networking, Volumes={})


async def test_whose_exec_it_is(house: House) -> None:
    """Its own user, else the container's; the field is absent when it is nobody's, as in Go."""
    for own, asked, expected in (("", "", None), ("1000", "", "1000"), ("1000", "0", "0")):
        ident = await create(house, "sleep", "100", User=own)
        await act(house, f"/containers/{ident}/start")
        made = await ask(house, "POST", f"/containers/{ident}/exec", {"Cmd": ["true"], "User": asked})
        found = await ask(house, "GET", f"/exec/{json.loads(made[2])['Id']}/json")
        assert expected == json.loads(found[2])["ProcessConfig"].get("user")


async def test_when_an_image_was_tagged_last(house: House) -> None:
    async def told() -> str:
        image = json.loads((await ask(house, "GET", "/images/busybox/json"))[2])
        return str(image["Metadata"]["LastTagTime"])

    before = await told()
    assert 201 == (await ask(house, "POST", "/images/busybox/tag?repo=other"))[0]
    assert before < await told()


async def test_a_field_that_does_not_exist_is_named_in_a_warning(house: House) -> None:
    mount = {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"Sise": 5, "Nothing": 0}}
    endpoint = {"lan": {"IPAMConfig": {"IPv4": "10.0.0.1"}}}
    body = {
        "Image": "busybox",
        "HostConfig": {"Isolatoin": "vm", "Mounts": [mount]},
        "NetworkingConfig": {"EndpointsConfig": endpoint},
    }
    _, _, answer = await ask(house, "POST", "/containers/create", body)
    assert json.loads(answer)["Warnings"] == [
        f"{name}: there is no such field; it has no effect"
        for name in (
            "HostConfig.Isolatoin",
            "HostConfig.Mounts.TmpfsOptions.Sise",
            "NetworkingConfig.EndpointsConfig.lan.IPAMConfig.IPv4",
        )
    ]


async def test_inspect_tells_what_was_said_from_what_was_not(house: House) -> None:
    host = {"Dns": [], "PortBindings": {}, "Init": False, "Binds": ["vol:/a"], "CpuCount": 2}
    made = await create(house, "true", HostConfig=host, Volumes={"/a": {}}, MacAddress="02:00:00:00:00:09")
    inspected = json.loads((await ask(house, "GET", f"/containers/{made}/json"))[2])
    shown = inspected["HostConfig"]
    assert ([], {}, False, 2) == tuple(shown[name] for name in ("Dns", "PortBindings", "Init", "CpuCount"))
    assert (None, None, None) == tuple(shown[name] for name in ("DnsSearch", "Devices", "Ulimits"))
    config = inspected["Config"]
    assert {"/a": {}} == config["Volumes"]  # a bind covers it, and it was declared
    assert "02:00:00:00:00:09" == config["MacAddress"]
    other = json.loads((await ask(house, "GET", f"/containers/{await create(house, 'true')}/json"))[2])
    assert "Init" not in other["HostConfig"]
    assert other["HostConfig"]["PortBindings"] is None


# hijacked connections


async def attach_raw(
    wire: Wire, ident: str, query: str = "stdin=1&stdout=1&stderr=1&stream=1", more: bytes = b""
) -> None:
    head = f"POST /v1.47/containers/{ident}/attach?{query} HTTP/1.1\r\nHost: x\r\n{UPGRADE}"
    wire.writer.write(f"{head}Content-Length: 0\r\n\r\n".encode() + more)


async def test_input_that_arrives_with_the_request_is_not_lost(house: House) -> None:
    ident = await create(house, "cat", OpenStdin=True, StdinOnce=True)
    async with dial(house) as wire:
        await attach_raw(wire, ident, more=b"early GET / HTTP/1.1\r\n\r\n")
        status, headers = await wire.head()
        assert (status, headers["content-type"]) == (101, "application/vnd.docker.multiplexed-stream")
        assert await act(house, f"/containers/{ident}/start") == 204
        wire.writer.write(b"late")
        wire.writer.write_eof()
        assert await wire.frames() == b"early GET / HTTP/1.1\r\n\r\nlate"


async def test_a_chunked_exec_start_that_is_hijacked_keeps_what_follows(house: House) -> None:
    ident = await create(house, "sleep", "100")
    await act(house, f"/containers/{ident}/start")
    config = {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True}
    exec_id = json.loads((await ask(house, "POST", f"/containers/{ident}/exec", config))[2])["Id"]
    async with dial(house) as wire:
        head = (
            f"POST /exec/{exec_id}/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{UPGRADE}"
        )
        for piece in (
            head[:9],
            head[9:],
            "Transfer-Encoding: chunked\r\n\r\n",
            "2\r\n{}\r\n0\r\n",
            "\r\nfirst",
        ):
            wire.writer.write(piece.encode())
            await wire.writer.drain()
            await asyncio.sleep(0)
        assert (await wire.head())[0] == 101
        wire.writer.write_eof()
        assert await wire.frames() == b"first"
    inspected = json.loads((await ask(house, "GET", f"/exec/{exec_id}/json"))[2])
    assert (inspected["Running"], inspected["ExitCode"]) == (False, 0)
    # a second start: its words on a stream, as compose's watch takes no error there
    status, _, body = await ask(house, "POST", f"/exec/{exec_id}/start", {})
    assert (status, body[8:]) == (200, f"Error: Exec command {exec_id} has already run\r\n".encode())
    assert 409 == (await ask(house, "POST", f"/exec/{exec_id}/start", {"Detach": True}))[0]


async def test_without_upgrade_the_answer_is_200_and_raw(house: House) -> None:
    ident = await create(house, "sh", "-c", "echo plain")
    async with dial(house) as wire:
        wire.writer.write(
            f"POST /containers/{ident}/attach?stdout=1&stream=1 HTTP/1.1\r\n".encode()
            + b"Host: x\r\nContent-Length: 0\r\n\r\n"
        )
        status, headers = await wire.head()
        assert (status, headers["content-type"]) == (200, "application/vnd.docker.raw-stream")
        await act(house, f"/containers/{ident}/start")
        assert await wire.frames() == b"plain\n"


async def test_a_refused_attach_leaves_the_connection_usable(house: House) -> None:
    async with dial(house) as wire:
        wire.writer.write(
            b"POST /containers/none/attach?stream=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        status, headers = await wire.head()
        assert status == 404
        await wire.reader.readexactly(int(headers["content-length"]))
        assert (await wire.head())[0] == 200


async def test_detach_keys_let_go_and_leave_the_workload_running(house: House) -> None:
    ident = await create(house, "cat", Tty=True, OpenStdin=True)
    await act(house, f"/containers/{ident}/start")
    async with dial(house) as wire:
        await attach_raw(wire, ident, "stdin=1&stdout=1&stream=1&detachKeys=ctrl-a,b")
        assert (await wire.head())[0] == 101
        wire.writer.write(b"x\x01y\r\n")
        assert await wire.reader.readexactly(5) == b"x\x01y\r\n"
        wire.writer.write(b"\x01b")
        await wire.reader.read()
    assert house.engine.find(ident).state == "running"


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_client_that_has_said_everything_still_gets_its_answer(house: House, pieces: int) -> None:
    """As `printf … | socat - UNIX-CONNECT:…`, the end in the same packet or once the request has begun."""
    request = b"POST /containers/none/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    async with dial(house) as wire:
        wire.writer.write(request)
        if pieces == 2:
            await wire.writer.drain()
            await asyncio.sleep(0)
        wire.writer.write_eof()
        answer = await wire.reader.read()  # to its end: the daemon closes, though it was not asked to
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"No such container: none" in answer


async def test_a_client_that_is_silent_and_then_goes_leaves_no_handler(house: House) -> None:
    made = await create(house, "sleep", "infinity")
    await act(house, f"/containers/{made}/start")
    before = len(asyncio.all_tasks())
    async with dial(house) as wire:
        wire.writer.write(f"POST /containers/{made}/wait HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wire.writer.write_eof()
        assert (await wire.head())[0] == 200
        assert len(asyncio.all_tasks()) > before
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.01)


async def test_half_a_request_is_none(house: House) -> None:
    async with dial(house) as wire:
        wire.writer.write(b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        wire.writer.write_eof()
        assert b"200" not in (await wire.reader.read())[:15]


async def test_a_client_that_vanishes_leaves_no_handler(house: House) -> None:
    ident = await create(house, "cat", OpenStdin=True)
    await act(house, f"/containers/{ident}/start")
    before = len(asyncio.all_tasks())
    targets = [f"POST /containers/{ident}/attach?stdin=1&stdout=1&stream=1", "GET /events",
               f"POST /containers/{ident}/wait", f"GET /containers/{ident}/logs?follow=1&stdout=1",
               f"GET /containers/{ident}/stats"]  # fmt: skip
    for target in targets:
        for half_close in (False, True):
            if half_close and not target.endswith("stream=1"):
                continue
            async with dial(house) as wire:
                head = f"{target} HTTP/1.1\r\nHost: x\r\n{UPGRADE if 'attach' in target else ''}"
                wire.writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
                assert (await wire.head())[0] in (101, 200)
                if half_close:
                    wire.writer.write_eof()
                    await asyncio.sleep(0.05)  # the server has to see the half-close by itself first
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_wait_answers_its_headers_before_the_exit(house: House) -> None:
    ident = await create(house, "sleep", "100")
    async with dial(house) as wire:
        wire.writer.write(
            f"POST /containers/{ident}/wait?condition=next-exit HTTP/1.1\r\n".encode()
            + b"Host: x\r\nContent-Length: 0\r\n\r\n"
        )
        assert (await wire.head())[0] == 200
        await act(house, f"/containers/{ident}/start")
        await act(house, f"/containers/{ident}/kill")
        size = int(await wire.reader.readline(), 16)
        assert json.loads(await wire.reader.readexactly(size)) == {"StatusCode": 137}


async def test_a_slow_reader_holds_the_workload_back(house: House) -> None:
    ident = await create(house, "yes")
    async with dial(house) as wire:
        await attach_raw(wire, ident, "stdout=1&stream=1")
        assert (await wire.head())[0] == 101
        await act(house, f"/containers/{ident}/start")
        await asyncio.sleep(0.3)  # it would have written many megabytes by now
        job = house.backend._instances[ident].job
        assert all(client._size < 2**20 for client in job.clients)
        await act(house, f"/containers/{ident}/kill")
        assert len(await wire.frames()) < 8 * 2**20


async def until(holds: Callable[[], bool]) -> None:
    """What happens in other tasks of this loop tells nobody; look after each of its steps."""
    async with asyncio.timeout(10):
        while True:
            if holds():
                return
            await asyncio.sleep(0.002)


async def test_start_goes_on_when_its_client_goes(house: House) -> None:
    ident = await create(house, "sleep", "100")
    async with dial(house) as wire:
        wire.writer.write(
            f"POST /containers/{ident}/start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        )
        await wire.writer.drain()
        await until(lambda: house.engine.find(ident).state != "created" or bool(house.server.app._unfinished))
    await until(lambda: house.engine.find(ident).state == "running")


async def test_events_stream_and_filter(house: House) -> None:
    async with dial(house) as wire:
        wire.writer.write(
            b"GET /events?filters=%7B%22event%22%3A%7B%22create%22%3Atrue%7D%7D HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert (await wire.head())[0] == 200
        ident = await create(house, "true", Labels={"kind": "x", "action": "y"})
        size = int(await wire.reader.readline(), 16)
        event = json.loads(await wire.reader.readexactly(size))
        assert (event["Type"], event["Action"], event["Actor"]["ID"]) == ("container", "create", ident)
        assert (event["status"], event["from"]) == ("create", "busybox")
        assert event["Actor"]["Attributes"]["kind"] == "x"


async def test_a_client_that_waits_for_100_continue_is_not_kept_waiting(house: House) -> None:
    body = b'{"Image":"busybox"}'
    async with dial(house) as wire:
        wire.writer.write(
            b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert (await wire.head())[0] == 100
        wire.writer.write(body)
        assert (await wire.head())[0] == 201


async def test_an_answer_that_fails_on_its_way_is_cut_off(house: House) -> None:
    """The log of a removed container ends without the last chunk: no client takes it for whole."""
    ident = await create(house, "sleep", "100")
    await act(house, f"/containers/{ident}/start")

    async def broken() -> AsyncIterator[LogBatch]:
        yield LogBatch([LogRecord(0, Channel.STDOUT, b"first\n")])
        raise Failure("the disk is gone")

    house.engine.logs = lambda ref, query: broken()  # type: ignore[method-assign]
    async with dial(house) as wire:
        wire.writer.write(
            f"GET /containers/{ident}/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert (await wire.head())[0] == 200
        with contextlib.suppress(ConnectionResetError):
            rest = await wire.reader.read()
            assert not rest.endswith(b"0\r\n\r\n")
            assert b"HTTP/1.1" not in rest


async def test_pages_of_our_own(house: House) -> None:
    status, _, body = await ask(house, "GET", "/insula/v1/info")
    found = json.loads(body)
    assert status == 200
    assert [(i["Name"], i["Available"]) for i in found["Isolations"]] == [("process", True), ("vm", True)]
    status, _, body = await ask(house, "POST", "/insula/v1/guest/make")
    assert (status, json.loads(body)) == (503, {"message": "no isolation of this daemon boots a guest"})
    assert (await ask(house, "POST", "/insula/v1/images/bootstrap"))[0] == 400


async def test_a_malformed_body_is_the_client_s_mistake(house: House) -> None:
    async with dial(house) as wire:
        wire.writer.write(
            b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"
        )
        assert (await wire.head())[0] == 400


async def test_the_server_stops_while_clients_hold_on(house: House) -> None:
    ident = await create(house, "cat", OpenStdin=True)
    await act(house, f"/containers/{ident}/start")
    async with dial(house) as attached, dial(house) as following, dial(house) as idle:
        await attach_raw(attached, ident)
        following.writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await attached.head())[0] == 101
        assert (await following.head())[0] == 200
        async with asyncio.timeout(6):
            await house.server.stop()
        for wire in (attached, following, idle):
            with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
                assert await wire.reader.read() == b""
    assert house.engine.find(ident).state == "running"
    assert not Path(house.socket).exists()


# parameters in the body

FORM = "Content-Type: application/x-www-form-urlencoded\r\n"


async def test_parameters_in_the_body_of_a_post_count_as_those_of_the_address(house: House) -> None:
    """As Go's ParseForm does: `curl -d` of old scripts."""
    ref = await create(house, "sleep", "100")
    await act(house, f"/containers/{ref}/start")
    form = FORM.replace("\r\n", "; charset=utf-8\r\n")
    assert (
        400 == (await ask(house, "POST", f"/containers/{ref}/kill?signal=HUP", b"signal=NONSENSE", form))[0]
    )
    assert 204 == (await ask(house, "POST", f"/containers/{ref}/rename", b"name=b%65tter&x=", FORM))[0]
    assert 204 == (await ask(house, "POST", "/containers/better/rename?name=best", b"", FORM))[0]
    status, _, body = await ask(house, "POST", "/commit", b"container=gone&repo=kept&tag=1", FORM)
    assert (404, "No such container: gone") == (status, json.loads(body)["message"])
    assert 204 == (await ask(house, "POST", "/containers/best/kill", b"signal=KILL", FORM))[0]


async def test_other_bodies_are_no_parameters(house: House) -> None:
    ref = await create(house, "sleep", "100")
    for kind in ("text/plain", "application/json", "application/octet-stream"):
        status = (
            await ask(house, "POST", f"/containers/{ref}/rename", b"name=other", f"Content-Type: {kind}\r\n")
        )[0]
        assert 400 == status
    # what takes JSON says so, and an archive is one, whatever curl calls it
    status, _, body = await ask(house, "POST", "/containers/create", b'{"Image": "busybox"}', FORM)
    assert (400, True) == (status, b"must be 'application/json'" in body)
    status, _, body = await ask(house, "POST", "/images/load", b"name=x", FORM)
    assert b"name=x" not in body
    assert status in (200, 400)
    status, _, body = await ask(house, "POST", "/images/create", b"fromImage=UPPER&tag=x", FORM)
    assert b"must be lowercase" in body
