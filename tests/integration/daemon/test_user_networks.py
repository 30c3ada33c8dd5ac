"""Networks of one's own: made with options, names on them, apart from each other, joined and left while
instances run.  One container and one VM are shared by most tests."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SERVE = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"
ENABLE_ICC = "com.docker.network.bridge.enable_icc"


@dataclass(frozen=True)
class Lan:
    """A network with a container and a VM on it, both web servers called `web`."""

    name: str
    servers: tuple[str, ...]

    def server(self, isolation: str) -> str:
        return next(name for name in self.servers if name.startswith(isolation))


@pytest.fixture(scope="module")
def lan(daemon: Daemon) -> Iterator[Lan]:
    name = "lan"
    daemon.ok("network", "create", "--label", "of=tests", name)
    servers = tuple(f"{isolation}-server" for isolation in ("process", "vm"))
    for server in servers:
        words = ("run", "-d", "--name", server, "--hostname", server, "--network", name)
        more = ("--network-alias", "web", "-p", "80", IMAGE, "sh", "-c", SERVE)
        daemon.ok(*isolated(server.partition("-")[0], *words, *more))
    yield Lan(name, servers)
    daemon.ok("rm", "-f", *servers)
    daemon.ok("network", "rm", name)


@pytest.fixture
def made(daemon: Daemon, name: str) -> Iterator[Callable[..., str]]:
    """`made("--internal")`: a network; it and what is named in `names` goes at the end."""
    networks: list[str] = []

    def make(*options: str) -> str:
        networks.append(f"{name}-{len(networks)}")
        daemon.ok("network", "create", *options, networks[-1])
        return networks[-1]

    yield make
    for network in networks:
        for member in inspect(daemon, network)["Containers"].values():
            daemon.docker("rm", "-f", member["Name"])
        daemon.ok("network", "rm", network)


def inspect(daemon: Daemon, network: str) -> dict:  # type: ignore[type-arg]
    return json.loads(daemon.ok("network", "inspect", network))[0]  # type: ignore[no-any-return]


def place(daemon: Daemon, instance: str, network: str) -> dict:  # type: ignore[type-arg]
    return json.loads(daemon.ok("inspect", instance))[0]["NetworkSettings"]["Networks"][network]  # type: ignore[no-any-return]


def fetch(daemon: Daemon, instance: str, url: str) -> str:
    """From inside an instance; "" when nobody is there, or nobody of that name."""
    done = daemon.docker("exec", instance, "wget", "-qO-", url)
    return done.stdout.decode().strip()


def await_server(daemon: Daemon, instance: str, url: str) -> str:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if said := fetch(daemon, instance, url):
            return said
    raise AssertionError(f"{instance} does not reach {url}")


def test_instances_find_each_other_by_name_alias_and_short_id(
    daemon: Daemon, lan: Lan, isolation: str
) -> None:
    here = lan.server(isolation)
    for there in lan.servers:
        assert there == await_server(daemon, here, f"http://{there}/")
        short = daemon.ok("inspect", "-f", "{{.Id}}", there)[:12]
        for called in (short, f"{there}.{lan.name}", there.upper()):
            assert there == fetch(daemon, here, f"http://{called}/"), called
    assert fetch(daemon, here, "http://web/") in lan.servers


def test_an_alias_of_several_is_answered_in_turn(daemon: Daemon, lan: Lan, isolation: str) -> None:
    """Whom a client then takes is its own choice (glibc's: the nearest), so it is the answers that count."""
    script = "for n in 1 2 3 4; do nslookup -type=a web | grep ^Address | sed -n 2p; done"
    first = daemon.ok("exec", lan.server(isolation), "sh", "-c", script).split()
    addresses = {place(daemon, server, lan.name)["IPAddress"] for server in lan.servers}
    assert addresses == set(first) - {"Address:"}


def test_what_does_not_exist_is_not_found(daemon: Daemon, lan: Lan, isolation: str) -> None:
    done = daemon.docker("exec", lan.server(isolation), "wget", "-qO-", "http://nobody/")
    assert done.returncode != 0
    assert b"bad address" in done.stderr


def test_inspect_tells_where_an_instance_is(daemon: Daemon, lan: Lan, isolation: str) -> None:
    server = lan.server(isolation)
    shown, network = place(daemon, server, lan.name), inspect(daemon, lan.name)
    (config,) = network["IPAM"]["Config"]
    member = next(m for m in network["Containers"].values() if m["Name"] == server)
    assert member["IPv4Address"] == f"{shown['IPAddress']}/{shown['IPPrefixLen']}"
    assert (member["EndpointID"], member["MacAddress"]) == (shown["EndpointID"], shown["MacAddress"])
    assert shown["Gateway"] == config["Gateway"]
    assert shown["NetworkID"] == network["Id"]
    assert shown["Aliases"] == ["web"]
    short = daemon.ok("inspect", "-f", "{{.Id}}", server)[:12]
    assert shown["DNSNames"] == [server, "web", short]
    seen = daemon.ok("exec", server, "ip", "-o", "-4", "addr", "show", "eth0").split()[3]
    assert seen == member["IPv4Address"]


def test_a_published_port_leads_there(daemon: Daemon, lan: Lan, isolation: str) -> None:
    server = lan.server(isolation)
    port = daemon.ok("port", server, "80").splitlines()[0].rpartition(":")[2]
    script = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/').read().decode())"
    done = subprocess.run(
        daemon.inside("/usr/bin/python3", "-c", script), capture_output=True, check=True, timeout=30
    )
    assert server == done.stdout.decode().strip()


def test_networks_reach_each_other_by_published_ports_only(
    daemon: Daemon, lan: Lan, made: Callable[..., str], isolation: str
) -> None:
    server, other = lan.server(isolation), made()
    address, gateway = (place(daemon, server, lan.name)[key] for key in ("IPAddress", "Gateway"))
    port = daemon.ok("port", server, "80").splitlines()[0].rpartition(":")[2]
    for network in (other, "bridge"):
        script = f"nc -w 1 {address} 80 </dev/null || echo apart; wget -qO- http://{gateway}:{port}/"
        said = daemon.ok("run", "--rm", "--network", network, IMAGE, "sh", "-c", script)
        assert ["apart", server] == said.splitlines()
    done = daemon.docker("run", "--rm", "--network", other, IMAGE, "wget", "-qO-", f"http://{server}/")
    assert b"bad address" in done.stderr


def test_a_network_is_as_asked(daemon: Daemon, made: Callable[..., str], name: str) -> None:
    bridge = f"x{name[2:]}"
    network = made(
        *("--subnet", "10.213.0.0/24", "--ip-range", "10.213.0.128/25", "--gateway", "10.213.0.254"),
        *("--aux-address", "printer=10.213.0.128", "-o", f"com.docker.network.bridge.name={bridge}"),
        *("-o", "com.docker.network.driver.mtu=1400", "--label", "a=b", "--attachable"),
    )
    shown = inspect(daemon, network)
    assert shown["IPAM"]["Config"] == [
        {
            "Subnet": "10.213.0.0/24",
            "IPRange": "10.213.0.128/25",
            "Gateway": "10.213.0.254",
            "AuxiliaryAddresses": {"printer": "10.213.0.128"},
        }
    ]
    assert (shown["Labels"], shown["Attachable"], shown["Internal"]) == ({"a": "b"}, True, False)
    script = "ip -o -4 addr show eth0; cat /sys/class/net/eth0/mtu; ip route"
    said = daemon.ok("run", "--rm", "--network", network, IMAGE, "sh", "-c", script)
    assert "10.213.0.129/24" in said
    assert "1400" in said.splitlines()
    assert "default via 10.213.0.254" in said
    links = subprocess.run(
        ["ip", "-n", daemon.netns, "-o", "link", "show", bridge], capture_output=True, text=True, check=True
    ).stdout
    assert "mtu 1400" in links
    chosen = daemon.ok(
        *("run", "--rm", "--network", network, "--ip", "10.213.0.7", IMAGE, "ip", "-o", "-4", "addr")
    )
    assert "10.213.0.7/24" in chosen


def test_an_internal_network_leads_nowhere(daemon: Daemon, lan: Lan, made: Callable[..., str]) -> None:
    network = made("--internal")
    server = f"{network}-server"
    daemon.ok("run", "-d", "--name", server, "--network", network, "-p", "80", IMAGE, "sh", "-c", SERVE)
    assert "" == place(daemon, server, network)["Gateway"]
    assert "" == daemon.ok("port", server)
    other = place(daemon, lan.servers[0], lan.name)["IPAddress"]
    subprocess.run(["ip", "-n", daemon.netns, "addr", "replace", "198.51.100.1/32", "dev", "lo"], check=True)
    gateway = inspect(daemon, network)["IPAM"]["Config"][0]["Gateway"]
    script = f"""
        ip route | grep -c default; wget -qO- http://{server}/
        ip route add default via {gateway}
        ping -c 1 -W 1 {other} >/dev/null || echo no {other}
        wget -qO- http://example.invalid/ 2>&1 || true"""
    said = daemon.ok(
        *("run", "--rm", "--network", network, "--cap-add", "NET_ADMIN", IMAGE, "sh", "-c", script)
    )
    short = daemon.ok("inspect", "-f", "{{.Config.Hostname}}", server)
    assert ["0", short, f"no {other}", "wget: bad address 'example.invalid'"] == said.splitlines()


def test_instances_without_icc_reach_the_host_and_not_each_other(
    daemon: Daemon, made: Callable[..., str], isolation: str
) -> None:
    """And sysctls of an endpoint are those of its interface."""
    network = made("-o", f"{ENABLE_ICC}=false")
    server = f"{network}-server"
    daemon.ok("run", "-d", "--name", server, "--network", network, "-p", "80", IMAGE, "sh", "-c", SERVE)
    shown = place(daemon, server, network)
    address, gateway = shown["IPAddress"], shown["Gateway"]
    script = f"""
        ping -c 1 -W 5 {gateway} >/dev/null && echo host
        nc -w 1 {address} 80 </dev/null || echo apart
        nslookup {server} >/dev/null && echo named
        cat /proc/sys/net/ipv4/conf/*/log_martians | tr -d '\\n'"""
    option = "driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    where = f"name={network},{option}"
    said = daemon.ok(*isolated(isolation, "run", "--rm", "--network", where, IMAGE, "sh", "-c", script))
    assert ["host", "apart", "named", "0010"] == said.splitlines()


def interfaces(daemon: Daemon, instance: str) -> dict[str, str]:
    """Addresses by name."""
    lines = daemon.ok("exec", instance, "ip", "-o", "-4", "addr").splitlines()
    return {line.split()[1]: line.split()[3] for line in lines if line.split()[1] != "lo"}


def test_a_running_instance_joins_and_leaves_networks(
    daemon: Daemon, lan: Lan, made: Callable[..., str], isolation: str
) -> None:
    server, other = lan.server(isolation), made("--subnet", "10.214.0.0/24")
    client, published = f"{other}-client", daemon.ok("port", server, "80").splitlines()[0].rpartition(":")[2]
    daemon.ok("run", "-d", "--name", client, "--network", other, IMAGE, "sleep", "1000")
    join = ("network", "connect", "--ip", "10.214.0.9", "--alias", "extra", other, server)
    for _ in range(2):  # what was left can be joined again
        daemon.ok(*join)
        assert "10.214.0.9/24" == interfaces(daemon, server)["eth1"]
        assert server == await_server(daemon, client, "http://extra/")
        assert client in daemon.ok("exec", server, "nslookup", "-type=a", client)
        assert ["extra"] == place(daemon, server, other)["Aliases"]
        daemon.ok("network", "disconnect", other, server)
        assert ["eth0"] == list(interfaces(daemon, server))
        assert "10.214.0.9" not in daemon.ok("exec", server, "cat", "/etc/hosts")
        assert "" == fetch(daemon, client, "http://extra/")
    daemon.ok(*join)
    daemon.ok("network", "disconnect", lan.name, server)
    assert {"eth1": "10.214.0.9/24"} == interfaces(daemon, server)
    assert "default via 10.214.0.1" in daemon.ok("exec", server, "ip", "route")
    assert server == await_server(daemon, client, f"http://10.214.0.1:{published}/")
    daemon.ok("network", "connect", "--alias", "web", lan.name, server)
    assert {"eth0", "eth1"} == set(interfaces(daemon, server))
    assert "default via 10.214.0.1" not in daemon.ok("exec", server, "ip", "route")  # `lan` comes first
    daemon.ok("network", "disconnect", other, server)
    for each in lan.servers:
        assert server == await_server(daemon, each, f"http://{server}/")


def test_a_paused_container_joins_and_a_paused_vm_says_why_not(
    daemon: Daemon, lan: Lan, made: Callable[..., str], isolation: str
) -> None:
    server, other = lan.server(isolation), made()
    daemon.ok("pause", server)
    done = daemon.docker("network", "connect", other, server)
    daemon.ok("unpause", server)
    if isolation == "process":
        assert {"eth0", "eth1"} == set(interfaces(daemon, server))
        daemon.ok("network", "disconnect", other, server)
    else:
        assert b"is paused, unpause the container" in done.stderr
    assert {"eth0"} == set(interfaces(daemon, server))
    assert [lan.name] == list(json.loads(daemon.ok("inspect", server))[0]["NetworkSettings"]["Networks"])


def test_networks_of_a_stopped_instance_are_those_of_its_next_start(
    daemon: Daemon, lan: Lan, made: Callable[..., str], isolation: str, name: str
) -> None:
    other = made("--subnet", "10.215.0.0/24")
    words = ("create", "--name", name, "--network", other, "-p", "80", IMAGE, "sleep", "1000")
    daemon.ok(*isolated(isolation, *words))
    try:
        daemon.ok("network", "connect", lan.name, name)
        daemon.ok("network", "connect", "bridge", name)
        daemon.ok("network", "disconnect", other, name)
        assert {lan.name, "bridge"} == set(
            json.loads(daemon.ok("inspect", name))[0]["NetworkSettings"]["Networks"]
        )
        daemon.ok("start", name)
        gateway = place(daemon, name, "bridge")["Gateway"]
        assert {
            f"{shown['IPAddress']}/{shown['IPPrefixLen']}"
            for shown in (place(daemon, name, lan.name), place(daemon, name, "bridge"))
        } == set(interfaces(daemon, name).values())
        assert f"default via {gateway}" in daemon.ok("exec", name, "ip", "route")
        assert "vm-server" == await_server(daemon, name, "http://vm-server/")
        for network in (lan.name, "bridge"):
            daemon.ok("network", "disconnect", network, name)
        assert {} == interfaces(daemon, name)
        assert "" == daemon.ok("port", name)
        assert "nameserver" in daemon.ok("exec", name, "cat", "/etc/resolv.conf")
        daemon.ok("network", "connect", lan.name, name)
        assert "80/tcp -> " in daemon.ok("port", name)  # published again
        assert "vm-server" == await_server(daemon, name, "http://vm-server/")
    finally:
        daemon.ok("rm", "-f", name)


def test_a_container_shares_the_network_of_another_and_a_vm_says_why_not(
    daemon: Daemon, lan: Lan, isolation: str
) -> None:
    host = lan.server(isolation)
    join = ("run", "--rm", "--network", f"container:{host}", IMAGE)
    if isolation == "process":
        script = "wget -qO- http://127.0.0.1/; hostname; wget -qO- http://vm-server/; cat /etc/hosts"
        said = daemon.ok(*join, "sh", "-c", script).splitlines()
        assert [host, host, "vm-server"] == said[:3]
        assert said[3:] == daemon.ok("exec", host, "cat", "/etc/hosts").splitlines()
    else:
        done = daemon.docker(*join, "true")
        assert 125 == done.returncode
        assert b"is inside of a virtual machine" in done.stderr
    done = daemon.docker(*isolated("vm", *join), "true")
    assert (
        b"HostConfig.NetworkMode: a virtual machine has a kernel and network stack of its own" in done.stderr
    )


def test_of_a_range_of_ports_the_first_that_is_free_is_published(daemon: Daemon, lan: Lan, name: str) -> None:
    names = [f"{name}-{number}" for number in range(3)]
    run = ("run", "-d", "--network", lan.name, "-p", "127.0.0.1:8180-8181:80")
    try:
        for one in names[:2]:
            daemon.ok(*run, "--name", one, IMAGE, "sleep", "1000")
        ports = ["127.0.0.1:8180", "127.0.0.1:8181"]
        assert ports == [daemon.ok("port", one, "80") for one in names[:2]]
        done = daemon.docker(*run, "--name", names[2], IMAGE, "sleep", "1000")
        assert b"all ports are allocated" in done.stderr
    finally:
        daemon.ok("rm", "-f", *names)


def test_refusals_are_dockers(daemon: Daemon, lan: Lan) -> None:
    for words, expected in (
        (("create", lan.name), f"network with name {lan.name} already exists"),
        (("create", "bridge"), "operation is not permitted on predefined bridge network"),
        (("create", "-d", "host", "x"), 'only one instance of "host" network is allowed'),
        (("create", "-d", "nope", "x"), "plugin not found"),
        (("create", "--subnet", "10.0.0.1", "x"), "invalid CIDR"),
        (("create", "--subnet", daemon.subnet, "x"), "Pool overlaps with other one on this address space"),
        (("create", "--ipv6", "--subnet", "fe80::/64", "x"), "addresses of this kind"),
        (("create", "-o", "com.docker.network.x=1", "x"), "Options.com.docker.network.x"),
        (("rm", lan.name), f"network {lan.name} has active endpoints"),
        (("rm", "host"), "host is a pre-defined network and cannot be removed"),
        (("rm", "nobody"), "network nobody not found"),
        (("connect", lan.name, lan.servers[0]), f"already exists in network {lan.name}"),
        (("disconnect", "bridge", lan.servers[0]), "is not connected to the network bridge"),
    ):
        done = daemon.docker("network", *words)
        assert done.returncode != 0, words
        assert expected in done.stderr.decode(), words
    for words, expected in (
        (
            ("--network", lan.name, "--ip", "10.1.2.3"),
            "only when connecting to networks with user configured",
        ),
        (("--network", "nobody"), "network nobody not found"),
        (("--ip", "172.31.200.9"), "supported on user defined networks only"),
    ):
        done = daemon.docker("run", "--rm", *words, IMAGE, "true")
        assert 125 == done.returncode, words
        assert expected in done.stderr.decode(), words


def test_list_and_prune_with_filters(daemon: Daemon, lan: Lan, made: Callable[..., str]) -> None:
    unused = made("--label", "of=prune")
    network_id = inspect(daemon, unused)["Id"]

    def listed(*filters: str) -> set[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return set(daemon.ok("network", "ls", "--format", "{{.Name}}", *words).splitlines())

    assert {lan.name, unused, "bridge", "host", "none"} <= listed()
    assert {"bridge", "host", "none"} == listed("type=builtin")
    assert {unused} == listed("label=of=prune", "driver=bridge", "scope=local", "type=custom")
    assert {unused} == listed("dangling=true", "label=of")
    assert {unused} == listed(f"id={network_id[:8]}")
    assert {"host"} == listed("name=^host$")
    assert unused == daemon.ok("network", "inspect", "-f", "{{.Name}}", network_id[:10])
    daemon.ok("network", "prune", "-f", "--filter", "label=of=other")
    daemon.ok("network", "prune", "-f", "--filter", "until=1h", "--filter", "label=of=prune")
    assert unused in listed()
    second = f"{unused}-second"
    assert 64 == len(daemon.insula("network", "create", "--label", "p", second).stdout.strip())
    assert second in daemon.insula("network", "prune", "-f", "--filter", "label=p").stdout.decode()
    assert lan.name in listed()


def test_events_tell_what_happens_to_networks(daemon: Daemon, name: str) -> None:
    since = daemon.client.get("/info")["SystemTime"]
    daemon.ok("network", "create", name)
    daemon.ok("run", "--rm", "--network", name, IMAGE, "true")
    daemon.ok("network", "rm", name)
    until = daemon.client.get("/info")["SystemTime"]
    words = ("events", "--since", since, "--until", until, "--filter", "type=network")
    said = daemon.ok(*words, "--filter", f"network={name}", "--format", "{{.Action}}")
    assert ["create", "connect", "disconnect", "destroy"] == said.splitlines()


def test_a_crash_leaves_names_links_and_rules(make_daemon: Callable[..., Daemon]) -> None:
    """Also the interface that a VM got while it ran."""
    daemon = make_daemon("--vm-pool", "0")
    daemon.start()
    try:
        daemon.import_image()
        daemon.ok("network", "create", "net")
        daemon.ok("network", "create", "--internal", "other")
        daemon.ok(
            *isolated("vm", "run", "-d", "--name", "one", "--network", "other", IMAGE, "sleep", "1000"),
        )
        daemon.ok(
            *("run", "-d", "--name", "two", "--hostname", "two", "--network", "net"),
            *("-p", "80", IMAGE, "sh", "-c", SERVE),
        )
        daemon.ok("network", "connect", "net", "one")
        bridges = [f"br-{inspect(daemon, network)['Id'][:12]}" for network in ("net", "other")]
        before = place(daemon, "two", "net")
        daemon.kill()
        subprocess.run(["ip", "-n", daemon.netns, "link", "delete", bridges[0]], check=True)
        daemon.start()
        assert before == place(daemon, "two", "net")
        assert "two" == await_server(daemon, "one", "http://two/")
        port = daemon.ok("port", "two", "80").splitlines()[0].rpartition(":")[2]
        assert "two" == fetch(daemon, "one", f"http://{before['Gateway']}:{port}/")
        assert "active endpoints" in daemon.docker("network", "rm", "net").stderr.decode()
        assert {"eth0", "eth1"} == set(interfaces(daemon, "one"))
        daemon.ok("network", "disconnect", "net", "one")
        assert {"eth0"} == set(interfaces(daemon, "one"))
        daemon.ok("rm", "-f", "one", "two")
        daemon.ok("network", "rm", "net", "other")
        shown = subprocess.run(
            ["ip", "-n", daemon.netns, "-o", "link"], capture_output=True, text=True, check=True
        ).stdout
        assert not [bridge for bridge in bridges if bridge in shown]
    finally:
        daemon.stop()
