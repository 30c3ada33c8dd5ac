"""docker-py in both isolations: what scripts do, answered as dockerd answers."""

from __future__ import annotations

import gc
import io
import json
import socket
import struct
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageLoadError, ImageNotFound, NotFound

from rig import IMAGE, Daemon

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # docker-py leaves the sockets of its streams to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Here and now, where it is no error, and not in some later test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    one = docker.DockerClient(base_url=daemon.host, timeout=120)
    yield one
    one.close()


@pytest.fixture(scope="module", params=["process", pytest.param("vm", marks=pytest.mark.vm)])
def long(client: docker.DockerClient, request: pytest.FixtureRequest) -> Iterator[Any]:
    """One instance that stays, for the tests that only look at it or run something in it."""
    script = (
        "mkdir -p /d/sub; echo a >/d/a; ln -s a /d/l; ln -s /d /dl; touch /etc/new; echo up; exec sleep 1000"
    )
    one = client.containers.run(
        IMAGE,
        ["sh", "-c", script],
        detach=True,
        isolation=request.param,
        name=f"long-{request.param}",
        labels={"side": request.param, "who": "docker-py"},
        environment={"COLOUR": "red"},
        stop_signal="KILL",
        mem_limit="200m",
        tmpfs={"/scratch": "size=1m"},
        hostname="island",
        working_dir="/work/here",
        user="0",
        ports={"80/tcp": None},
    )
    assert b"up" in next(iter(one.logs(stream=True, follow=True)))
    yield one
    one.remove(force=True)


def archive_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = len(text), 0o640, 7
            tar.addfile(member, io.BytesIO(text))
    return buffer.getvalue()


def members(pieces: Iterator[bytes]) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return {member.name: member for member in tar}


def refused(status: int, match: str) -> Any:
    class Refusal:
        def __enter__(self) -> None:
            self.caught = pytest.raises(APIError, match=match)
            self.info = self.caught.__enter__()

        def __exit__(self, *exc: Any) -> bool | None:
            result = self.caught.__exit__(*exc)
            assert status == self.info.value.response.status_code
            return result

    return Refusal()


def read_all(sock: Any) -> bytes:
    data = b""
    while piece := sock.recv(4096):
        data += piece
    return data


def test_run_gives_the_output_or_raises(client: docker.DockerClient, isolation: str) -> None:
    script = ["sh", "-c", "echo out; echo why >&2; exit 3"]
    with pytest.raises(ContainerError) as caught:
        client.containers.run(IMAGE, script, remove=True, isolation=isolation)
    assert (3, b"why\n") == (caught.value.exit_status, caught.value.stderr)


def test_exec_outputs_codes_and_places(long: Any) -> None:
    def run(*words: Any, **options: Any) -> tuple[int, Any]:
        done = long.exec_run(*words, **options)
        return done.exit_code, done.output

    assert (0, b"hi\n") == run("echo hi")
    assert (7, b"") == run(["sh", "-c", "exit 7"])
    assert (137, b"") == run(["sh", "-c", "kill -9 $$"])
    assert (0, (b"o\n", b"e\n")) == run(["sh", "-c", "echo o; echo e >&2"], demux=True)
    assert (0, b"/etc\n") == run("pwd", workdir="/etc")
    assert (0, b"/work/here\n") == run("pwd")
    assert (0, b"1000\n50 1000\n") == run(
        ["sh", "-c", "id -u; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ' | sed 's/ $/\\n/'"], user="user"
    )
    code, output = run("env", environment={"Q": "1"})
    assert code == 0
    assert b"Q=1\n" in output
    assert b"COLOUR=red\n" in output
    assert b"HOSTNAME=island\n" in output
    assert (0, b"/dev/pts") == (run("tty", tty=True)[0], run("tty", tty=True)[1][:8])
    assert 126 == run("no-such-program")[0]
    assert 126 == run("/etc/plain")[0]
    assert 126 == run("pwd", workdir="/nowhere")[0]


def test_exec_streams_sockets_and_sizes(client: docker.DockerClient, long: Any) -> None:
    pieces = long.exec_run(["sh", "-c", "echo 1; echo 2"], stream=True).output
    assert b"1\n2\n" == b"".join(pieces)
    sock = long.exec_run("cat", stdin=True, socket=True).output._sock
    sock.sendall(b"there and back")
    sock.shutdown(socket.SHUT_WR)
    assert b"there and back" == read_all(sock)[8:]
    made = client.api.exec_create(long.id, "sh", stdin=True, tty=True)["Id"]
    sock = client.api.exec_start(made, tty=True, socket=True)._sock
    client.api.exec_resize(made, 22, 66)
    sock.sendall(b"stty size; exit 4\n")
    assert b"22 66" in read_all(sock)
    seen = client.api.exec_inspect(made)
    assert (4, False, long.id) == (seen["ExitCode"], seen["Running"], seen["ContainerID"])
    assert f"Error: Exec command {made} has already run" in client.api.exec_start(made).decode()
    with refused(409, "has already run"):
        client.api.exec_start(made, detach=True)
    with pytest.raises(NotFound, match="No such exec instance"):
        client.api.exec_inspect("0" * 64)


