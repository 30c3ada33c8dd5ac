"""What client suites take for granted because Docker's containers have always been so; in both isolations."""

from __future__ import annotations

import gc
import io
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest
import requests
from docker.errors import NotFound

from rig import IMAGE, Daemon

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(240),
    # docker-py leaves the sockets of its streams to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    one = docker.DockerClient(base_url=daemon.host, timeout=120)
    yield one
    one.close()
    gc.collect()


@pytest.fixture(scope="module", params=["process", pytest.param("vm", marks=pytest.mark.vm)])
def box(client: docker.DockerClient, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An instance that stays, and has changed some files."""
    script = "mkdir /made; echo hello >/made/it; rm /bin/vi; echo more >>/etc/plain; echo up; exec sleep 1000"
    one = client.containers.run(IMAGE, ["sh", "-c", script], detach=True, isolation=request.param)
    assert b"up\n" == next(iter(one.logs(stream=True, follow=True)))
    yield one
    one.remove(force=True)


def one_file(name: str, text: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    return buffer.getvalue()


def unpacked(pieces: Iterator[bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return {m.name: (tar.extractfile(m) or io.BytesIO()).read() if m.isfile() else b"" for m in tar}


def test_after_run_the_first_command_has_done_its_work(client: docker.DockerClient, isolation: str) -> None:
    script = "echo hello >/it; trap 'echo hup; exit' HUP; echo said; while :; do sleep 0.1; done"

    def found() -> bool:
        one = client.containers.run(IMAGE, ["sh", "-c", script], detach=True, isolation=isolation)
        try:
            seen = tuple(one.exec_run("cat /it")), one.logs()
            one.kill("HUP")
            return seen == ((0, b"hello\n"), b"said\n") and one.wait(timeout=5)["StatusCode"] == 0
        except requests.exceptions.RequestException:  # the HUP came before the trap
            return False
        finally:
            one.remove(force=True)

    # a host that is much too busy may need longer than a start waits; it was never so in a VM, idle or not
    assert any(found() for _ in range(4))


def test_a_paused_one_takes_its_signals_when_it_goes_on(client: docker.DockerClient, isolation: str) -> None:
    """And knows then what time it is.  Anybody may ping and have low ports in there, too."""
    script = (
        "trap 'echo bye; exit 7' TERM; trap 'date +%s' HUP; cd /proc/sys/net/ipv4;"
        "cat ping_group_range ip_unprivileged_port_start; while :; do sleep 0.1; done"
    )
    one = client.containers.run(IMAGE, ["sh", "-c", script], detach=True, isolation=isolation)
    try:
        said = one.logs(stream=True, follow=True)
        assert b"0\t2147483647\n" == next(said)
        before = time.time()
        one.pause()
        one.kill("HUP")
        while time.time() < before + 2.5:
            time.sleep(0.1)
        assert "paused" == client.api.inspect_container(one.id)["State"]["Status"]
        one.stop(timeout=60)
        assert 7 == one.wait()["StatusCode"]
        low_port, then, bye = b"".join(said).split()
        assert (b"0", b"bye") == (low_port, bye)
        assert int(then) >= int(before) + 2
    finally:
        one.remove(force=True)


def test_a_diff_at_the_end_is_whole(client: docker.DockerClient, isolation: str) -> None:
    def changes() -> dict[str, int]:
        script = "mkdir /foo; echo xyzzy > /foo/bar"
        one = client.containers.run(IMAGE, ["sh", "-c", script], detach=True, isolation=isolation)
        try:
            return {change["Path"]: change["Kind"] for change in one.diff() or ()}
        finally:
            one.remove(force=True)

    # it may fail at no time; on a host that is much too busy it may be asked for before the first command
    assert any(changes() == {"/foo": 1, "/foo/bar": 1} for _ in range(4))


def test_diff_names_what_docker_names(box: Any) -> None:
    expected = {"/bin": 0, "/bin/vi": 2, "/etc/plain": 0, "/made": 1, "/made/it": 1}
    assert expected == {change["Path"]: change["Kind"] for change in box.diff()}


def test_dev_has_what_docker_puts_there(box: Any) -> None:
    listed = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert listed.split() == sorted(box.exec_run("ls /dev").output.decode().split())
    with pytest.raises(NotFound, match=f"Could not find the file /nope in container {box.id}"):
        box.get_archive("/nope")


def test_top_names_users_as_the_host_does(box: Any) -> None:
    assert {"root"} == {row[0] for row in box.top()["Processes"]}


def test_exec_output_is_framed_as_its_start_says(client: docker.DockerClient, box: Any) -> None:
    api = client.api
    made = api.exec_create(box.id, ["echo", "-n", "x"], tty=True)["Id"]
    assert b"x" == api.exec_start(made)  # by Docker's frames, of which docker-py strips the heads
    made = api.exec_create(box.id, ["echo", "-n", "x"], tty=True)["Id"]
    assert b"x" == api.exec_start(made, tty=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"user": "nobodyx"}, b"unable to find user nobodyx: no matching entries in passwd file"),
        ({"workdir": "/no"}, b'chdir to cwd ("/no") set in config.json failed: no such file'),
        (
            {"workdir": "/etc/plain"},
            b'chdir to cwd ("/etc/plain") set in config.json failed: not a directory',
        ),
    ],
)
def test_an_exec_that_cannot_start_says_why(box: Any, options: dict[str, str], said: bytes) -> None:
    done = box.exec_run("pwd", **options)
    assert said in done.output
    assert 126 == done.exit_code


def test_a_line_on_a_terminal_comes_whole(client: docker.DockerClient, isolation: str) -> None:
    one = client.containers.create(IMAGE, ["sh", "-c", "echo hello; sleep 1"], tty=True, isolation=isolation)
    try:
        output = one.attach(stream=True, logs=False)
        one.start()
        assert [b"hello\r\n"] == list(output)
    finally:
        one.remove(force=True)


def test_files_in_volumes_of_what_does_not_run(client: docker.DockerClient, isolation: str) -> None:
    script = ["sh", "-c", "cat /vol/in; echo out >/vol/out"]
    one = client.containers.create(IMAGE, script, volumes=["/vol"], isolation=isolation)
    try:
        assert one.put_archive("/vol", one_file("in", b"came in\n"))
        one.start()
        assert 0 == one.wait()["StatusCode"]
        assert b"came in\n" == one.logs()
        pieces, stat = one.get_archive("/vol/out")
        assert ("out", 4) == (stat["name"], stat["size"])
        assert {"out": b"out\n"} == unpacked(pieces)
        pieces, stat = one.get_archive("/vol")
        assert "vol" == stat["name"]
        assert {"vol": b"", "vol/in": b"came in\n", "vol/out": b"out\n"} == unpacked(pieces)
    finally:
        one.remove(force=True, v=True)


def test_commit_of_what_has_just_ended(client: docker.DockerClient, isolation: str) -> None:
    for _ in range(8 if isolation == "process" else 2):
        one = client.containers.create(IMAGE, ["touch", "/it"], isolation=isolation)
        try:
            one.start()
            client.images.remove(one.commit().id, force=True)
        finally:
            one.remove(force=True)


def test_the_kernels_own_files_are_not_copied(box: Any) -> None:
    """As dockerd has it: an empty directory, and nothing below."""
    with pytest.raises(NotFound, match="Could not find the file /proc/version"):
        box.get_archive("/proc/version")
    assert {"sys": b""} == unpacked(box.get_archive("/sys")[0])


@pytest.mark.parametrize("program", ["docker", "insula"])
def test_a_push_says_whereto_before_it_finds_nothing(daemon: Daemon, program: str) -> None:
    done = daemon.run_client(program, "push", "127.0.0.1:1/none:x")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert b"The push refers to repository [127.0.0.1:1/none]\n" in said
    assert said.rstrip().endswith(b"An image does not exist locally with the tag: 127.0.0.1:1/none")
