"""Fixtures for whoever needs a real daemon; `isolation` runs a test in both isolations."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import stack
from insula.errors import Unavailable
from insula.isolation.vm.guest import make_guest
from rig import Daemon

CACHE = Path(os.environ.get("INSULA_TEST_CACHE", "/var/cache/insula-tests"))
_KEEP_S = 2 * 86400
_WITH_CLIENTS = {"make_daemon", "house"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Whatever calls `docker` finds one, also where none is installed."""
    if not any(_wants_client(item) for item in session.items):
        return
    client = stack.find_docker_client(CACHE)
    if client is None:
        raise pytest.UsageError("there is no docker client here, and no archive has one: install docker")
    os.environ["PATH"] += f"{os.pathsep}{os.path.dirname(client)}"


def _wants_client(item: pytest.Item) -> bool:
    if not item.path.name.startswith("test_"):  # on a host of its own, without archives: on_cgroup2.py
        return False
    fixtures = getattr(item, "fixturenames", ())
    return item.path.parent.name == "daemon" or not _WITH_CLIENTS.isdisjoint(fixtures)


def link_guest(data_root: Path, guest_cache: Path) -> None:
    """Guest and templates are the machine's, not the test's."""
    for name in ("guest", "templates"):
        (data_root / name).symlink_to(guest_cache.parent / name)


@pytest.fixture(scope="session")
def netns() -> Iterator[str]:
    name = f"insula-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture(scope="session")
def guest_cache() -> Path:
    """Kernel and initramfs are fetched once per machine, not once per test run, and here: the daemons of the
    tests have no way out of their network namespace."""
    root = CACHE
    (root / "templates").mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "wb") as lock:  # several workers may come here at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        _forget_old(root / "templates")
        _make_guest(root)
    return root / "guest"


def _forget_old(templates: Path) -> None:
    """Every change of the agent makes new ones, 85 MB each."""
    for template in templates.iterdir():
        if time.time() - template.stat().st_mtime > _KEEP_S:
            shutil.rmtree(template)


def _make_guest(root: Path) -> None:
    # in a thread: async fixtures ask for it too, where a loop runs already
    with ThreadPoolExecutor(1) as thread, contextlib.suppress(Unavailable):  # what needs a guest will say so
        thread.submit(asyncio.run, make_guest(str(root))).result()


@pytest.fixture(scope="session")
def make_daemon(
    tmp_path_factory: pytest.TempPathFactory, netns: str, guest_cache: Path
) -> Callable[..., Daemon]:
    subnets = itertools.count(200)  # they share a network namespace

    def make(*options: str) -> Daemon:
        directory = tmp_path_factory.mktemp("insula")
        (directory / "data").mkdir()
        link_guest(directory / "data", guest_cache)
        return Daemon(
            directory=directory,
            netns=netns,
            bridge=f"it{secrets.token_hex(3)}",
            subnet=f"172.31.{next(subnets)}.0/24",
            options=("--accel", "tcg", *options),
        )

    return make


@pytest.fixture(scope="session")
def daemon(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    one = make_daemon()
    one.start()
    one.import_image()
    yield one
    one.stop()


@pytest.fixture(params=["process", pytest.param("vm", marks=pytest.mark.vm)])
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name() -> str:
    return f"t-{secrets.token_hex(4)}"
