"""The default bridge: addresses, published ports, container ↔ VM."""

from __future__ import annotations

import subprocess

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SERVE = "mkdir -p /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www"


def fetch(daemon: Daemon, url: str) -> str:
    """From the daemon's own host."""
    script = (
        f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode(), end='')"
    )
    argv = daemon.inside("/usr/bin/python3", "-c", script)
    for _ in range(50):
        done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
        if done.returncode == 0:
            return done.stdout.decode()
    raise AssertionError(done.stderr.decode())


def test_published_port_from_loopback_and_neighbours(daemon: Daemon, isolation: str, name: str) -> None:
    daemon.ok(*isolated(isolation, "run", "-d", "--name", name, "-p", "8088:80", IMAGE, "sh", "-c", SERVE))
    try:
        assert "served\n" == fetch(daemon, "http://127.0.0.1:8088/")
        address = daemon.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
        assert "served\n" == fetch(daemon, f"http://{address}/")
        assert "0.0.0.0:8088" in daemon.ok("port", name)
        for other in ("process", "vm"):
            said = daemon.ok(*isolated(other, "run", "--rm", IMAGE, "wget", "-qO-", f"http://{address}/"))
            assert "served" == said
    finally:
        daemon.ok("rm", "-f", name)


def test_ranges_udp_hairpin_and_the_hosts_own_name(daemon: Daemon, isolation: str, name: str) -> None:
    """On the host's own 127.0.0.1 and ::1, and back in by the host's address from the instance itself."""
    words = ("--add-host", "host:host-gateway", "-p", "8190-8192:80", "-p", "5390-5391:5390-5391/udp")
    words += ("-p", "8193:80/sctp")
    daemon.ok(*isolated(isolation, "run", "-d", "--name", name, *words, IMAGE, "sh", "-c", SERVE))
    try:
        assert daemon.ok("port", name, "80").splitlines() == ["0.0.0.0:8190", "[::]:8190"]
        assert daemon.ok("port", name, "5391/udp").splitlines() == ["0.0.0.0:5391", "[::]:5391"]
        assert daemon.ok("port", name, "80/sctp").splitlines() == ["0.0.0.0:8193", "[::]:8193"]
        for host in ("127.0.0.1", "[::1]"):
            assert "served\n" == fetch(daemon, f"http://{host}:8190/")
        assert "served" == daemon.shell(name, "wget -qO- http://host:8190/")
        script = (
            "import socket as s; c = s.socket(s.AF_INET, s.SOCK_DGRAM); c.sendto(b'x', ('127.0.0.1', 5391))"
        )
        subprocess.run(daemon.inside("/usr/bin/python3", "-c", script), check=True, timeout=30)
        # it has reached the instance, where nobody listens
        daemon.shell(
            name, "until awk '/^Udp:/ { n = $3 } END { exit n < 1 }' /proc/net/snmp; do sleep 0.1; done"
        )
    finally:
        daemon.ok("rm", "-f", name)


def test_a_taken_port_is_refused_and_free_again_later(daemon: Daemon, name: str) -> None:
    daemon.ok("run", "-d", "--name", name, "-p", "8089:80", IMAGE, "sleep", "1000")
    done = daemon.docker("run", "--rm", "-p", "8089:80", IMAGE, "true")
    assert 125 == done.returncode
    assert b"port is already allocated" in done.stderr
    daemon.ok("rm", "-f", name)
    daemon.ok("run", "--rm", "-p", "8089:80", IMAGE, "true")


def test_no_network_is_loopback_only(daemon: Daemon, isolation: str) -> None:
    said = daemon.ok(*isolated(isolation, "run", "--rm", "--network", "none", IMAGE, "ip", "-o", "addr"))
    assert {"lo"} == {line.split()[1] for line in said.splitlines()}


def test_host_network_is_the_hosts(daemon: Daemon) -> None:
    said = daemon.ok("run", "--rm", "--network", "host", IMAGE, "ip", "-o", "link")
    assert daemon.bridge in said


def test_the_way_out_is_masqueraded(daemon: Daemon, isolation: str) -> None:
    """A listener on an address of the host's that is not the bridge's."""
    subprocess.run(["ip", "-n", daemon.netns, "addr", "replace", "198.51.100.1/32", "dev", "lo"], check=True)
    said = daemon.ok(*isolated(isolation, "run", "--rm", IMAGE, "ping", "-c", "1", "-W", "5", "198.51.100.1"))
    assert "1 packets received" in said


def test_resolver_and_hosts_are_written(daemon: Daemon, isolation: str) -> None:
    script = "cat /etc/resolv.conf; grep $(hostname) /etc/hosts | wc -l"
    said = daemon.ok(*isolated(isolation, "run", "--rm", "--dns", "192.0.2.53", IMAGE, "sh", "-c", script))
    assert ["nameserver 192.0.2.53", "1"] == said.splitlines()


def test_addresses_are_given_back(daemon: Daemon) -> None:
    """More instances one after the other than the network has addresses."""
    addresses = set()
    for _ in range(12):
        addresses.add(daemon.ok("run", "--rm", IMAGE, "ip", "-o", "-4", "addr", "show", "eth0").split()[3])
    assert all(address.startswith(daemon.subnet.removesuffix("0/24")) for address in addresses)
