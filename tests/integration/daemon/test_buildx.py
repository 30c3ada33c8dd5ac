"""`docker build` with buildx, `docker buildx bake`, compose's builds: BuildKit's API by its own clients."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import stack
from rig import IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@dataclass(slots=True)
class Buildx:
    daemon: Daemon
    directory: Path
    config: Path

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.directory / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def docker(self, *words: str, code: int = 0, stdin: bytes = b"", **environment: str) -> str:
        """What it prints, its progress included; the exit code must be as said."""
        done = subprocess.run(
            self.daemon.inside("docker", *words),
            cwd=self.directory,
            env={
                **os.environ,
                "DOCKER_HOST": self.daemon.host,
                "DOCKER_CONFIG": str(self.config),
                "BUILDKIT_PROGRESS": "plain",
                **environment,
            },
            input=stdin,
            capture_output=True,
            timeout=240,
            check=False,
        )
        said = f"{done.stdout.decode()}{done.stderr.decode()}"
        assert code == done.returncode, f"{words}: {said}\n{self.daemon.log[-3000:]}"
        return said

    def build(self, *words: str, code: int = 0, stdin: bytes = b"", **environment: str) -> str:
        return self.docker("build", *words, ".", code=code, stdin=stdin, **environment)


@pytest.fixture
def buildx(daemon: Daemon, guest_cache: Path, tmp_path: Path) -> Buildx:
    plugin = stack.find_buildx(guest_cache.parent)
    if plugin is None:
        pytest.skip("Debian's archive cannot be reached")
    config, directory = tmp_path / "config", tmp_path / "context"
    (config / "cli-plugins").mkdir(parents=True)
    directory.mkdir()
    for program in (plugin, stack.find_compose_2(guest_cache.parent)):
        if program is not None:
            shutil.copy(program, config / "cli-plugins")
            (config / "cli-plugins" / Path(program).name).chmod(0o755)
    return Buildx(daemon, directory, config)


def instances(daemon: Daemon) -> list[str]:
    return daemon.ok("ps", "-aq").split()


def caches(buildx: Buildx) -> list[str]:
    return sorted(re.findall(r"^(build-cache-\w+)", buildx.docker("buildx", "du"), re.MULTILINE))


_WHOLE = f"""\
ARG BASE=none
FROM {IMAGE} AS tools
RUN echo tool > /tool; mkdir /seed; echo seeded > /seed/s
FROM {IMAGE} AS broken
RUN exit 9
FROM $BASE AS base
ENV A=1
FROM base
ARG WHO=nobody
COPY . /context/
COPY --from=tools /tool /tool
COPY --from=others note /note
RUN --mount=type=cache,target=/c,from=tools,source=/seed,sharing=private cat /c/s; echo x >>/c/s
RUN --mount=type=secret,id=token --mount=type=cache,target=/cache \\
    cat /run/secrets/token && touch /cache/x && echo && echo "hello $WHO $A"