def test_archives_out_and_in(long: Any) -> None:
    pieces, stat = long.get_archive("/d")
    assert ("d", True) == (stat["name"], bool(stat["mode"] >> 31))
    assert {"d", "d/a", "d/l", "d/sub"} == set(members(pieces))
    pieces, stat = long.get_archive("/dl")
    assert ("/d", "/d") == (stat["linkTarget"], members(pieces)["dl"].linkname)
    pieces, stat = long.get_archive("/d/l")
    assert ("/d/a", "a") == (stat["linkTarget"], members(pieces)["l"].linkname)
    assert {".", "./a", "./l", "./sub"} == set(members(long.get_archive("/dl/.")[0]))
    assert long.put_archive("/dl", archive_of(new=b"12345"))
    assert b"640 7 5\n" == long.exec_run(["stat", "-c", "%a %u %s", "/d/new"]).output
    assert 0 == long.exec_run("rm /d/new").exit_code
    with pytest.raises(NotFound, match="Could not find the file /nope in container"):
        long.get_archive("/nope")
    with pytest.raises(NotFound):
        long.put_archive("/nope", archive_of(x=b""))
    with refused(400, "not a directory"):
        long.put_archive("/d/a", archive_of(x=b""))
    with refused(400, "/d/a/: not a directory"):
        long.get_archive("/d/a/")
    with refused(400, "outside"):
        long.put_archive("/d", archive_of(**{"../escaped": b""}))


