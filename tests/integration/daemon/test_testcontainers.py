"""testcontainers for Python, in both isolations, with a stand-in for its Ryuk, which is on a registry."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stack
from rig import IMAGE, Daemon, make_image_tar

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("testcontainers") is None, reason="testcontainers is not here"
    ),
]

_PROGRAM = Path(__file__).with_name("in_testcontainers.py")
_RYUK = (
    "test -S /var/run/docker.sock && echo it has Started! && exec nc -ll -p 8080 -e sh -c 'read x; echo ACK'"
)


def run_program(daemon: Daemon, *arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        daemon.inside(sys.executable, str(_PROGRAM), *arguments),
        env={**os.environ, "DOCKER_HOST": daemon.host, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert 0 == done.returncode, f"{done.stdout}{done.stderr[-3000:]}\n{daemon.log[-2000:]}"
    return done.stdout.splitlines()


def test_containers_networks_and_a_database(daemon: Daemon, guest_cache: Path) -> None:
    tar = stack.stack_tar(guest_cache.parent)
    postgres = stack.IMAGE if tar is not None else ""
    if tar is not None:
        daemon.ok("import", str(tar), stack.IMAGE)
    query = ("--change", f'CMD ["sh", "-c", "{_RYUK}"]', "-", "ryuk:test")
    daemon.ok("import", *query, stdin=make_image_tar())
    said = run_program(daemon, IMAGE, postgres, RYUK_CONTAINER_IMAGE="ryuk:test")
    assert ["hello", "red", *(["postgresql+psycopg2://test:test"] if postgres else [])] == said


@pytest.mark.vm
def test_where_the_default_is_a_vm(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("--default-isolation", "vm")
    daemon.start()
    try:
        daemon.import_image()
        assert ["hello", "red"] == run_program(daemon, IMAGE, "", TESTCONTAINERS_RYUK_DISABLED="true")
    finally:
        daemon.stop()
