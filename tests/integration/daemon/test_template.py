"""Templates through the daemon: made by the first VM, shown, remade when damaged, removed without harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from insula.system import mounts
from rig import IMAGE, Daemon

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def own(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """With templates of its own, not the machine's, and an exec root in memory, as /run is."""
    one = make_daemon("--vm-pool", "0", "--vm-memory-mib", "144")
    (one.directory / "data" / "templates").unlink()
    run = one.directory / "run"
    run.mkdir()
    mounts.mount("tmpfs", str(run), "tmpfs")
    one.start()
    one.import_image()
    yield one
    one.stop()
    for path in reversed(mounts.mount_points(str(run))):
        mounts.umount(path)


def insula(daemon: Daemon, *words: str) -> str:
    done = daemon.insula(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def origin(daemon: Daemon, name: str) -> Any:
    return json.loads(daemon.ok("inspect", name))[0]["Insula"]


def start(daemon: Daemon, name: str) -> Any:
    daemon.ok("run", "-d", "--isolation", "vm", "--name", name, IMAGE, "sleep", "1000")
    return origin(daemon, name)


def test_the_life_of_a_template(own: Daemon, name: str) -> None:
    assert "" == insula(own, "template", "ls", "-q")
    first = start(own, f"{name}-1")
    assert ("boot", "the template for its size was not made yet") == (first["Start"], first["Reason"])
    second = start(own, f"{name}-2")  # waits until it is made
    [key] = insula(own, "template", "ls", "-q").split()
    assert {"Isolation": "vm", "Start": "clone", "Template": key} == second
    [shown] = json.loads(insula(own, "template", "inspect", key[:6]))
    assert (144, 1, True, True) == (shown["MemoryMiB"], shown["Cpus"], shown["Loaded"], shown["Current"])
    assert f"{key}\n" == insula(own, "template", "warm", "-q")

    own.kill()  # what is in memory is gone
    ram = own.directory / "data" / "templates" / key / "ram"
    with open(ram, "r+b") as file:
        file.seek(20 << 20)
        file.write(b"damaged")
    own.start()
    assert "Total reclaimed space: 0B\n" == insula(own, "template", "prune", "-f")
    third = start(own, f"{name}-3")
    assert "boot" == third["Start"]  # what was damaged is not believed
    assert f"{key}\n" == insula(own, "template", "warm", "-q")
    assert "clone" == start(own, f"{name}-4")["Start"]

    assert f"{key}\n" == insula(own, "template", "rm", key)
    assert "" == insula(own, "template", "ls", "-q")
    for number in (1, 2, 3, 4):
        assert "alive" == own.ok("exec", f"{name}-{number}", "echo", "alive")
    own.ok("rm", "-f", *(f"{name}-{number}" for number in (1, 3, 4)))
    own.ok("kill", f"{name}-2")
    assert second == origin(own, f"{name}-2")  # how it began is known when it is over, too
    assert "boot" == start(own, f"{name}-5")["Start"]
    assert "clone" == start(own, f"{name}-6")["Start"]
    assert f"{key}\n" in insula(own, "template", "prune", "-f", "--all")


def test_what_cannot_be_is_refused_by_its_name(own: Daemon) -> None:
    for words, said in (
        (("warm", "-m", "5"), "memory: a guest has 80 to"),
        (("warm", "--cpus", "300"), "vcpus: a guest has 1 to 255"),
        (("rm", "nosuch"), "No such template: nosuch"),
        (("inspect", "nosuch"), "No such template: nosuch"),
    ):
        done = own.insula("template", *words)
        assert done.returncode != 0
        assert said in done.stderr.decode()


def test_a_container_has_an_isolation_too(own: Daemon, name: str) -> None:
    own.ok("run", "-d", "--name", name, IMAGE, "sleep", "1000")
    assert {"Isolation": "process"} == origin(own, name)
    own.ok("rm", "-f", name)
