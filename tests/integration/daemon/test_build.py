"""Builds by real clients on a real daemon: the stock docker client and ours, RUN in both isolations."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rig import IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

POLL_S = 0.1
LIMIT_S = 120.0


def make_context(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return directory


def built(daemon: Daemon, client: str, *words: str, stdin: bytes | None = None) -> str:
    """What a build that works says."""
    done = daemon.run_client(client, "build", *words, stdin=stdin, timeout_s=240)
    assert done.returncode == 0, f"{done.stdout.decode()}{done.stderr.decode()}\n{daemon.log[-3000:]}"
    return done.stdout.decode()


def failing(daemon: Daemon, client: str, *words: str, stdin: bytes | None = None) -> tuple[int, str]:
    done = daemon.run_client(client, "build", *words, stdin=stdin, timeout_s=240)
    assert done.returncode != 0
    return done.returncode, done.stderr.decode()


def image_of(daemon: Daemon, name: str) -> Any:
    return json.loads(daemon.ok("image", "inspect", name))[0]


def tree(daemon: Daemon, image: str) -> dict[str, bytes]:
    """Regular files of an image and what is in them."""
    ident = daemon.ok("create", "--isolation", "process", image, "true")
    try:
        done = daemon.docker("export", ident)
    finally:
        daemon.ok("rm", "-v", ident)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return {m.name: (tar.extractfile(m) or io.BytesIO()).read() for m in tar if m.isreg()}


def names_of_layers(daemon: Daemon, image: str) -> set[str]:
    """Everything that any layer of an image has, by name."""
    found: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(daemon.docker("save", image).stdout)) as outer:
        for member in outer:
            data = (outer.extractfile(member) or io.BytesIO()).read() if member.isreg() else b""
            if data[257:262] == b"ustar":
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    found |= {inner.name for inner in layer}
    return found


def leftovers(daemon: Daemon) -> list[str]:
    """What builds keep while they run."""
    return [str(path) for root in ("run", "data") for path in (daemon.directory / root / "build").glob("*")]


WHOLE = f"""
ARG BASE
FROM ${{BASE}} AS one
ARG FOO=bar
ENV A="two words" B=$FOO
LABEL l=$B
WORKDIR /work
COPY . ./
RUN echo $FOO >foo && echo to stderr >&2
ONBUILD RUN touch /triggered
FROM one
COPY --from=one --chown=user /work/foo /foo
ADD a.tar /unpacked/
COPY <<EOF /here
it is $A
EOF
USER user
EXPOSE 80 53/udp
STOPSIGNAL USR1
ENTRYPOINT ["echo"]
CMD ["a b"]
# of {IMAGE}
"""


@pytest.mark.parametrize("client", ["docker", "insula"])
def test_a_build_says_what_docker_says_and_makes_what_was_asked_for(
    daemon: Daemon, tmp_path: Path, client: str
) -> None:
    ignore = "*.o\n!keep.o\nDockerfile\n"
    context = make_context(tmp_path, {"Dockerfile": WHOLE, ".dockerignore": ignore, "x.o": "", "keep.o": "k"})
    with tarfile.open(context / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("member"), io.BytesIO())
    name = f"full-{client}"
    words = ("--build-arg", f"BASE={IMAGE}", "--label", f"m={client}")
    said = built(daemon, client, "-t", name, "-t", f"{name}:two", *words, str(context))
    assert "Step 2/19 : FROM ${BASE} AS one\n ---> " in said
    ran = r"Running in [0-9a-f]{12}\n\x1b\[91mto stderr\n\x1b\[0mRemoving intermediate container|Using cache"
    assert re.search(rf"Step 8/19 : RUN echo .*\n ---> (?:{ran})", said)
    assert "# Executing 1 build trigger\n" in said
    end = rf"Successfully built [0-9a-f]{{12}}\nSuccessfully tagged {name}:latest\nSuccessfully tagged {name}:two\n"
    assert re.search(end, said)
    made = image_of(daemon, name)["Config"]
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert [path, "A=two words", "B=bar"] == made["Env"]
    assert ({"l": "bar", "m": client}, "user", "/work") == (made["Labels"], made["User"], made["WorkingDir"])
    assert ({"80/tcp": {}, "53/udp": {}}, "USR1") == (made["ExposedPorts"], made["StopSignal"])
    assert (["echo"], ["a b"], None) == (made["Entrypoint"], made["Cmd"], made["OnBuild"])
    files = tree(daemon, name)
    assert (b"bar\n", b"it is two words\n", b"k") == (files["foo"], files["here"], files["work/keep.o"])
    assert {"triggered", "unpacked/member", "work/foo", "work/a.tar", "work/.dockerignore"} <= set(files)
    assert not {"work/x.o", "work/Dockerfile"} & set(files)
    again = built(daemon, client, "-q", "-t", name, *words, str(context))
    assert image_of(daemon, name)["Id"] == again.strip()
    assert [] == leftovers(daemon)


RUNS = f"""
FROM {IMAGE}
ARG A
RUN --mount=type=secret,id=s --mount=type=cache,target=/cache --mount=type=tmpfs,target=/t \\
    --mount=type=bind,source=sub,target=/m/sub \\
    uname -r >/kernel; cat /run/secrets/s /m/sub/f >/sum; touch /t/x /cache/$A; ls /cache >/list; rm /etc/plain
