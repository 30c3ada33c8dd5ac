"""Repositories of git as the daemon fetches them: by git's own protocol, and from a plain web server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from insula.build.context import receive_context
from insula.build.git import _UID, fetch_repository, parse_git
from insula.errors import InvalidRequest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
]

TIME = 1_600_000_000


def git(directory: Path, *words: str) -> str:
    environment = {
        **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_DATE": f"{TIME} +0000",
        "GIT_COMMITTER_DATE": f"{TIME} +0000",
        **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip
    argv = ["git", "-C", str(directory), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=environment).stdout.strip()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good.git` with two commits, a tag and a branch; `bad.git` with a submodule that is a host's directory."""
    place = tmp_path_factory.mktemp("repositories")
    source = place / "source"
    (source / "sub").mkdir(parents=True)
    git(source, "init", "-q", "-b", "main")
    (source / "Dockerfile").write_text("FROM scratch\n")
    (source / "sub" / "Dockerfile").write_text("FROM below\n")
    (source / "run").write_text("old")
    (source / "run").chmod(0o755)
    (source / "out").symlink_to("/etc/passwd")
    git(source, "add", ".")
    git(source, "commit", "-qm", "one")
    git(source, "tag", "v1")
    (source / "run").write_text("new")
    git(source, "commit", "-qam", "two")
    git(source, "branch", "other")
    git(place, "clone", "-q", "--bare", "source", "good.git")
    git(place / "good.git", "update-server-info")
    module = f'[submodule "m"]\n\tpath = m\n\turl = file://{place}/good.git\n'
    (source / ".gitmodules").write_text(module)
    head = git(source, "rev-parse", "HEAD")
    git(source, "update-index", "--add", "--cacheinfo", f"160000,{head},m")
    git(source, "add", ".gitmodules")
    git(source, "commit", "-qm", "bad")
    git(place, "clone", "-q", "--bare", "source", "bad.git")
    return place


@pytest.fixture(scope="module")
def by_git(repositories: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [
        "git",
        "daemon",
        "--listen=127.0.0.1",
        f"--port={port}",
        f"--base-path={repositories}",
        "--export-all",
    ]
    with subprocess.Popen(
        [*argv, str(repositories)], stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        while True:
            assert child.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"git://127.0.0.1:{port}"
        os.killpg(child.pid, 15)


@pytest.fixture(scope="module")
def by_web(repositories: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(repositories))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def fetched(address: str, place: Path, *, keep_git: bool = False) -> Path:
    """What a build is given of it."""
    (place / "found").mkdir()
    await fetch_repository(parse_git(address), str(place / "found"), str(place / "git"), keep_git=keep_git)
    assert not (place / "git").exists()
    return place / "found"


@pytest.mark.parametrize(("fragment", "run"), [("", "new"), ("#v1", "old"), ("#SHORT", "old")])
async def test_what_is_asked_for_is_checked_out(
    repositories: Path, by_git: str, tmp_path: Path, fragment: str, run: str
) -> None:
    old = git(repositories / "good.git", "rev-parse", "v1^{commit}")
    fragment = fragment.replace("SHORT", old[:9])
    found = await fetched(f"{by_git}/good.git{fragment}", tmp_path)
    assert {"Dockerfile", "out", "run", "sub"} == {path.name for path in found.iterdir()}
    status = (found / "run").stat()
    assert (run, 0o755, 0, TIME) == (
        (found / "run").read_text(), status.st_mode & 0o777, status.st_uid, int(status.st_mtime),
    )  # fmt: skip
    assert TIME == int((found / "sub").stat().st_mtime)
    assert "/etc/passwd" == os.readlink(found / "out")


async def test_a_web_server_will_do(by_web: str, tmp_path: Path) -> None:
    found = await fetched(f"{by_web}/good.git#v1:sub", tmp_path, keep_git=True)
    assert {"Dockerfile"} == {path.name for path in found.iterdir()}


async def test_the_history_is_kept_when_it_is_asked_for(by_git: str, tmp_path: Path) -> None:
    found = await fetched(f"{by_git}/good.git", tmp_path, keep_git=True)
    assert "two" == git(found, "-c", "safe.directory=*", "log", "-1", "--format=%s")


async def test_what_is_not_there_is_said(by_git: str, tmp_path: Path) -> None:
    for number, (address, why) in enumerate(
        (("none.git", "unable to clone"), ("good.git#none", "no none in it"))
    ):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(InvalidRequest, match=why):
            await fetched(f"{by_git}/{address}", tmp_path / str(number))


async def test_a_repository_does_not_reach_the_hosts_files(by_git: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="transport 'file' not allowed"):
        await fetched(f"{by_git}/bad.git", tmp_path)


async def test_nothing_of_it_outlives_the_build(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = parse_git(f"git://127.0.0.1:{server.getsockname()[1]}/silent.git")
        found = tmp_path / "found"
        found.mkdir()
        cloning = asyncio.create_task(
            fetch_repository(address, str(found), str(tmp_path / "git"), keep_git=False)
        )
        server.setblocking(False)
        client, _ = await asyncio.get_running_loop().sock_accept(server)
        with client:
            assert await asyncio.to_thread(running_as_git)
            cloning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cloning
            assert b"" == await asyncio.wait_for(end_of(client), 20)
        assert not (tmp_path / "git").exists()


async def end_of(client: socket.socket) -> bytes:
    """What comes when whoever holds the other end is gone."""
    client.setblocking(False)
    while await asyncio.get_running_loop().sock_recv(client, 4096):
        pass
    return b""


def running_as_git() -> bool:
    """Whether somebody runs as the user that owns nothing."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if f"\nUid:\t{_UID}\t" in path.read_text():
                return True
    return False


async def nothing():  # type: ignore[no-untyped-def]
    return
    yield


async def test_a_context_that_the_daemon_clones(by_git: str, tmp_path: Path) -> None:
    context = await receive_context(
        nothing(), str(tmp_path), dockerfile="Dockerfile", remote=f"{by_git}/good.git#:sub"
    )
    assert b"FROM below\n" == context.dockerfile
    assert ["context"] == os.listdir(tmp_path)
    (tmp_path / "context" / "Dockerfile").unlink()
    (tmp_path / "context").rmdir()
    with pytest.raises(InvalidRequest, match="no directory out"):
        await receive_context(
            nothing(), str(tmp_path), dockerfile="Dockerfile", remote=f"{by_git}/good.git#:out/none"
        )


@pytest.mark.parametrize(
    "address",
    [
        "git@host:repo",
        "ssh://host/repo",
        "file:///etc",
        "https://h/r.git#--upload-pack=x",
        "http://h/r\n.git",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_git(address)


def test_an_address_has_parts() -> None:
    parsed = parse_git("github.com/a/b.git#main:/dir/x/")
    assert ("https://github.com/a/b.git", "main", "dir/x") == (parsed.url, parsed.ref, parsed.directory)
