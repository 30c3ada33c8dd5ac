"""The stock docker client against the API, with the fake backend behind the engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from api_wire import ask, dial
from fake_house import House, start_house
from insula import __version__
from integration.images.fake_registry import make_tar

pytestmark = pytest.mark.timeout(60)
_TAR = "Content-Type: application/x-tar\r\n"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started


async def test_run_shows_output_and_errors_apart(house: House) -> None:
    done = await house.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.code, done.out, done.err) == (3, b"out\n", "err\n")
    assert house.engine.list(all=True) == ()


async def test_run_round_trips_input_until_its_end(house: House) -> None:
    data = bytes(range(256)) * 4096 * 64
    done = await house.docker("run", "--rm", "-i", "busybox", "cat", stdin=data)
    assert (done.code, done.err) == (0, "")
    assert len(done.out) == len(data)
    same = done.out == data  # compared here: pytest would explain 64 MiB
    assert same


async def test_output_larger_than_any_buffer_survives_a_workload_that_reads_nothing(house: House) -> None:
    done = await house.docker("run", "--rm", "-i", "busybox", "seq", "200000", stdin=b"x" * 8_000_000)
    same = done.out == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert same


async def test_run_of_a_missing_program_exits_with_127_and_leaves_nothing(house: House) -> None:
    done = await house.docker("run", "--rm", "busybox", "nope")
    assert done.code == 127
    assert 'exec: "nope": executable file not found in $PATH' in done.err
    assert house.engine.list(all=True) == ()


async def test_exec_of_a_missing_program_exits_with_126(house: House) -> None:
    """As Docker's before 28."""
    await house.ok("run", "-d", "--name", "web", "busybox", "sleep", "1000")
    done = await house.docker("exec", "web", "nope")
    assert done.code == 126
    assert done.out.startswith(b"OCI runtime exec failed")


async def test_exec_passes_input_output_and_the_exit_code(house: House) -> None:
    await house.ok("run", "-d", "--name", "web", "busybox", "sleep", "1000")
    assert await house.ok("exec", "-i", "web", "cat", stdin=b"through\n") == "through"
    assert (await house.docker("exec", "web", "sh", "-c", "exit 5")).code == 5
    assert await house.ok("exec", "-e", "A=b", "-w", "/tmp", "web", "pwd") == "/tmp"


async def test_ps_tells_state_ports_and_filters(house: House) -> None:
    await house.ok(
        "run", "-d", "--name", "web", "-p", "8080:80", "--label", "tier=front", "busybox", "sleep", "99"
    )
    await house.docker("run", "--name", "job", "busybox", "sh", "-c", "exit 4")
    listed = await house.ok("ps", "-a", "--format", "{{.Names}}|{{.State}}|{{.Status}}|{{.Ports}}")
    web = next(line for line in listed.splitlines() if line.startswith("web"))
    job = next(line for line in listed.splitlines() if line.startswith("job"))
    assert re.fullmatch(r"web\|running\|Up .*\|8080/tcp, 0\.0\.0\.0:8080->80/tcp", web)
    assert re.fullmatch(r"job\|exited\|Exited \(4\) .* ago\|", job)
    assert await house.ok("port", "web") == "80/tcp -> 0.0.0.0:8080"

    async def names(*filters: str) -> list[str]:
        words = [word for f in filters for word in ("-f", f)]
        return (await house.ok("ps", "-a", "--format", "{{.Names}}", *words)).split()

    assert await names("status=exited") == ["job"]
    assert await names("exited=4") == ["job"]
    assert await names("label=tier=front") == ["web"]
    assert await names("name=^/web$") == ["web"]
    assert await names("publish=8080") == await names("expose=80") == ["web"]
    assert await names("publish=80") == []
    assert await names("ancestor=busybox", "since=web") == ["job"]
    for hidden in ("since=web", "exited=4"):  # what does not run is shown with -a only
        assert await house.ok("ps", "-q", "-f", hidden) == ""
    await house.ok("tag", "busybox", "was:mine")
    await house.ok("run", "-d", "--name", "moved", "was:mine", "sleep", "99")
    shown = ("ps", "-f", "name=moved", "--no-trunc", "--format", "{{.Image}}")
    assert await house.ok(*shown) == "was:mine"
    await house.ok("rmi", "was:mine")
    assert await house.ok(*shown) == await house.ok("inspect", "--format", "{{.Image}}", "moved")
    assert (
        (await house.docker("ps", "-f", "nothing=1"))
        .err.strip()
        .startswith("Error response from daemon: invalid filter 'nothing'")
    )