USER user
RUN <<EOF
#!/bin/awk -f
BEGIN {{ print "by awk"; system("id -u") }}
EOF
"""


def test_each_run_has_the_isolation_asked_for(daemon: Daemon, isolation: str, tmp_path: Path) -> None:
    context = make_context(tmp_path, {"Dockerfile": RUNS, "sub/f": "bound", "secret": "hidden"})
    name = f"in-{isolation}"
    words = ("--isolation", isolation, "--no-cache", "--secret", f"id=s,src={context}/secret", "-t", name)
    said = built(daemon, "insula", *words, "--build-arg", f"A={isolation}", str(context))
    assert "by awk\n1000\n" in said
    files = tree(daemon, name)
    assert (files["kernel"].decode().strip() == os.uname().release) is (isolation == "process")
    assert b"hiddenbound" == files["sum"]
    assert isolation in files["list"].decode().split()
    assert "etc/plain" not in files
    # nothing of what was mounted is in a layer, nor what it was mounted over
    tops = {found.strip("/").partition("/")[0] for found in names_of_layers(daemon, name)}
    assert not {"run", "t", "m", "cache"} & tops
    assert 2 == len(
        image_of(daemon, name)["RootFS"]["Layers"]
    )  # the base's, and of the RUN that changed files
    deleted = daemon.client.post("/build/prune")["CachesDeleted"]
    assert 1 == sum(name.startswith("build-cache-") for name in deleted)
    assert "" == daemon.ok("volume", "ls", "-q", "-f", "label=com.insula.build-cache")


def test_a_run_that_fails_ends_the_build_with_its_code(daemon: Daemon, tmp_path: Path) -> None:
    make_context(tmp_path, {"Dockerfile": f"FROM {IMAGE}\nLABEL failing=yes\nRUN exit 7\n"})
    mine = ("ps", "-aq", "-f", "label=failing=yes")
    for client in ("docker", "insula"):
        code, said = failing(daemon, client, "--force-rm", str(tmp_path))
        assert (7, True) == (code, "The command '/bin/sh -c exit 7' returned a non-zero code: 7" in said)
    assert "" == daemon.ok(*mine)
    failing(daemon, "docker", str(tmp_path))
    kept = daemon.ok(*mine).split()  # to be looked at, as Docker's
    assert 1 == len(kept)
    daemon.ok("rm", *kept)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NOTHING x\n", "dockerfile parse error on line 1: unknown instruction: NOTHING"),
        (f"FROM {IMAGE}\nCOPY none /\n", "COPY failed: file not found in build context or excluded by .dockerignore"),
        (f"FROM {IMAGE} AS a\nFROM a\nCOPY --from=1 a /\n", "invalid from flag value 1"),
        (f"FROM {IMAGE}\nLABEL A=${{B?needed}}\n", "B: needed"),
        (f'FROM {IMAGE}\nRUN ["nosuch"]\n', 'exec: "nosuch": executable file not found in $PATH'),
        (f"FROM {IMAGE}\nEXPOSE a\n", "invalid containerPort: a"),
        ("FROM scratch\n", "No image was generated"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(daemon: Daemon, text: str, expected: str) -> None:
    code, said = failing(daemon, "docker", "--force-rm", "-", stdin=text.encode())
    assert (1, True) == (code, expected in said), said


@pytest.mark.parametrize("client", ["docker", "insula"])
def test_contexts_from_elsewhere(daemon: Daemon, tmp_path: Path, client: str) -> None:
    text = f"FROM {IMAGE}\nCOPY . /src\n"
    make_context(tmp_path, {"context/a": "1", "context/b/c": "2", "other/Dockerfile": text})
    expected = {"src/a", "src/b/c"}

    def copied() -> set[str]:
        return {name for name in tree(daemon, "elsewhere") if name.startswith("src/")}

    words = ("-t", "elsewhere", "--no-cache")
    built(daemon, client, *words, "-f", str(tmp_path / "other/Dockerfile"), str(tmp_path / "context"))
    assert expected == copied() - {"src/.dockerignore"}
    built(daemon, client, *words, "-f", "-", str(tmp_path / "context"), stdin=text.encode())
    assert expected == copied() - {"src/.dockerignore"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(tmp_path / "other/Dockerfile", "Dockerfile")
    built(daemon, client, *words, "-", stdin=packed.getvalue())
    assert {"src/Dockerfile"} == copied()


def test_target_squash_and_cache_from(daemon: Daemon, tmp_path: Path) -> None:
    text = f"FROM {IMAGE} AS a\nRUN echo 1 >/one\nRUN rm /one /etc/plain; echo 2 >/two\nFROM a\nRUN false\n"
    make_context(tmp_path, {"Dockerfile": text})
    built(daemon, "docker", "-t", "whole", "--target", "a", str(tmp_path))
    built(daemon, "docker", "-t", "flat", "--squash", "--target", "a", str(tmp_path))
    layers = [len(image_of(daemon, name)["RootFS"]["Layers"]) for name in ("whole", "flat", IMAGE)]
    assert [3, 2, 1] == layers
    assert tree(daemon, "whole") == tree(daemon, "flat")
    said = built(daemon, "docker", "--cache-from", "whole", "--target", "a", str(tmp_path))
    assert 2 == said.count("Using cache")
    said = built(daemon, "docker", "--cache-from", "nosuch", "--target", "a", str(tmp_path))
    assert 0 == said.count("Using cache")


def test_the_same_input_is_the_same_image(daemon: Daemon, tmp_path: Path) -> None:
    text = f"FROM {IMAGE}\nARG SOURCE_DATE_EPOCH\nCOPY . /new/dir/\nRUN echo x >/x\n"
    make_context(tmp_path, {"Dockerfile": text, "a": "1"})
    made = []
    for name in ("one", "two"):
        words = ("--no-cache", "-t", name, "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
        built(daemon, "docker", *words, str(tmp_path))
        made.append(image_of(daemon, name))
    assert made[0]["RootFS"] == made[1]["RootFS"]
    assert made[0]["Id"] == made[1]["Id"]
    assert made[0]["Created"].startswith("2020-09-13T12:26:40")


def test_a_client_that_goes_ends_its_build(daemon: Daemon, isolation: str, tmp_path: Path) -> None:
    label = f"gone-{isolation}"
    make_context(tmp_path, {"Dockerfile": f"FROM {IMAGE}\nLABEL {label}=1\nRUN echo begun; sleep 1000\n"})
    argv, environment = daemon.command("insula", "build", "--isolation", isolation, str(tmp_path))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        while b"begun\n" != (line := child.stdout.readline()):
            assert line, "the build has ended"
        child.kill()
    limit = time.monotonic() + LIMIT_S
    while leftovers(daemon) or daemon.ok("ps", "-aq", "-f", f"label={label}"):
        assert time.monotonic() < limit, daemon.log[-3000:]
        time.sleep(POLL_S)


def test_a_repository_of_git_is_added_and_built(daemon: Daemon, tmp_path: Path, name: str) -> None:
    source = make_context(
        tmp_path / "s", {"Dockerfile": f"FROM {IMAGE}\nCOPY f /f\n", "f": "f", "sub/g": "g"}
    )
    who = ("-c", "user.name=x", "-c", "user.email=x")
    for words in (("init", "-q", "-b", "main"), ("add", "."), (*who, "commit", "-qm", "one")):
        subprocess.run(["git", "-C", str(source), *words], check=True)
    serve = daemon.inside("git", "daemon", "--listen=127.0.0.1", f"--base-path={tmp_path}", "--export-all")
    with subprocess.Popen(serve, start_new_session=True) as server:
        try:
            wait_for_port(daemon, 9418)
            text = f"FROM {IMAGE}\nADD git://127.0.0.1/s/.git#main:sub /sub/\nADD --keep-git-dir=true git://127.0.0.1/s/.git /all"
            built(daemon, "docker", "-q", "-t", name, "-", stdin=text.encode())
            files = tree(daemon, name)
            ours = {path for path in files if path.startswith(("sub/", "all/")) and ".git/" not in path}
            assert {"sub/g", "all/Dockerfile", "all/f", "all/sub/g"} == ours
            assert b"g" == files["sub/g"]
            assert "all/.git/HEAD" in files
            query = {"remote": "git://127.0.0.1/s/.git#main", "t": name, "q": "1"}
            last = list(daemon.client.request("POST", "/build", query=query).lines())[-1]
            assert last["stream"].startswith("sha256:"), last
            assert b"f" == tree(daemon, name)["f"]
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    daemon.ok("rmi", name)
    assert [] == leftovers(daemon)


def wait_for_port(daemon: Daemon, port: int) -> None:
    limit = time.monotonic() + LIMIT_S
    while not subprocess.run(
        daemon.inside("ss", "-Hltn", f"sport = :{port}"), capture_output=True, check=True
    ).stdout:
        assert time.monotonic() < limit
        time.sleep(POLL_S)