RUN uname -r
"""


@pytest.mark.vm
@pytest.mark.parametrize("isolation", ["process", "vm"])
def test_a_build_as_where_docker_is_installed(buildx: Buildx, isolation: str) -> None:
    daemon = buildx.daemon
    before = instances(daemon)
    buildx.write(
        Dockerfile=_WHOLE.replace("$BASE", "named" if isolation == "process" else "$BASE"),
        _dot_dockerignore="*.log\n!keep.log\nDockerfile\n",
        a_dot_log="x",
        keep_dot_log="k",
        deep__er__file="größe\n",
        more__note="from elsewhere\n",
    )
    (buildx.directory / "deep/link").symlink_to("er/file")
    (buildx.directory / "deep/er/file").chmod(0o4750)
    words = [
        *("-t", f"whole:{isolation}", "--build-arg", f"INSULA_ISOLATION={isolation}", "--label", "l=v"),
        *(
            "--build-arg",
            f"BASE={IMAGE}",
            "--build-arg",
            f"WHO={isolation}",
            "--secret",
            "id=token,env=TOKEN",
        ),
        *("--build-context", "others=more", "--build-context", f"named=docker-image://{IMAGE}"),
        *("--iidfile", "../iid", "--metadata-file", "../metadata"),
    ]
    said = buildx.build(*words, TOKEN="s3cret")
    assert re.search(r"#\d+ \[tools 2/2\] RUN echo tool", said)
    assert re.search(r"^#\d+ [\d.]+ seeded$", said, re.MULTILINE), said
    assert "RUN exit 9" not in said  # the target does not need it
    assert re.search(rf"^#\d+ [\d.]+ s3cret\n#\d+ [\d.]+ hello {isolation} 1$", said, re.MULTILINE), said
    kernel = re.findall(r"^#\d+ [\d.]+ (\d+\.\d+\S*)$", said, re.MULTILINE)[-1]
    assert (isolation == "process") == (os.uname().release == kernel)
    assert f"naming to docker.io/library/whole:{isolation} done" in said

    image = json.loads(daemon.ok("image", "inspect", f"whole:{isolation}"))[0]
    assert (image["Id"], {"l": "v"}) == (
        (buildx.directory.parent / "iid").read_text(),
        image["Config"]["Labels"],
    )
    assert (
        image["Id"] == json.loads((buildx.directory.parent / "metadata").read_text())["containerimage.digest"]
    )
    script = "cd /context && find . | sort; cat deep/link /note /tool; stat -c '%a %u' deep/er/file"
    listing = daemon.ok("run", "--rm", "--isolation", "process", image["Id"], "sh", "-c", script)
    assert [
        *(".", "./.dockerignore", "./deep", "./deep/er", "./deep/er/file", "./deep/link", "./keep.log"),
        *("./more", "./more/note", "größe", "from elsewhere", "tool", "4750 0"),
    ] == listing.split("\n")

    again = buildx.build(*words, TOKEN="other")
    assert len(re.findall(r"^#\d+ CACHED$", again, re.MULTILINE)) == 7, again
    cold = buildx.build(*words, "--no-cache-filter", "tools", TOKEN="other")
    assert not re.search(r"RUN echo tool\n#\d+ CACHED", cold)
    assert before == instances(daemon)

    first, *others = caches(buildx)
    assert others
    for kept in ("--filter=id=none-such", "--keep-storage=1gb", "--filter=until=24h"):
        buildx.docker("buildx", "prune", "-f", kept)
        assert [first, *others] == caches(buildx)
    buildx.docker("buildx", "prune", "-f", f"--filter=id={first}")
    assert others == caches(buildx)
    assert "is not known" in buildx.docker("buildx", "prune", "-f", "--filter=mutable=true", code=1)


def test_only_what_has_changed_is_sent_again(buildx: Buildx) -> None:
    buildx.docker("buildx", "prune", "-f", "--filter=type=source.local")
    buildx.write(Dockerfile="FROM scratch\nCOPY . /\n", d__same="s", d__changes="before", goes="g")
    (buildx.directory / "large").write_bytes(os.urandom(3 << 20))
    out = buildx.directory.parent / "out"

    def built() -> tuple[dict[str, bytes], float]:
        """The files, and the kilobytes that were sent for the context."""
        shutil.rmtree(out, ignore_errors=True)
        said = buildx.build("-o", str(out))
        sent = re.findall(r"transferring context: ([\d.]+)([kM]?)B done", said)[-1]
        files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        return files, float(sent[0]) * {"": 1, "k": 1000, "M": 1e6}[sent[1]] / 1000

    files, kilobytes = built()
    assert {"Dockerfile", "d/same", "d/changes", "goes", "large"} == set(files)
    assert kilobytes > 3000
    (buildx.directory / "goes").unlink()
    (buildx.directory / "d/changes").write_text("after.")
    buildx.write(comes="c")
    files, kilobytes = built()
    assert ({"Dockerfile", "d/same", "d/changes", "comes", "large"}, b"after.") == (
        set(files),
        files["d/changes"],
    )
    assert kilobytes < 10
    of_context = ("--filter=type=source.local", "--filter=description=local source for context")
    assert "3.146MB" in buildx.docker("buildx", "du", *of_context)
    assert "source.local" in buildx.docker("system", "df", "-v")
    buildx.docker("builder", "prune", "-f")
    assert "source.local" not in buildx.docker("system", "df", "-v")


def test_what_is_made_may_be_files_of_the_clients(buildx: Buildx) -> None:
    buildx.write(
        Dockerfile=f"FROM {IMAGE} AS b\n"
        "RUN mkdir -p /o/d && echo hi >/o/d/f && ln /o/d/f /o/a && ln -s d/f /o/s\n"
        "FROM scratch\nCOPY none* /\nCOPY --from=b /o /\n"
    )
    said = buildx.build("-o", "out", "-o", "type=tar,dest=out.tar")
    assert "exporting to client directory" in said
    out = buildx.directory / "out"
    assert ["a", "d", "d/f", "s"] == sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert ("hi\n", "d/f") == ((out / "a").read_text(), os.readlink(out / "s"))
    assert (out / "a").stat().st_ino == (out / "d/f").stat().st_ino
    with tarfile.open(buildx.directory / "out.tar") as archive:
        assert {"a", "d", "d/f", "s"} == {member.name for member in archive}


def test_what_goes_wrong_is_told_and_leaves_nothing(buildx: Buildx) -> None:
    daemon = buildx.daemon
    before = instances(daemon)
    buildx.write(Dockerfile=f"FROM {IMAGE}\nRUN echo before; exit 3\n", bad=f"FROM {IMAGE}\nRUNN x\n")
    said = buildx.build(code=1)
    why = "did not complete successfully: exit code: 3"
    assert f'failed to solve: process "/bin/sh -c echo before; exit 3" {why}' in said
    assert f"   1 |     FROM {IMAGE}\n   2 | >>> RUN echo before; exit 3" in said
    assert re.search(r"> \[2/2\] RUN echo before; exit 3:\n[\d.]+ before", said)
    assert "dockerfile parse error on line 2: unknown instruction: RUNN" in buildx.build("-f", "bad", code=1)
    assert "open none: no such file or directory" in buildx.build("-f", "none", code=1)
    assert "secret x: not found" in buildx.docker(
        *("build", "-"), stdin=f"FROM {IMAGE}\nRUN --mount=type=secret,id=x,required true".encode(), code=1
    )
    assert before == instances(daemon)


def test_a_client_that_goes_ends_its_build(buildx: Buildx) -> None:
    daemon = buildx.daemon
    before = instances(daemon)
    buildx.write(Dockerfile=f"FROM {IMAGE}\nRUN echo begun; sleep 1000\n")
    client = subprocess.Popen(
        daemon.inside("docker", "build", "--no-cache", "."),
        cwd=buildx.directory,
        env={**os.environ, "DOCKER_HOST": daemon.host, "DOCKER_CONFIG": str(buildx.config)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        limit = time.monotonic() + 60
        while before == instances(daemon) and time.monotonic() < limit:
            time.sleep(0.1)
        assert before != instances(daemon)
    finally:
        client.kill()
        client.wait()
    while before != instances(daemon) and time.monotonic() < limit:
        time.sleep(0.1)
    assert before == instances(daemon)


def test_builds_that_share_a_context_and_build_on_each_other(buildx: Buildx) -> None:
    targets = {name: {"target": name, "tags": [f"baked:{name}"]} for name in ("one", "two")}
    top = "FROM one\nCOPY --from=two /g /h\nRUN cat /f /h >/both\n"
    linked = {
        "dockerfile-inline": top,
        "contexts": {"one": "target:one", "two": "target:two"},
        "tags": ["baked:top"],
    }
    buildx.write(
        f="shared\n",
        Dockerfile=f"FROM {IMAGE} AS one\nCOPY f /f\nFROM {IMAGE} AS two\nCOPY f /g\n",
        docker_bake_dot_json=json.dumps({"target": {**targets, "top": linked}}),
    )
    buildx.docker("buildx", "bake", "-f", "docker_bake.json", "one", "two", "top")
    for name, path in (("one", "/f"), ("two", "/g")):
        assert "shared" == buildx.daemon.ok("run", "--rm", f"baked:{name}", "cat", path)
    assert "shared\nshared" == buildx.daemon.ok("run", "--rm", "baked:top", "cat", "/both")


def test_composes_own_builds(buildx: Buildx) -> None:
    if not (buildx.config / "cli-plugins/docker-compose").exists():
        pytest.skip("compose 2 is not here")
    buildx.write(
        f="composed\n",
        Dockerfile=f"FROM {IMAGE}\nARG A\nCOPY f /f\nRUN echo $A >>/f\n",
        compose_dot_yaml="name: composed\nservices:\n  web:\n    build: {context: ., args: {A: with}}\n"
        "    command: cat /f\n    network_mode: none\n",
    )
    try:
        said = buildx.docker("compose", "up", "--build", "--no-log-prefix")
        assert re.search(r"composed\n\S*with\n", said), said
    finally:
        buildx.docker("compose", "down", "--rmi", "all")