async def test_inspect_has_the_shape_that_templates_expect(house: House) -> None:
    await house.ok(
        "create", "--name", "web", "--isolation", "vm", "-m", "64m", "--cap-add", "CAP_NET_ADMIN",
        "-e", "A=b", "-v", "/srv:/data:ro", "--tmpfs", "/run:size=1m", "--restart", "on-failure:3",
        "busybox", "sleep", "1",
    )  # fmt: skip
    document = json.loads(await house.ok("inspect", "web"))[0]
    host = document["HostConfig"]
    assert document["State"]["Status"] == "created"
    assert (document["Path"], document["Args"]) == ("sleep", ["1"])
    assert host["Isolation"] == "vm"
    assert (host["Memory"], host["CapAdd"]) == (64 * 2**20, ["CAP_NET_ADMIN"])
    assert host["Binds"] == ["/srv:/data:ro"]
    assert host["Tmpfs"] == {"/run": "size=1m"}
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert "A=b" in document["Config"]["Env"]
    assert document["Config"]["Labels"] == {"from": "image"}


async def test_logs_by_tail_time_and_stream(house: House) -> None:
    await house.docker("run", "--name", "job", "busybox", "sh", "-c", "echo one; echo two; echo err >&2")
    done = await house.docker("logs", "job")
    assert (done.out, done.err) == (b"one\ntwo\n", "err\n")
    assert (await house.docker("logs", "--tail", "2", "job")).out == b"two\n"
    stamped = (await house.docker("logs", "-t", "job")).out.splitlines()[0]
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z one", stamped)
    assert (await house.docker("logs", "--since", "2030-01-01", "job")).out == b""


async def test_logs_follow_until_the_end(house: House) -> None:
    await house.ok("run", "-d", "--name", "web", "busybox", "sh", "-c", "echo said; sleep 1000")
    following = asyncio.create_task(house.docker("logs", "-f", "web"))
    await house.ok("kill", "web")
    assert (await following).out == b"said\n"


async def test_life_cycle(house: House) -> None:
    await house.ok("run", "-d", "--name", "web", "busybox", "sleep", "1000")
    await house.ok("pause", "web")
    assert (await house.docker("exec", "web", "true")).code == 1
    await house.ok("unpause", "web")
    await house.ok("rename", "web", "site")
    await house.ok("restart", "-t", "0", "site")
    waiting = asyncio.create_task(house.ok("wait", "site"))
    await house.ok("kill", "site")
    assert await waiting == "137"
    await house.ok("start", "site")
    await house.ok("stop", "-t", "0", "site")
    assert (await house.docker("rm", "site")).code == 0
    assert "No such container: site" in (await house.docker("start", "site")).err


