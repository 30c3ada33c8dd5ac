from __future__ import annotations

import pytest

from insula.config import Settings
from insula.engine.checks import check_limits, check_spec
from insula.engine.creation import decide_mounts
from insula.engine.lookup import find_id
from insula.engine.merge import add_missing, merge_config, process_env, replace_env
from insula.engine.names import make_name
from insula.engine.planner import decide_ports, decide_security, parse_exposed
from insula.engine.signals import parse_signal
from insula.errors import InvalidRequest, NoSuchInstance, UnsupportedField
from insula.isolation.plan import GuestMachine
from insula.isolation.sizing import machine_for
from insula.model.image import ImageConfig
from insula.model.instance import LogConfig, MergedConfig
from insula.model.isolation import Isolation, link_kind, root_kind
from insula.model.limits import Limits, Ulimit
from insula.model.mounts import MountKind, MountSpec
from insula.model.network import LinkKind, NetworkSpec, PortBinding
from insula.model.root import RootKind

from .rooms import spec

IMAGE = ImageConfig(command=("serve",), entrypoint=("/run.sh",), env=("A=image", "B=image"), user="www")
GIB = 1024**3


@pytest.mark.parametrize(
    ("entrypoint", "command", "expected"),
    [
        (None, None, ("/run.sh", "serve")),
        (None, ("x",), ("/run.sh", "x")),
        (("/own",), None, ("/own",)),
        (("/own",), ("x",), ("/own", "x")),
        ((), None, ("serve",)),
        (("",), ("x",), ("x",)),
    ],
)
def test_entrypoint_and_command(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    merged = merge_config(spec(entrypoint=entrypoint, command=command), IMAGE, "a" * 64)
    assert merged.args == expected


def test_nothing_to_run() -> None:
    with pytest.raises(InvalidRequest, match="no command specified"):
        merge_config(spec(), ImageConfig(), "a" * 64)
    with pytest.raises(InvalidRequest, match="no command specified"):
        merge_config(spec(entrypoint=("",)), IMAGE, "a" * 64)


def test_the_rest_of_the_merge() -> None:
    merged = merge_config(
        spec("x", env=("B=own", "C=own"), labels={"k": "own"}, exposed_ports=("80/tcp",)),
        ImageConfig(
            env=IMAGE.env, user="www", labels={"k": "image", "l": "image"}, exposed_ports=("80/tcp", "81/udp")
        ),
        "abcdef0123456789" * 4,
    )
    assert merged.env == ("B=own", "C=own", "A=image")
    assert merged.user == "www"
    assert merged.hostname == "abcdef012345"
    assert merged.labels == {"k": "own", "l": "image"}
    assert merged.exposed_ports == ("80/tcp", "81/udp")
    host = merge_config(spec("x", network_mode="host"), IMAGE, "a" * 64, host_name="machine")
    assert host.hostname == "machine"


def test_environment() -> None:
    assert add_missing(("A=1",), ("A=2", "B=2")) == ("A=1", "B=2")
    assert replace_env(("A=1", "B=1"), ("A=2", "C", "B")) == ("A=2",)
    assert process_env(("PATH=/x", "HOSTNAME=own"), "h", tty=True) == (
        "PATH=/x",
        "HOSTNAME=own",
        "TERM=xterm",
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [("KILL", 9), ("SIGTERM", 15), ("9", 9), ("sigint", 2), ("RTMIN+3", 37), ("RTMAX", 64)],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "NOPE", "0", "65", "-9", "RTMIN+99", "RTMIN-1", "9x"])
def test_no_signals(text: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid signal"):
        parse_signal(text)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory_bytes=1024),
        Limits(memory_swap_bytes=GIB),
        Limits(memory_bytes=GIB, memory_swap_bytes=GIB - 1),
        Limits(memory_bytes=GIB, memory_reservation_bytes=2 * GIB),
        Limits(memory_reservation_bytes=1024),
        Limits(nano_cpus=10**9, cpu_quota_us=5000),
        Limits(cpu_period_us=10),
        Limits(cpu_quota_us=10),
        Limits(oom_score_adj=2000),
        Limits(ulimits=(Ulimit(name="nofile", soft=10, hard=5),)),
    ],
)
def test_limits_that_cannot_be(limits: Limits) -> None:
    with pytest.raises(InvalidRequest):
        check_limits(limits)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"log": LogConfig(driver="syslog")}, UnsupportedField),
        ({"log": LogConfig(options={"max-size": "much"})}, InvalidRequest),
        ({"stop_signal": "NOPE"}, InvalidRequest),
        ({"working_dir": "relative"}, InvalidRequest),
        ({"hostname": "no spaces"}, InvalidRequest),
        ({"env": ("=x",)}, InvalidRequest),
        ({"network_mode": "container:"}, InvalidRequest),
        ({"network_mode": "container"}, InvalidRequest),
        ({"uts_mode": "host", "hostname": "own"}, InvalidRequest),
        ({"user": "-1"}, InvalidRequest),
        ({"user": "0:2147483648"}, InvalidRequest),
        ({"network_mode": "container:x", "hostname": "own"}, InvalidRequest),
        ({"network_mode": "container:x", "dns": ("10.0.0.1",)}, InvalidRequest),
        ({"network_mode": "container:x", "extra_hosts": ("a:10.0.0.1",)}, InvalidRequest),
        ({"network_mode": "container:x", "mac_address": "02:00:00:00:00:01"}, InvalidRequest),
        ({"network_mode": "container:x", "ports": (PortBinding(container_port=80),)}, InvalidRequest),
        ({"network_mode": "container:x", "exposed_ports": ("80/tcp",)}, InvalidRequest),
        ({"links": ("a:b",), "network_mode": "host"}, InvalidRequest),
        ({"links": ("a:b",), "network_mode": "container:x"}, InvalidRequest),
        ({"links": ("a:b",), "network_mode": "none"}, InvalidRequest),
        ({"networks": (NetworkSpec(name="bridge", links=("a:b",)),)}, InvalidRequest),
        ({"networks": (NetworkSpec(name="bridge", ipv6_address="fd00::2"),)}, InvalidRequest),
        ({"networks": (NetworkSpec(name="bridge", aliases=("x",)),)}, InvalidRequest),
        ({"networks": (NetworkSpec(name="bridge", ipv4_address="172.29.0.9"),)}, InvalidRequest),
    ],
)
def test_requests_that_are_refused(fields: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_spec(spec("true", **fields))


def test_security_options() -> None:
    profile = '{"defaultAction": "SCMP_ACT_ERRNO"}'
    plain = decide_security(spec("x"), profile)
    assert (plain.seccomp, plain.no_new_privileges, plain.privileged) == (profile, False, False)
    assert "CAP_SYS_ADMIN" not in plain.capabilities
    assert "/proc/kcore" in plain.masked_paths
    open_ = decide_security(
        spec(
            "x",
            security_opt=("seccomp=unconfined", "no-new-privileges", "apparmor=unconfined", "label=disable"),
        ),
        profile,
    )
    assert (open_.seccomp, open_.no_new_privileges) == ("", True)
    own = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    assert decide_security(spec("x", security_opt=(f"seccomp={own}",)), profile).seccomp == own
    all_ = decide_security(spec("x", privileged=True), profile)
    assert (all_.seccomp, all_.masked_paths) == ("", ())
    assert "CAP_SYS_ADMIN" in all_.capabilities
    assert decide_security(spec("x", security_opt=("systempaths=unconfined",)), profile).masked_paths == ()


@pytest.mark.parametrize("option", ["apparmor=", "label", "seccomp={", "nonsense"])
def test_security_options_that_are_refused(option: str) -> None:
    with pytest.raises(InvalidRequest):
        decide_security(spec("x", security_opt=(option,)), "{}")


def test_ports() -> None:
    config = MergedConfig(exposed_ports=("80/tcp", "443", "5000-5001/udp"))
    asked = PortBinding(container_port=80, host_port=8080)
    assert decide_ports(spec(ports=(asked,)), config) == (asked,)
    all_ = decide_ports(spec(ports=(asked,), publish_all=True), config)
    assert [(p.container_port, p.protocol, p.host_port) for p in all_] == [
        (80, "tcp", 8080),
        (443, "tcp", 0),
        (5000, "udp", 0),
        (5001, "udp", 0),
    ]
    assert decide_ports(spec(ports=(asked,), network_mode="host"), config) == ()
    for wrong in ("x", "0", "70000", "9-8", "80/icmp"):
        with pytest.raises(InvalidRequest):
            parse_exposed(wrong)


def test_mounts_outer_first_and_an_anonymous_volume_where_the_image_asks_for_one() -> None:
    own = MountSpec(kind=MountKind.BIND, source="/srv", target="/data/deep/")
    decided = decide_mounts(spec(mounts=(own,)), ("/data", "/data/deep", "/var//lib"))
    assert [(mount.kind, mount.target) for mount in decided] == [
        (MountKind.VOLUME, "/data"),
        (MountKind.BIND, "/data/deep"),
        (MountKind.VOLUME, "/var/lib"),
    ]
    with pytest.raises(InvalidRequest, match="not of type proc"):
        decide_mounts(spec(), ("/./proc",))


def test_own_mounts_replace_those_of_others_and_nameless_ones_do_not() -> None:
    others = (
        MountSpec(kind=MountKind.VOLUME, source="theirs", target="/a", no_copy=True),
        MountSpec(kind=MountKind.VOLUME, source="theirs", target="/b", no_copy=True),
        MountSpec(kind=MountKind.VOLUME, source="theirs", target="/image", no_copy=True),
    )
    own = (
        MountSpec(kind=MountKind.VOLUME, target="/a", legacy=True),
        MountSpec(kind=MountKind.BIND, source="/srv", target="/b"),
    )
    decided = decide_mounts(spec(mounts=own), ("/image",), others)
    assert [(mount.target, mount.source) for mount in decided] == [
        ("/a", "theirs"),
        ("/b", "/srv"),
        ("/image", "theirs"),
    ]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), GuestMachine(vcpus=1, memory_mib=256)),
        (Limits(memory_bytes=GIB + 1, nano_cpus=1_500_000_000), GuestMachine(vcpus=2, memory_mib=1289)),
        (Limits(memory_bytes=8 * 1024 * 1024), GuestMachine(vcpus=1, memory_mib=113)),
        (Limits(memory_bytes=6 * 1024 * 1024), GuestMachine(vcpus=1, memory_mib=110)),
        (Limits(cpu_quota_us=300_000, cpu_period_us=100_000), GuestMachine(vcpus=3, memory_mib=256)),
    ],
)
def test_the_size_of_a_machine(limits: Limits, expected: GuestMachine) -> None:
    assert machine_for(Isolation.VM, limits, Settings()) == expected
    assert machine_for(Isolation.PROCESS, limits, Settings()) is None


def test_what_each_isolation_takes() -> None:
    assert (link_kind(Isolation.VM), link_kind(Isolation.PROCESS)) == (LinkKind.TAP, LinkKind.VETH)
    assert (root_kind(Isolation.VM), root_kind(Isolation.PROCESS)) == (RootKind.DISK, RootKind.DIRECTORY)


def test_names_are_not_taken() -> None:
    taken: set[str] = set()
    for _ in range(300):
        name = make_name(taken)
        assert name not in taken
        taken.add(name)


def test_references() -> None:
    ids = {"abc1" * 16, "abd2" * 16}
    names = {"web": "abc1" * 16, "abd": "abc1" * 16}
    assert find_id("/web", ids, names) == "abc1" * 16
    assert find_id("abd", ids, names) == "abc1" * 16  # a name goes before a prefix
    assert find_id("abd2", ids, names) == "abd2" * 16
    with pytest.raises(NoSuchInstance):
        find_id("", ids, names)
    with pytest.raises(InvalidRequest, match="Multiple IDs found"):
        find_id("ab", ids, names)
