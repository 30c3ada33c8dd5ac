"""A macvlan network: a container and a VM in the LAN of the host, each with an address and MAC of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROUTER = "192.0.2.1"
NAME = "on-the-wire"
COUNTER = "until false; do n=$((n+1)); echo $n > /dev/shm/last; sleep 0.1; done"


def run_each(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def router(daemon: Daemon) -> Iterator[str]:
    """A namespace at the other end of the daemon's `lan0`; it has `ROUTER`."""
    there = f"{daemon.netns}-lan"
    run_each(
        f"ip netns add {there}",
        f"ip -n {daemon.netns} link add lan0 type veth peer name eth0 netns {there}",
        f"ip -n {daemon.netns} link set lan0 up",
        f"ip -n {there} addr add {ROUTER}/24 dev eth0",
        f"ip -n {there} link set eth0 up",
    )
    daemon.ok(
        *("network", "create", "-d", "macvlan", "--subnet", "192.0.2.0/24", "--gateway", ROUTER),
        *("--ip-range", "192.0.2.128/25", "-o", "parent=lan0", NAME),
    )
    yield there
    (network,) = json.loads(daemon.ok("network", "inspect", NAME))
    for member in network["Containers"].values():
        daemon.docker("rm", "-f", member["Name"])
    daemon.ok("network", "rm", NAME)
    run_each(f"ip -n {daemon.netns} link del lan0", f"ip netns del {there}")


@pytest.fixture(scope="module")
def neighbour(daemon: Daemon, router: str) -> Iterator[str]:
    """A container on the wire, by name."""
    daemon.ok("run", "-d", "--name", "neighbour", "--network", NAME, IMAGE, "sleep", "1000")
    yield "neighbour"
    daemon.ok("rm", "-f", "neighbour")


def ping_from(router: str, address: str) -> str:
    """From the LAN; the MAC that answered."""
    run_each(f"ip netns exec {router} busybox ping -c 1 -W 20 {address}")
    neighbours = json.loads(
        subprocess.run(
            ["ip", "-j", "-n", router, "neigh", "show", address], capture_output=True, check=True
        ).stdout
    )
    return str(neighbours[0]["lladdr"])


def test_an_instance_is_a_host_of_the_lan(
    daemon: Daemon, router: str, neighbour: str, isolation: str, name: str
) -> None:
    words = ("run", "-d", "--name", name, "--network", NAME, "-p", "80", IMAGE, "sh", "-c", COUNTER)
    daemon.ok(*isolated(isolation, *words))
    shown = daemon.inspect(name)["NetworkSettings"]
    place = shown["Networks"][NAME]
    assert shown["Ports"] == {}
    assert (place["Gateway"], place["IPAddress"].startswith("192.0.2.1")) == (ROUTER, True)
    mac = ping_from(router, place["IPAddress"])
    assert mac == place["MacAddress"]
    daemon.shell(name, f"ping -c 1 -W 20 {ROUTER}")
    assert f"default via {ROUTER} dev eth0" in daemon.shell(name, "ip route")
    daemon.shell(neighbour, f"ping -c 1 -W 20 {name}")  # by name
    daemon.shell(name, f"ping -c 1 -W 20 {neighbour}")
    late = f"{name}-late"
    daemon.ok("run", "-d", "--name", late, "--network", NAME, IMAGE, "sleep", "1000")
    daemon.shell(name, f"until ping -c 1 -W 20 {late}.{NAME}; do sleep 0.1; done")
    daemon.ok("rm", "-f", late)
    daemon.shell(name, f"while grep {late} /etc/hosts; do sleep 0.1; done")
    if isolation == "vm":
        copy = f"{name}-c"
        done = daemon.insula("fork", name, "--name", copy)
        assert done.returncode == 0, done.stderr.decode()
        other = daemon.inspect(copy)["NetworkSettings"]["Networks"][NAME]
        assert other["MacAddress"] == ping_from(router, other["IPAddress"]) != mac
        for each in (neighbour, name):
            daemon.shell(copy, f"until ping -c 1 -W 20 {each}; do sleep 0.1; done")
        daemon.ok("rm", "-f", copy)
    daemon.ok("network", "disconnect", NAME, name)
    assert "192.0.2." not in daemon.shell(name, "ip addr")
    daemon.ok("network", "connect", "--ip", "192.0.2.77", NAME, name)
    daemon.shell(name, f"ping -c 1 -W 20 {ROUTER}")
    assert ping_from(router, "192.0.2.77") == "02:42:c0:00:02:4d"
    daemon.ok("restart", "-t", "0", name)
    assert ping_from(router, "192.0.2.77") == "02:42:c0:00:02:4d"
    daemon.ok("rm", "-f", name)


def test_ports_are_the_bridges_and_go_when_the_way_out_is_beside_it(
    daemon: Daemon, router: str, name: str
) -> None:
    network = f"z-{name}"
    daemon.ok("network", "create", network)
    daemon.ok("run", "-d", "--name", name, "--network", network, "-p", "80", IMAGE, "sleep", "1000")
    daemon.ok("network", "connect", NAME, name)
    assert daemon.inspect(name)["NetworkSettings"]["Ports"] == {}
    daemon.ok("network", "disconnect", NAME, name)
    assert daemon.inspect(name)["NetworkSettings"]["Ports"]["80/tcp"]
    daemon.ok("rm", "-f", name)
    daemon.ok("network", "rm", network)