async def test_copying_in_and_out(house: House, tmp_path: Path) -> None:
    await house.ok("run", "-d", "--name", "web", "busybox", "sleep", "1000")
    (tmp_path / "note").write_text("written outside\n")
    await house.ok("cp", str(tmp_path / "note"), "web:/tmp/")
    assert await house.ok("exec", "web", "cat", "/tmp/note") == "written outside"
    await house.ok("cp", "web:/tmp/note", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "written outside\n"
    assert (await house.ok("diff", "web")).splitlines() == ["C /tmp", "A /tmp/note"]


async def test_events_tell_a_life(house: House) -> None:
    await house.ok("run", "--rm", "--name", "job", "busybox", "true")
    told = await house.ok(
        "events",
        "--since",
        "1h",
        "--until",
        f"{time.time() + 0.2:.9f}",
        "--filter",
        "type=container",
        "--format",
        "{{.Action}}",
    )
    assert told.split() == ["create", "attach", "start", "die", "destroy"]


async def test_what_is_not_supported_is_refused_by_name(house: House) -> None:
    for words, name in (
        (("--storage-opt", "size=1G"), "StorageOpt"),
        (("--gpus", "all"), "DeviceRequests"),
    ):
        done = await house.docker("create", *words, "busybox")
        assert done.code == 1, words
        assert name in done.err, words


async def test_docker_s_words_for_what_is_absent(house: House) -> None:
    assert "This node is not a swarm manager" in (await house.docker("node", "ls")).err
    assert (await house.docker("plugin", "ls")).code == 0
    assert "not supported" in (await house.docker("search", "x")).err
    assert (await house.ok("network", "ls", "--format", "{{.Name}}")).split() == ["bridge", "host", "none"]


async def test_volumes(house: House) -> None:
    await house.ok("volume", "create", "--label", "a=b", "data")
    assert await house.ok("volume", "ls", "-q", "-f", "label=a=b") == "data"
    await house.ok("create", "--name", "user", "-v", "data:/data:nocopy", "busybox")
    assert (await house.docker("volume", "rm", "data")).code == 1
    assert await house.ok("volume", "ls", "-q", "-f", "dangling=true") == ""
    await house.ok("rm", "user")
    await house.ok("volume", "rm", "data")


async def test_images(house: House) -> None:
    await house.ok("tag", "busybox", "other:1")
    assert "other:1" in await house.ok(
        "images", "--format", "{{.Repository}}:{{.Tag}}", "-f", "reference=oth*"
    )
    assert await house.ok("rmi", "other:1") == "Untagged: other:1"
    assert (await house.ok("history", "--format", "{{.CreatedBy}}", "busybox")) == "make"
    assert "No such image" in (await house.docker("history", "nosuch")).err


async def test_load_is_quiet_when_asked_to_be(house: House, tmp_path: Path) -> None:
    await house.ok("import", "-", "real", stdin=make_tar({"note": b"x"}))
    await house.ok("save", "-o", str(tmp_path / "archive"), "real")
    archive = (tmp_path / "archive").read_bytes()
    for query, told in (("", True), ("?quiet=1", False)):
        await house.ok("rmi", "real")
        answer = (await ask(house, "POST", f"/images/load{query}", archive, _TAR))[2]
        assert b"Loaded image: real:latest" in answer
        assert told == (b'"status":' in answer), query


async def test_load_ends_also_for_who_leaves_with_its_first_words(house: House, tmp_path: Path) -> None:
    """docker-squash, which drops docker-py's generator.  What has not come whole is nothing."""
    await house.ok("import", "-", "real", stdin=make_tar({"note": b"x" * 500_000}))
    await house.ok("save", "-o", str(tmp_path / "archive"), "real")
    await house.ok("rmi", "real")
    archive = (tmp_path / "archive").read_bytes()
    head = f"POST /images/load HTTP/1.1\r\nHost: x\r\n{_TAR}Content-Length: {len(archive)}\r\n\r\n".encode()
    async with dial(house) as listening:
        query = urlencode({"filters": '{"type": ["image"], "event": ["load"]}'})
        listening.writer.write(f"GET /events?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await listening.head()
        async with dial(house) as leaving:
            leaving.writer.write(head + archive[:-1000])
            await leaving.writer.drain()
        async with dial(house) as leaving:
            leaving.writer.write(head + archive)
            await leaving.head()
        told = await listening.reader.readuntil(b"}\n")
    assert '"load"' in told.decode()
    assert "real:latest" == await house.ok("images", "--format", "{{.Repository}}:{{.Tag}}", "real")


async def test_programs_that_want_a_certain_docker_are_let_in(house: House) -> None:
    """They compare the engine's version, not the API's; ours is what comes behind the sign."""
    said = await house.ok("version", "-f", "{{.Server.Version}} {{.Server.Platform.Name}}")
    assert f"27.5.1+insula.{__version__} insula" == said
    assert said.split()[0] == await house.ok("info", "-f", "{{.ServerVersion}}")


async def test_stats_once(house: House) -> None:
    await house.ok("run", "-d", "--name", "web", "busybox", "sleep", "1000")
    assert (
        await house.ok("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "web")
    ).startswith("web 1 1MiB /")


async def test_update_keeps_what_is_not_named(house: House) -> None:
    await house.ok("run", "-d", "--name", "web", "--cpus", "1", "busybox", "sleep", "1000")
    await house.ok("update", "-m", "64m", "--restart", "unless-stopped", "web")
    host = json.loads(await house.ok("inspect", "web"))[0]["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["RestartPolicy"]["Name"]) == (
        64 * 2**20,
        10**9,
        "unless-stopped",
    )
    assert "Minimum memory limit" in (await house.docker("update", "-m", "1m", "web")).err
