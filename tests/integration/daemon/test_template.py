"""Templates through the daemon: made by the first VM, shown, remade when damaged, removed without harm."""

from __future__ import annotations

import json
import subprocess
import time
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


def test_an_image_that_is_used_often_gets_a_template(own: Daemon, name: str) -> None:
    """Its clones share nothing that one of them has written, and are each other's in nothing."""
    for number in (1, 2):
        start(own, f"{name}-{number}")
    wait_for_image_template(own)
    names = [f"{name}-{number}" for number in (3, 4)]
    assert ["image clone"] * 2 == [start(own, one)["Start"] for one in names]
    same = "cat /etc/hostname /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | base64"
    seen = [own.ok("exec", one, "sh", "-c", same).split() for one in names]
    for one, (hostname, *_) in zip(names, seen, strict=True):
        state = own.inspect(one)
        assert state["Id"][:12] == hostname
        address = state["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        assert f"{address}\t{hostname}" in own.ok("exec", one, "cat", "/etc/hosts")
    assert all(here != there for here, there in zip(*seen, strict=True))
    own.ok("exec", names[0], "sh", "-c", "echo mine > /mark; rm /bin/sleep")
    assert ["C /bin", "D /bin/sleep", "A /mark"] == own.ok("diff", names[0]).splitlines()
    assert "" == own.ok("diff", names[1])
    own.ok("exec", names[1], "ls", "/bin/sleep")
    own.ok("stop", "-t", "0", names[0])
    disk = own.inspect(names[0])["GraphDriver"]["Data"]["UpperDisk"]
    checked = subprocess.run(["e2fsck", "-f", "-n", disk], capture_output=True, text=True, check=False)
    assert 0 == checked.returncode, checked.stdout
    own.ok("commit", names[0], f"{name}:changed")  # what it wrote is there without it, too
    assert "mine" == own.ok("run", "--rm", f"{name}:changed", "cat", "/mark")
    own.ok("run", "-d", "--isolation", "vm", "--name", f"{name}-5", "--tmpfs", "/etc", IMAGE, "sleep", "1000")
    assert "clone" == origin(own, f"{name}-5")["Start"]  # what lies below the files is not the image's
    assert f"{name}-5" in own.ok("ps", "--format", "{{.Names}}")
    own.ok("exec", f"{name}-5", "ls", "/etc/hosts")
    own.ok("restart", "-t", "0", names[1])
    assert "clone" == origin(own, names[1])["Start"]  # its disk is its own by now
    own.ok("rm", "-f", *(f"{name}-{number}" for number in (1, 2, 3, 4, 5)))
    own.ok("rmi", f"{name}:changed")


def wait_for_image_template(daemon: Daemon) -> None:
    for _ in range(1200):
        isolations = daemon.client.get("/insula/v1/info")["Isolations"]
        if any(int(one["Details"].get("image templates", 0)) for one in isolations):
            return
        time.sleep(0.1)
    raise AssertionError("no template of an image was made")


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
