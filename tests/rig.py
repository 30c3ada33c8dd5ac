"""A real daemon in a network namespace of its own, and the stock clients pointed at it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import insula
from insula.client import Client
from insula.errors import DaemonUnreachable

IMAGE = "busybox:test"
START_LIMIT_S = 60.0
POLL_S = 0.02
# our programs run from this checkout, whether or not it is installed
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(insula.__file__).parents[1])}
APPLETS = (
    *(
        "sh",
        "ash",
        "true",
        "false",
        "cat",
        "echo",
        "sleep",
        "ls",
        "id",
        "env",
        "hostname",
        "ps",
        "kill",
        "mount",
    ),
    *(
        "stty",
        "head",
        "tail",
        "wc",
        "dd",
        "md5sum",
        "uname",
        "nc",
        "ip",
        "ping",
        "wget",
        "grep",
        "touch",
        "rm",
    ),
    *(
        "mkdir",
        "ln",
        "chmod",
        "chown",
        "pwd",
        "stat",
        "df",
        "free",
        "seq",
        "yes",
        "test",
        "sed",
        "trap",
        "tty",
    ),
    *(
        "nslookup",
        "httpd",
        "vi",
        "find",
        "readlink",
        "date",
        "nproc",
        "mknod",
        "su",
        "awk",
        "tr",
        "sort",
        "mv",
    ),
)


def make_image_tar() -> bytes:
    """A root with a static busybox, users and an /etc worth mounting over."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is not installed: make setup"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, text: bytes = b"", mode: int = 0o644) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), mode
            tar.addfile(member, io.BytesIO(text))

        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("home", 0o755)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, mode
            tar.addfile(directory)
        add("bin/busybox", Path(os.path.realpath(busybox)).read_bytes(), 0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(link)
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
        add("etc/group", b"root:x:0:\nuser:x:1000:\nstaff:x:50:user\n")
        add("etc/machine-id")
        add("etc/plain", b"not executable\n")
        add("bin/noexec", b"#!/bin/sh\n", 0o644)
    return buffer.getvalue()


@dataclass(slots=True, kw_only=True)
class Daemon:
    """`insula daemon` under a directory of its own.  `start` waits until it answers."""

    directory: Path
    netns: str
    bridge: str
    subnet: str
    options: tuple[str, ...] = ()
    child: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def socket(self) -> str:
        return f"{self.directory}/run/insula.sock"

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def client(self) -> Client:
        return Client(self.host, timeout_s=120)

    @property
    def log(self) -> str:
        return (self.directory / "daemon.log").read_text()

    def inside(self, *argv: str) -> list[str]:
        """A command line in the daemon's network namespace, and nothing else changed."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", *argv]

    def start(self) -> None:
        program = [sys.executable, "-m", "insula.cli", "daemon"]
        argv = [
            *self.inside(*program),
            *("--host", self.host),
            *("--data-root", f"{self.directory}/data", "--exec-root", f"{self.directory}/run"),
            *("--bridge", self.bridge, "--subnet", self.subnet, "--log-level", "debug"),
            *self.options,
        ]
        with open(self.directory / "daemon.log", "ab") as log:
            self.child = subprocess.Popen(
                # a careful administrator's umask, which must not become that of images and volumes
                argv,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=ENVIRONMENT,
                umask=0o077,
            )
        limit = time.monotonic() + START_LIMIT_S
        while not self.client.reachable():
            assert self.child.poll() is None, f"the daemon ended:\n{self.log[-4000:]}"
            assert time.monotonic() < limit, f"the daemon does not answer:\n{self.log[-4000:]}"
            time.sleep(POLL_S)

    def kill(self) -> None:
        """As a crash would."""
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGKILL)
        self.child.wait(10)
        self.child = None

    def stop(self) -> None:
        """Remove every instance, then end the daemon in good order."""
        if self.child is None:
            return
        with contextlib.suppress(DaemonUnreachable):
            self._remove_all()
        self.child.terminate()
        assert self.child.wait(30) == 0, self.log[-4000:]
        self.child = None

    def _remove_all(self) -> None:
        limit = time.monotonic() + START_LIMIT_S
        while instances := self.client.get("/containers/json", all=True):
            assert time.monotonic() < limit, f"still there: {instances}\n{self.log[-4000:]}"
            for instance in instances:
                path, query = f"/containers/{instance['Id']}", {"force": True, "v": True}
                # one that ran with --rm may be on its way out by itself
                self.client.request("DELETE", path, query=query, ok=(404, 409)).close()

    def command(self, client: str, *words: str) -> tuple[list[str], dict[str, str]]:
        """Command line and environment of `insula` or the stock `docker`, in the daemon's namespace."""
        if client == "docker":
            environment = {**os.environ, "DOCKER_CONFIG": f"{self.directory}/docker"}
            return self.inside("docker", "-H", self.host, *words), environment
        return self.inside(sys.executable, "-m", "insula.cli", "-H", self.host, *words), ENVIRONMENT

    def run_client(
        self, client: str, *words: str, stdin: bytes | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        argv, environment = self.command(client, *words)
        return subprocess.run(
            argv, input=stdin, capture_output=True, timeout=timeout_s, env=environment, check=False,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {}),
        )  # fmt: skip

    def docker(
        self, *words: str, stdin: bytes | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """The stock client."""
        return self.run_client("docker", *words, stdin=stdin, timeout_s=timeout_s)

    def insula(
        self, *words: str, stdin: bytes | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Our own client."""
        return self.run_client("insula", *words, stdin=stdin, timeout_s=timeout_s)

    def ok(self, *words: str, stdin: bytes | None = None) -> str:
        """`docker` that must work; its output without the last newline."""
        done = self.docker(*words, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr.decode()}\n{self.log[-3000:]}"
        return done.stdout.decode().removesuffix("\n")

    def shell(self, name: str, script: str) -> str:
        """In a running instance."""
        return self.ok("exec", name, "sh", "-c", script)

    def inspect(self, name: str) -> Any:
        """What `docker inspect` says of an instance."""
        return json.loads(self.ok("inspect", name))[0]

    def import_image(self) -> None:
        query = {"fromSrc": "-", "repo": IMAGE.partition(":")[0], "tag": IMAGE.partition(":")[2]}
        self.client.request("POST", "/images/create", query=query, raw=make_image_tar()).read()


def last(daemon: Daemon, name: str) -> int:
    """How far a workload counts in /dev/shm/last; the file is empty for a moment each time."""
    return int(daemon.shell(name, "until n=$(cat /dev/shm/last); [ $n ]; do :; done; echo $n"))


def isolated(isolation: str, *words: str) -> Sequence[str]:
    """`run …` or `create …` with the isolation put in."""
    return (words[0], "--isolation", isolation, *words[1:])
