"""Live copies: what a fork takes along, what it must not, and what its source notices of it."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rig import IMAGE, Daemon, isolated, last

pytestmark = [pytest.mark.integration, pytest.mark.vm, pytest.mark.timeout(300)]

COUNT = "i=0; while true; do i=$((i+1)); echo $i >> /numbers; echo $i > /dev/shm/last; done"
IDENTITY = "; ".join(
    (
        "hostname",
        "cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address",
        "head -c 16 /dev/urandom | md5sum",
        "ip -o -4 addr show eth0",
    )
)
# listens in the daemon's namespace: prints its port, then every line that comes in
LISTENER = """
import socket, sys, threading
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
def serve(peer):
    for line in peer.makefile():
        print(line, end="", flush=True)
    print("END", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@pytest.fixture(scope="module")
def own(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """Its first VM boots, as it has templates of its own; the copies are of that one, and of a clone."""
    one = make_daemon("--vm-pool", "0", "--vm-memory-mib", "144")
    (one.directory / "data" / "templates").unlink()
    one.start()
    one.import_image()
    yield one
    one.stop()


def fork(daemon: Daemon, *words: str) -> list[str]:
    done = daemon.insula("fork", *words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


def test_copies_go_on_as_instances_of_their_own(own: Daemon, name: str) -> None:
    own.ok("run", "-d", "--isolation", "vm", "--name", name, "-p", "8091:80", IMAGE, "sh", "-c", COUNT)
    assert "boot" == own.inspect(name)["Insula"]["Start"]
    own.ok("exec", "-d", name, "sh", "-c", "sleep 12345")
    own.shell(name, "echo kept > /tmp/note; until ps | grep -q '[s]leep 12345'; do :; done")
    done = own.insula("fork", name, "--count", "2")
    assert done.returncode == 0, done.stderr.decode()
    copies = done.stdout.decode().split()
    assert [f"{name}-1", f"{name}-2"] == copies
    assert b"WARNING: port 8091 of the host stays with the source" in done.stderr
    everyone = [name, *copies]
    told = [own.shell(one, IDENTITY).splitlines() for one in everyone]
    assert {6} == {len(lines) for lines in told}
    for values in zip(*told, strict=True):
        assert len(set(values)) == len(everyone), values
    for copy in copies:
        assert "kept\n1" == own.shell(copy, "cat /tmp/note; ps | grep -c '[s]leep 12345'")
        shown = own.inspect(copy)
        assert shown["State"]["Running"]
        assert shown["Id"][:12] == shown["Config"]["Hostname"] == own.shell(copy, "hostname")
        address = shown["NetworkSettings"]["IPAddress"]
        assert 2 == own.shell(copy, "cat /etc/hosts; ip -o -4 addr show eth0").count(address)
        assert ["copy", f"fork of {own.inspect(name)['Id'][:12]}"] == [
            shown["Insula"]["Start"],
            shown["Insula"]["Source"],
        ]
        assert "8091" not in own.ok("port", copy)
        assert abs(int(own.shell(copy, "date +%s")) - time.time()) < 5
        assert "1 packets received" in own.shell(copy, f"ping -c 1 {gateway(own)}")
    own.ok("rm", "-f", *everyone)


def gateway(daemon: Daemon) -> str:
    return daemon.subnet.replace(".0/24", ".1")


def numbers_are_whole(daemon: Daemon, name: str) -> int:
    """What was written is 1, 2, 3 and so on, up to what memory knows; returns how many."""
    script = "set $(awk '$1 != NR { bad++ } END { print NR, bad + 0 }' /numbers); echo $*"
    lines, wrong = daemon.shell(name, script).split()
    assert "0" == wrong
    return int(lines)


def test_a_clone_has_its_own_disk_whether_it_is_new_or_not(own: Daemon, name: str) -> None:
    """A template has an empty one mounted, which a new instance's is a copy of."""
    log = "dmesg | grep 'EXT4-fs (vdb)' | tail -1"
    own.ok("run", "-d", "--isolation", "vm", "--privileged", "--name", name, IMAGE, "sleep", "1000")
    disk = own.inspect(name)["GraphDriver"]["Data"]["UpperDisk"]
    for kept, mounted in (
        ("", "re-mounted"),
        ("1 2", "mounted filesystem"),
        ("1 2 1 2", "mounted filesystem"),
    ):
        assert "clone" == own.inspect(name)["Insula"]["Start"]
        assert mounted in own.shell(name, log)
        assert kept == own.shell(name, "echo $(cat /kept)")
        own.shell(name, "echo 1 >> /kept; mkdir -p /d; echo 2 >> /d/kept; cat /d/kept >> /kept; rm -r /d")
        own.ok("stop", "-t", "1", name)
        assert 0 == subprocess.run(["e2fsck", "-fn", disk], capture_output=True, check=False).returncode
        own.ok("start", name)
    own.ok("rm", "-f", name)


def test_disk_and_memory_are_of_one_instant(own: Daemon, name: str) -> None:
    own.ok("run", "-d", "--isolation", "vm", "--name", name, "--security-opt", "systempaths=unconfined",
           IMAGE, "sh", "-c", COUNT)  # fmt: skip
    while last(own, name) <= 50:
        pass
    [copy] = fork(own, name, "--name", f"{name}-x")
    for one in (name, copy):
        assert numbers_are_whole(own, one) > 50
    # the kernel of the copy has heard that it is one; its source, a clone of a template, was spared it
    count, _, state, *_ = own.shell(copy, "cat /sys/firmware/acpi/interrupts/gpe05").split()
    assert ("1", "enabled") == (count, state)
    own.ok("kill", copy)  # its guest still writes its disk back
    done = own.docker("cp", f"{copy}:/numbers", "-")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        member = tar.extractfile("numbers")
        assert member is not None
        numbers = [int(line) for line in member.read().split()]
    assert list(range(1, len(numbers) + 1)) == numbers
    assert len(numbers) > 50
    own.ok("rm", "-f", name, copy)


@contextlib.contextmanager
def listening(daemon: Daemon, lines: list[str]) -> Iterator[int]:
    argv = daemon.inside(sys.executable, "-c", LISTENER, gateway(daemon))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())

        reader = threading.Thread(target=lambda: [lines.append(line) for line in child.stdout or ()])
        reader.start()
        try:
            yield port
        finally:
            child.kill()
            reader.join()


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_connections_stay_with_the_source(own: Daemon, name: str) -> None:
    """And those between processes of one machine go on in both."""
    lines: list[str] = []
    with listening(own, lines) as port:
        out = (
            f"while sleep 0.2 && cat /etc/machine-id; do :; done | nc {gateway(own)} {port}; "
            "echo broken > /tmp/out"
        )
        local = (
            "(sleep 1000 | nc -l -p 99 > /tmp/got) & until busybox netstat -ltn | grep -q :99; do :; done; "
            "while sleep 0.2; do echo x; done | nc 127.0.0.1 99"
        )
        own.ok(
            *("run", "-d", "--isolation", "vm", "--name", name, IMAGE),
            *("sh", "-c", f"({local}) & {out}; sleep 1000"),
        )
        source = own.shell(name, "cat /etc/machine-id")
        until(lambda: lines)
        own.shell(name, "until [ -s /tmp/got ]; do :; done")
        [copy] = fork(own, name)
        own.shell(copy, "until [ -s /tmp/out ]; do sleep 0.1; done")
        before = len(lines)
        until(lambda: len(lines) > before + 5)
        assert {f"{source}\n"} == set(lines)
        assert "" == own.shell(name, "cat /tmp/out 2>/dev/null || true")
        for one in (name, copy):
            own.shell(one, "n=$(wc -c < /tmp/got); until [ $(wc -c < /tmp/got) -gt $n ]; do sleep 0.1; done")
    own.ok("rm", "-f", name, copy)


def test_connections_in_namespaces_of_the_workloads_own_stay_with_the_source(own: Daemon, name: str) -> None:
    """There is no loopback address in this one: what it holds may well leave the machine."""
    inside = (
        "ip link set lo up; ip addr add 10.99.0.1/32 dev lo; (sleep 1000 | nc -l -p 99 > /tmp/got) & "
        "until busybox netstat -ltn | grep -q :99; do :; done; "
        "while sleep 0.2 && echo x; do :; done | nc 10.99.0.1 99; echo broken > /tmp/out"
    )
    script = f"busybox unshare -n sh -c '{inside}' & sleep 1000"
    own.ok("run", "-d", "--isolation", "vm", "--privileged", "--name", name, IMAGE, "sh", "-c", script)
    own.shell(name, "until [ -s /tmp/got ]; do sleep 0.1; done")
    [copy] = fork(own, name)
    own.shell(copy, "until [ -s /tmp/out ]; do sleep 0.1; done")
    own.shell(name, "n=$(wc -c < /tmp/got); until [ $(wc -c < /tmp/got) -gt $n ]; do sleep 0.1; done")
    assert "" == own.shell(name, "cat /tmp/out 2>/dev/null || true")
    own.ok("rm", "-f", name, copy)


def test_a_fork_of_a_fork(own: Daemon, name: str) -> None:
    own.ok("run", "-d", "--isolation", "vm", "--name", name, "--hostname", "isle", IMAGE, "sleep", "1000")
    own.shell(name, "echo 1 > /generation")
    [second] = fork(own, name, "--name", f"{name}-b")
    own.shell(second, "echo 2 > /generation")
    [third] = fork(own, second, "--name", f"{name}-c")
    assert ["1", "2", "2"] == [own.shell(one, "cat /generation") for one in (name, second, third)]
    assert "isle" == own.shell(third, "hostname")
    own.ok("rm", "-f", name, second)
    assert "2" == own.shell(third, "cat /generation")
    own.ok("stop", "-t", "1", third)
    own.ok("rm", third)


def test_a_copy_is_on_its_sources_networks(own: Daemon, name: str) -> None:
    """With addresses of its own on each, also on one that the source has joined while it ran."""
    first, second = f"{name}-z", f"{name}-a"  # the second goes first where networks are sorted
    for network in (first, second):
        own.ok("network", "create", network)
    own.ok(
        *("run", "-d", "--isolation", "vm", "--name", name, "--network", first, "--network-alias", "twin"),
        *(IMAGE, "sleep", "1000"),
    )
    own.ok("network", "connect", second, name)
    [copy] = fork(own, name)
    addresses = {}
    for one in (name, copy):
        networks = own.inspect(one)["NetworkSettings"]["Networks"]
        assert {first, second} == set(networks)
        inside = own.shell(one, "ip -o -4 addr")
        for network, told in networks.items():
            addresses[one, network] = told["IPAddress"]
            assert f"{told['IPAddress']}/" in inside
        assert 2 == inside.count(": eth")
    assert 4 == len(set(addresses.values()))
    for network in (first, second):
        own.shell(copy, f"ping -c 1 -W 5 {addresses[name, network]}")
        own.shell(name, f"ping -c 1 -W 5 {addresses[copy, network]}")
    found = own.ok("run", "--rm", "--network", first, IMAGE, "nslookup", "twin")
    assert addresses[name, first] in found
    assert addresses[copy, first] in found
    own.ok("network", "disconnect", first, name)
    done = own.insula("fork", name)
    assert b"has lost a network since its start" in done.stderr
    own.ok("rm", "-f", name, copy)
    own.ok("network", "rm", first, second)


def test_ssh_host_keys_are_each_machines_own(own: Daemon, name: str) -> None:
    """Those that an image has are new in each VM at its first start, and in each copy; a container's are the
    image's, as with Docker."""
    own.ok("create", "--name", name, IMAGE, "true")
    own.ok("cp", "-", f"{name}:/", stdin=baked_keys())
    image = f"{name}:keys"
    own.ok("commit", name, image)
    own.ok("rm", name)
    show = (
        "cat /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/ssh_host_ed25519_key | grep -v -e -----; ls /etc/ssh"
    )
    assert "baked" in own.ok("run", "--rm", image, "sh", "-c", show)
    for one in (name, f"{name}-other"):
        own.ok("run", "-d", "--isolation", "vm", "--name", one, image, "sleep", "1000")
    [copy] = fork(own, name)
    everyone = [name, f"{name}-other", copy]
    told = [own.shell(one, show) for one in everyone]
    assert 3 == len(set(told))
    for text in told:
        assert text.startswith("ssh-ed25519 ")
        assert "baked" not in text
        assert "rsa" not in text  # the image has none
    assert "600 0" == own.shell(copy, "stat -c '%a %u' /etc/ssh/ssh_host_ed25519_key")
    own.ok("restart", "-t", "0", name)
    assert told[0] == own.shell(name, show)  # once and for all
    own.ok("rm", "-f", *everyone)
    own.ok("rmi", image)


def baked_keys() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for ending in ("", ".pub"):
            member = tarfile.TarInfo(f"etc/ssh/ssh_host_ed25519_key{ending}")
            member.size = 6
            tar.addfile(member, io.BytesIO(b"baked\n"))
    return buffer.getvalue()


def test_what_cannot_be_forked_says_why(own: Daemon, name: str) -> None:
    def refused(*words: str) -> str:
        done = own.insula("fork", *words)
        assert done.returncode != 0
        return done.stderr.decode()

    own.ok("run", "-d", "--name", name, IMAGE, "sleep", "1000")
    said = refused(name)
    assert "only a virtual machine's memory can be copied" in said
    assert "commit" in said
    own.ok("rm", "-f", name)
    own.ok(*isolated("vm", "run", "-d", "--name", name, "-v", "/etc:/host", IMAGE, "sleep", "1000"))
    assert "bind mounts or volumes" in refused(name)
    own.ok("rm", "-f", name)
    own.ok(*isolated("vm", "run", "-d", "--name", name, IMAGE, "sleep", "1000"))
    assert "1 to 100 copies" in refused(name, "--count", "0")
    assert "is already in use" in refused(name, "--name", name)
    own.ok("pause", name)
    assert "is paused" in refused(name)
    own.ok("unpause", name)
    own.ok("stop", "-t", "0", name)
    assert "is not running" in refused(name)
    assert "No such container" in refused("nobody")
    own.ok("rm", name)


def test_a_daemon_that_dies_while_it_forks(own: Daemon, name: str) -> None:
    """The source goes on; of the copies there are only whole ones, and no file is left."""
    own.ok("run", "-d", "--isolation", "vm", "--name", name, IMAGE, "sh", "-c", COUNT)
    source = own.inspect(name)["Id"]
    for moment_s in (0.1, 0.3, 0.8):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(own.socket)
            body = '{"Count": 2}'
            head = (
                f"POST /insula/v1/containers/{source}/fork HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            )
            sock.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n{body}".encode())
            sock.settimeout(moment_s)
            with contextlib.suppress(TimeoutError):
                sock.recv(1)
        own.kill()
        own.start()
        before = last(own, name)
        while last(own, name) <= before:
            pass
        running = own.ok("ps", "--no-trunc", "-q").split()
        assert source in running
        everyone = {own.shell(one, "cat /etc/machine-id") for one in running}
        assert len(running) == len(everyone)
        for one in own.ok("ps", "-a", "--no-trunc", "-q").split():
            if one != source:
                own.ok("rm", "-f", one)
        assert not list((own.directory / "data" / "instances" / source).glob("capture-*"))
    own.ok("rm", "-f", name)