def test_diff_commit_and_export_leave_out_the_engines_own(client: docker.DockerClient, long: Any) -> None:
    changes = {change["Path"]: change["Kind"] for change in long.diff()}
    assert {"/d": 1, "/d/a": 1, "/etc": 0, "/etc/new": 1}.items() <= changes.items()
    assert not {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/proc", "/dev"} & set(changes)
    image = long.commit(
        "from-py", "1", author="me", message="said", conf={"Env": ["X=1"]}, changes=['CMD ["cat", "/d/a"]']
    )
    try:
        assert ["from-py:1"] == image.tags
        assert ("me", "said") == (image.attrs["Author"], image.attrs["Comment"])
        assert ["COLOUR=red", "X=1"] == sorted(e for e in image.attrs["Config"]["Env"] if e[:4] != "PATH")
        assert "said" == image.history()[0]["Comment"]
        with tarfile.open(fileobj=io.BytesIO(b"".join(image.save()))) as tar:
            manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            layer = tar.extractfile(manifest[0]["Layers"][-1])
            assert layer is not None
            with tarfile.open(fileobj=layer) as inner:
                names = {name.strip("/") for name in inner.getnames()}
        assert {"d/a", "etc/new"} <= names
        assert not {"etc/hosts", "proc", "dev"} & names
        assert b"a\n" == client.containers.run("from-py:1", remove=True)
    finally:
        client.images.remove(image.id, force=True)
    exported = {name.strip("./") for name in members(long.export())}
    assert {"bin/sh", "d/a", "etc/passwd", "dockerenv", "etc/mtab"} <= exported
    assert (
        b"/proc/mounts\n/.dockerenv\n" == long.exec_run("sh -c 'readlink /etc/mtab; ls /.dockerenv'").output
    )


def test_stats_tell_what_a_quota_has_held_back(client: docker.DockerClient, isolation: str) -> None:
    one = client.containers.run(
        IMAGE, ["sh", "-c", "while :; do :; done"], detach=True, isolation=isolation, nano_cpus=300_000_000
    )
    seen = (sample["cpu_stats"]["throttling_data"] for sample in one.stats(decode=True))
    held = next(data for data in seen if data["throttled_time"] > 0)  # counted when a period's hold ends
    assert held["periods"] >= held["throttled_periods"] > 0
    one.remove(force=True)


def test_top_and_stats(long: Any) -> None:
    table = long.top()
    assert {"PID", "CMD"} <= set(table["Titles"])
    assert any("sleep 1000" in " ".join(row) for row in table["Processes"])
    table = long.top(ps_args="-o pid,comm")
    assert ["PID", "COMMAND"] == table["Titles"]
    assert any("sleep" in row[-1] for row in table["Processes"])
    wide = long.top(ps_args="aux")
    assert ["PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START"] == wide["Titles"][1:9]
    assert all(0 < int(row[5]) <= int(row[4]) and row[7][0] in "SR" for row in wide["Processes"])
    once = long.stats(stream=False)
    assert once["memory_stats"]["usage"] > 0
    assert 200 << 20 == once["memory_stats"]["limit"]
    assert once["name"] == f"/{long.name}"
    following = long.stats(decode=True)
    next(following)
    second = next(following)
    assert second["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert second["cpu_stats"]["system_cpu_usage"] > second["precpu_stats"]["system_cpu_usage"]
    following.close()


def test_what_inspect_says(long: Any) -> None:
    long.reload()
    config, host = long.attrs["Config"], long.attrs["HostConfig"]
    assert ("running", "island", "/work/here") == (long.status, config["Hostname"], config["WorkingDir"])
    assert (host["Isolation"], 200 << 20) == (long.labels["side"], host["Memory"])
    assert {"/scratch": "size=1m"} == host["Tmpfs"]
    assert long.ports["80/tcp"][0]["HostPort"].isdecimal()


def test_lists_and_their_filters(client: docker.DockerClient, long: Any) -> None:
    side = long.labels["side"]

    def listed(**filters: Any) -> bool:
        return long.id in [one.id for one in client.containers.list(all=True, filters=filters)]

    for matching in (
        {"status": "running"}, {"label": f"side={side}"}, {"label": ["side", "who=docker-py"]},
        {"name": f"^/long-{side}$"}, {"name": "long"}, {"id": long.id[:10]}, {"ancestor": IMAGE},
        {"health": "none"}, {"is-task": "false"}, {"network": "bridge"}, {"isolation": side},
        {"status": ["exited", "running"]},
    ):  # fmt: skip
        assert listed(**matching), matching
    for other in (
        {"status": "exited"}, {"label": "side=other"}, {"name": "nothing"}, {"ancestor": "none"},
        {"exited": "0"}, {"before": long.name}, {"since": long.name}, {"volume": "none"}, {"publish": "81"},
    ):  # fmt: skip
        assert not listed(**other), other
    for wrong in ({"status": "odd"}, {"health": "odd"}, {"odd": "x"}, {"exited": "x"}):
        with refused(400, "filter"):
            listed(**wrong)


def test_a_life(client: docker.DockerClient, isolation: str, name: str) -> None:
    began = time.time()
    one = client.containers.create(
        IMAGE, ["sh", "-c", "echo up; sleep 1000"], name=name, isolation=isolation, stop_signal="KILL"
    )
    other = client.containers.create(IMAGE, "true", name=f"{name}-other")
    try:
        for refusing in (one.pause, one.top, lambda: one.exec_run("true"), one.kill):
            with refused(409, "is not running"):
                refusing()
        one.stop()  # 304, as docker-py takes it
        one.start()
        one.start()
        one.pause()
        assert "(Paused)" in client.api.containers(filters={"name": name})[0]["Status"]
        with refused(409, "paused"):
            one.exec_run("true")
        with refused(409, "paused"):
            one.remove()
        one.unpause()
        with refused(409, "is not paused"):
            one.unpause()
        with refused(409, "already in use"):
            one.rename(other.name)
        one.rename(f"{name}-new")
        with refused(409, "running"):
            one.remove()
        with refused(400, "(?i)invalid signal"):
            one.kill("ODD")
        one.update(restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
        one.update(restart_policy={"Name": "no"})
        limit = time.monotonic() + 60
        while one.logs() != b"up\n":
            assert time.monotonic() < limit
        one.kill()
        assert 137 == one.wait()["StatusCode"]
        one.reload()
        assert (f"{name}-new", "exited", 137) == (one.name, one.status, one.attrs["State"]["ExitCode"])
        assert [] != client.containers.list(all=True, filters={"exited": "137", "name": name})
        assert b"up\n" == one.logs()
        one.remove()
        with pytest.raises(NotFound, match="No such container"):
            one.start()
    finally:
        other.remove(force=True)
    seen = client.api._get(
        client.api._url("/events"),
        params={
            "since": f"{began:.6f}",
            "until": f"{time.time():.6f}",
            "filters": json.dumps({"container": [one.id], "type": ["container"]}),
        },
    )
    actions = [json.loads(line)["Action"] for line in seen.text.splitlines()]
    assert [
        "create", "start", "pause", "unpause", "rename", "update", "update", "kill", "die", "destroy",
    ] == actions  # fmt: skip


def demultiplex(data: bytes) -> dict[int, bytes]:
    """What came on each stream (https://docs.docker.com/reference/api/engine/: attach, stream format)."""
    found: dict[int, bytes] = {}
    while data:
        stream, length = struct.unpack_from(">B3xI", data)
        found[stream] = found.get(stream, b"") + data[8 : 8 + length]
        data = data[8 + length :]
    return found


def test_attach_sockets_and_logs(client: docker.DockerClient, isolation: str) -> None:
    script = "read line; echo got $line >&2; cat; echo done; printf unfinished"
    one = client.containers.create(IMAGE, ["sh", "-c", script], stdin_open=True, isolation=isolation)
    try:
        sock = one.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        one.start()
        sock._sock.sendall(b"first\nrest\n")
        sock._sock.shutdown(socket.SHUT_WR)
        # two streams: whose word comes first is not ours to say
        assert {1: b"rest\ndone\nunfinished", 2: b"got first\n"} == demultiplex(read_all(sock._sock))
        assert 0 == one.wait()["StatusCode"]
        assert b"got first\n" == one.logs(stdout=False)
        assert b"rest\ndone\nunfinished" == one.logs(stderr=False)
        assert b"unfinished" == one.logs(stderr=False, tail=1)
        assert b"" == one.logs(tail=0)
        assert one.logs() == b"".join(one.logs(stream=True, follow=True))
        stamp, _, text = one.logs(stderr=False, timestamps=True).splitlines()[0].partition(b" ")
        assert (b"rest", b"Z") == (text, stamp[-1:])
        assert b"" == one.logs(until=1) == one.logs(since=int(time.time()) + 60)
    finally:
        one.remove(force=True)


def test_what_cannot_be_made(client: docker.DockerClient) -> None:
    def run(**options: Any) -> None:
        client.containers.run(IMAGE, "true", remove=True, **options)

    for match, options in (
        ("must be absolute|absolute path", {"working_dir": "here"}),
        ("Invalid container name", {"name": "a/b"}),
        ("(?i)minimum memory", {"mem_limit": "1k"}),
        ("FOO", {"cap_add": ["FOO"]}),
        ("invalid port specification", {"ports": {"80/tcp": 99999}}),
        ("invalid mode: zz", {"volumes": {"/tmp": {"bind": "/x", "mode": "zz"}}}),
        ("unable to find user nobodyx", {"user": "nobodyx"}),
        ("isolation", {"isolation": "jail"}),
    ):  # fmt: skip
        with refused(400, match):
            run(**options)
    with pytest.raises(NotFound, match="network no-such-net not found"):
        run(network="no-such-net")
    with pytest.raises(ImageNotFound, match="No such image"):
        client.api.create_container("no-such-image:1", "true")
    with pytest.raises(NotFound, match="No such container"):
        client.containers.get("no-such")


def test_images(client: docker.DockerClient) -> None:
    image = client.images.get(IMAGE)
    assert image.tag("py/one", "1")
    try:
        assert 1 == len(client.images.list("py/one"))
        assert 1 == len(client.images.list(filters={"reference": "py/*"}))
        data = b"".join(client.images.get("py/one:1").save(named="py/one:1"))
        assert [{"Untagged": "py/one:1"}] == client.api.remove_image("py/one:1")
        assert image.id in [one.id for one in client.images.load(data)]
        assert "py/one:1" in client.images.get("py/one:1").tags
    finally:
        client.images.remove("py/one:1")
    with pytest.raises(ImageNotFound, match="No such image: py/one:1"):
        client.images.get("py/one:1")
    with pytest.raises(ImageLoadError):
        client.images.load(b"garbage" * 1000)
    with refused(400, "not a valid change command"):
        client.api.import_image_from_data(archive_of(a=b"1"), repository="py", changes=["ODD x"])
    client.api.import_image_from_data(archive_of(a=b"1"), repository="py/imp", tag="1", changes=['CMD ["x"]'])
    try:
        imported = client.images.get("py/imp:1")
        assert (["x"], "Imported from -") == (imported.attrs["Config"]["Cmd"], imported.attrs["Comment"])
    finally:
        client.images.remove("py/imp:1")


@pytest.mark.parametrize(
    ("name", "why"), [("nohost.invalid/x", "lookup nohost.invalid"), ("127.0.0.1:1/x", "refused")]
)
def test_a_registry_that_is_not_there_fails_at_once(client: docker.DockerClient, name: str, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(APIError, match=why):
        client.images.pull(name, "1")
    assert time.monotonic() - began < 3


def test_the_engine_itself(client: docker.DockerClient) -> None:
    assert client.ping()
    info, version = client.info(), client.version()
    assert (info["Isolation"], info["OSType"], info["Swarm"]["LocalNodeState"]) == (
        "process",
        "linux",
        "inactive",
    )
    assert version["MinAPIVersion"] == "1.24"
    assert {"Images", "Containers", "Volumes", "LayersSize"} <= set(client.df())
    with pytest.raises(NotFound):
        client.volumes.get("no-such")
    volume = client.volumes.create("py-volume", labels={"a": "b"})
    one = client.containers.create(IMAGE, "true", volumes=["py-volume:/v"])
    try:
        with refused(409, "volume is in use"):
            volume.remove()
    finally:
        one.remove()
        volume.remove()
