"""IPv6 as a client sees it, for a container and a VM on one network: addresses, names, ports on [::], ::1."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SERVE = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"
SUBNET6 = "fd00:6::/64"
NETWORK = "lan6"
BOTH = ("process", "vm")


@pytest.fixture(scope="module")
def lan(daemon: Daemon) -> Iterator[str]:
    """A container and a VM on it, named after their isolation, web servers that publish their port."""
    daemon.ok("network", "create", "--ipv6", "--subnet", SUBNET6, NETWORK)
    for isolation in BOTH:
        words = ("run", "-d", "--name", f"six-{isolation}", "--hostname", isolation, "--network", NETWORK)
        address = f"fd00:6::{isolation == 'vm'}e".replace("True", "b").replace("False", "a")
        more = ("--ip6", address, "-p", "80", IMAGE, "sh", "-c", SERVE)
        daemon.ok(*isolated(isolation, *words, *more))
    yield NETWORK
    daemon.ok("rm", "-f", *(f"six-{isolation}" for isolation in BOTH))
    daemon.ok("network", "rm", NETWORK)


def place(daemon: Daemon, name: str, network: str = NETWORK) -> Any:
    return daemon.inspect(name)["NetworkSettings"]["Networks"][network]


def fetch(daemon: Daemon, url: str) -> str:
    """From the daemon's own host; "" when nobody answers."""
    script = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=10).read().decode())"
    argv = daemon.inside("/usr/bin/python3", "-c", script)
    return subprocess.run(argv, capture_output=True, check=False, timeout=30).stdout.decode().strip()


def await_answer(daemon: Daemon, url: str) -> str:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if said := fetch(daemon, url):
            return said
    raise AssertionError(f"nobody answers at {url}")


def published(daemon: Daemon, name: str) -> str:
    """The host's port; the same for both families."""
    shown = [line.rpartition(":") for line in daemon.ok("port", name, "80").splitlines()]
    assert [address for address, _, _ in shown] == ["0.0.0.0", "[::]"]
    (port,) = {port for _, _, port in shown}
    return port


def test_an_address_of_each_family_and_their_routes(daemon: Daemon, lan: str, isolation: str) -> None:
    name = f"six-{isolation}"
    shown = place(daemon, name)
    assert shown["GlobalIPv6Address"] == shown["IPAMConfig"]["IPv6Address"]
    assert (shown["GlobalIPv6PrefixLen"], shown["IPv6Gateway"]) == (64, "fd00:6::1")
    network = json.loads(daemon.ok("network", "inspect", lan))[0]
    assert network["EnableIPv6"]
    assert {"Subnet": SUBNET6, "Gateway": "fd00:6::1"} in network["IPAM"]["Config"]
    member = next(m for m in network["Containers"].values() if m["Name"] == name)
    assert member["IPv6Address"] == f"{shown['GlobalIPv6Address']}/64"
    inside = daemon.shell(name, "ip -o -6 addr show dev eth0; ip -6 route; cat /etc/hosts")
    assert f"inet6 {member['IPv6Address']} scope global" in inside
    assert "default via fd00:6::1 dev eth0" in inside
    assert f"{shown['GlobalIPv6Address']}\t{isolation}" in inside


def test_they_find_each_other_by_name_and_address(daemon: Daemon, lan: str, isolation: str) -> None:
    for other in BOTH:
        address = place(daemon, f"six-{other}")["GlobalIPv6Address"]
        script = f"until wget -qO- http://[{address}]/; do sleep 0.1; done; nslookup -type=aaaa six-{other}"
        said = daemon.shell(f"six-{isolation}", script)
        assert other in said.splitlines()[0]
        assert f"Address: {address}" in said


def test_a_published_port_is_reached_by_both_families(daemon: Daemon, lan: str, isolation: str) -> None:
    name = f"six-{isolation}"
    port = published(daemon, name)
    for address in ("127.0.0.1", "[::1]", "[fd00:6::1]"):
        assert await_answer(daemon, f"http://{address}:{port}/") == isolation
    row = daemon.ok("ps", "--filter", f"name={name}", "--format", "{{.Ports}}")
    row = row.replace(" :::", " [::]:")  # of a docker before 27
    assert row == f"0.0.0.0:{port}->80/tcp, [::]:{port}->80/tcp"
    assert (
        row
        == daemon.insula("ps", "--filter", f"name={name}", "--format", "{{.Ports}}").stdout.decode().strip()
    )
    for other in BOTH:  # its own address, too: hairpin
        assert isolation in daemon.shell(f"six-{other}", f"wget -qO- http://[fd00:6::1]:{port}/")


def test_one_without_ipv6_joins_it_and_leaves_again(
    daemon: Daemon, lan: str, isolation: str, name: str
) -> None:
    """And its port is reached by ::1 all the while: at one address, by name."""
    address = "fd00:6::77"  # in both runs of this: another's a moment ago, with another MAC
    words = ("run", "-d", "--name", name, "--hostname", name, "-p", "[::1]:8486:81", "-p", "80")
    daemon.ok(*isolated(isolation, *words, IMAGE, "sh", "-c", SERVE))
    try:
        port = published(daemon, name)
        assert daemon.ok("port", name, "81") == "[::1]:8486"
        assert await_answer(daemon, f"http://[::1]:{port}/") == name
        assert daemon.shell(name, "ip -o -6 addr show dev eth0") == ""
        more = ("--ip6", address, "--link-local-ip", "169.254.7.7", "--link", f"six-{isolation}:friend")
        daemon.ok("network", "connect", *more, lan, name)
        shown = place(daemon, name)
        assert shown["IPAMConfig"] == {"IPv6Address": address, "LinkLocalIPs": ["169.254.7.7"]}
        assert shown["Links"] == [f"six-{isolation}:friend"]
        inside = daemon.shell(
            name, "ip -o addr show dev eth1; ip -6 route; nslookup -type=aaaa friend; cat /etc/hosts"
        )
        for expected in (f"inet6 {address}/64", "inet 169.254.7.7/16", "default via fd00:6::1 dev eth1"):
            assert expected in inside
        assert f"Address: {place(daemon, f'six-{isolation}')['GlobalIPv6Address']}" in inside
        assert f"{address}\t{name}" in inside
        assert await_answer(daemon, f"http://[::1]:{port}/") == name
        daemon.ok("network", "disconnect", lan, name)
        assert "default" not in daemon.shell(name, "ip -6 route; cat /etc/hosts | grep fd00 || true")
        assert await_answer(daemon, f"http://[::1]:{port}/") == name
    finally:
        daemon.ok("rm", "-f", name)


@pytest.mark.vm
def test_a_fork_has_an_address_of_its_own(daemon: Daemon, lan: str) -> None:
    copy = daemon.insula("fork", "six-vm").stdout.decode().split()[0]
    try:
        address = place(daemon, copy)["GlobalIPv6Address"]
        assert address not in ("", place(daemon, "six-vm")["GlobalIPv6Address"])
        inside = daemon.shell(copy, "ip -o -6 addr show dev eth0; ip -6 route")
        assert f"inet6 {address}/64 scope global" in inside
        assert place(daemon, "six-vm")["GlobalIPv6Address"] not in inside
        assert "default via fd00:6::1 dev eth0" in inside
        assert "vm" in daemon.shell("six-process", f"wget -qO- http://[{address}]/")
    finally:
        daemon.ok("rm", "-f", copy)
