"""A create request becomes a spec, or is refused by the field's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from insula.api.translate_create import CreateRequest, parse_create
from insula.api.translate_limits import merge_limits, warn_update
from insula.api.wire.codec import decode
from insula.api.wire.container_config import ContainerCreateRequest
from insula.api.wire.host_config import HostConfig, Resources, Ulimit, UpdateConfig
from insula.engine.checks import check_limits
from insula.engine.planner import Attachment, attachment, decide_security
from insula.errors import InvalidRequest, UnsupportedField
from insula.model.health import HealthCheck
from insula.model.isolation import Isolation
from insula.model.limits import Limits, Throttle
from insula.model.mounts import MountKind, MountSpec
from insula.model.network import NetworkSpec, PortBinding
from insula.security.paths import READONLY_PATHS


def parse(
    version: tuple[int, int] = (1, 47), host: dict[str, Any] | None = None, **fields: Any
) -> CreateRequest:
    document = {"Image": "busybox", **fields, "HostConfig": host or {}}
    return parse_create(
        decode(json.dumps(document).encode(), ContainerCreateRequest), Isolation.PROCESS, version
    )


def test_defaults() -> None:
    spec = parse().spec
    assert spec.isolation is Isolation.PROCESS
    assert spec.network_mode == "bridge"
    assert (spec.command, spec.entrypoint) == (None, None)
    assert spec.restart.name == "no"
    assert spec.limits == Limits()


def test_words_may_be_one_string_and_an_empty_command_is_the_image_s() -> None:
    spec = parse(Cmd="ls", Entrypoint=[""]).spec
    assert (spec.command, spec.entrypoint) == (("ls",), ("",))
    assert parse(Cmd=[], Entrypoint=None).spec.command is None
    assert parse(Entrypoint=[]).spec.entrypoint == ()  # none at all, as docker compose says it


@pytest.mark.parametrize(
    ("word", "expected"), [("", "process"), ("default", "process"), ("vm", "vm"), ("hyperv", "vm")]
)
def test_isolation(word: str, expected: str) -> None:
    assert parse(host={"Isolation": word}).spec.isolation == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", MountSpec(kind=MountKind.BIND, source="/a", target="/b", legacy=True)),
        ("/a/:/b/:ro", MountSpec(kind=MountKind.BIND, source="/a", target="/b", read_only=True, legacy=True)),
        (
            "/a:/b:ro,z,rslave",
            MountSpec(
                kind=MountKind.BIND,
                source="/a",
                target="/b",
                read_only=True,
                propagation="rslave",
                legacy=True,
            ),
        ),
        ("vol:/b", MountSpec(kind=MountKind.VOLUME, source="vol", target="/b", legacy=True)),
        (
            "vol:/b:nocopy",
            MountSpec(kind=MountKind.VOLUME, source="vol", target="/b", no_copy=True, legacy=True),
        ),
        ("/b", MountSpec(kind=MountKind.VOLUME, target="/b", legacy=True)),
    ],
)
def test_binds(text: str, expected: MountSpec) -> None:
    assert parse(host={"Binds": [text]}).spec.mounts == (expected,)


@pytest.mark.parametrize(
    "text",
    ["a:b", ":/b", "/a:", "/a:/", "/a:/b:ro,rw", "/a:/b:odd", "/a:/b:nocopy", "vol:/b:rshared", "-x:/b",
     "vol:/b:copy", "/a:/b:c:d", "rel/path:/b"],
)  # fmt: skip
def test_bad_binds(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(host={"Binds": [text]})


def test_mounts_of_every_type() -> None:
    mounts = [
        {
            "Type": "bind",
            "Source": "/a",
            "Target": "/b",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rshared"},
        },
        {"Type": "volume", "Source": "vol", "Target": "/c", "VolumeOptions": {"NoCopy": True}},
        {"Type": "volume", "Target": "/d"},
        {"Type": "tmpfs", "Target": "/e", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o1777}},
    ]
    found = parse(host={"Mounts": mounts, "Tmpfs": {"/f": "size=1m,noexec"}}).spec.mounts
    assert found == (
        MountSpec(kind=MountKind.BIND, source="/a", target="/b", read_only=True, propagation="rshared"),
        MountSpec(kind=MountKind.VOLUME, source="vol", target="/c", no_copy=True),
        MountSpec(kind=MountKind.VOLUME, target="/d"),
        MountSpec(kind=MountKind.TMPFS, target="/e", options=("size=4096", "mode=1777")),
        MountSpec(kind=MountKind.TMPFS, target="/f", options=("size=1m", "noexec"), legacy=True),
    )


def test_the_options_of_mounts() -> None:
    mounts = [
        {
            "Type": "bind",
            "Source": "/a",
            "Target": "/b",
            "ReadOnly": True,
            "Consistency": "cached",
            "BindOptions": {"NonRecursive": True, "CreateMountpoint": True, "ReadOnlyForceRecursive": True},
        },
        {
            "Type": "volume",
            "Source": "vol",
            "Target": "/c",
            "VolumeOptions": {
                "Subpath": "in/it",
                "Labels": {"k": "v"},
                "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs"}},
            },
        },
    ]
    host = {"Mounts": mounts, "Binds": ["old:/d"], "VolumeDriver": "local", "VolumesFrom": ["other:ro"]}
    spec = parse(host=host).spec
    assert ("other:ro",) == spec.volumes_from
    assert spec.mounts == (
        MountSpec(kind=MountKind.VOLUME, source="old", target="/d", legacy=True, driver="local"),
        MountSpec(
            kind=MountKind.BIND,
            source="/a",
            target="/b",
            read_only=True,
            create_source=True,
            non_recursive=True,
            read_only_below=True,
        ),
        MountSpec(
            kind=MountKind.VOLUME,
            source="vol",
            target="/c",
            subpath="in/it",
            labels={"k": "v"},
            driver="local",
            driver_options={"type": "tmpfs", "device": "tmpfs"},
        ),
    )


def test_options_newer_than_the_version_mean_nothing_or_are_refused() -> None:
    options = {"ReadOnlyNonRecursive": True}
    bind = {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True, "BindOptions": options}
    assert parse(host={"Mounts": [bind]}, version=(1, 43)).spec.mounts[0].read_only_above is False
    assert parse(host={"Mounts": [bind]}, version=(1, 44)).spec.mounts[0].read_only_above is True
    part = {"Type": "volume", "Source": "vol", "Target": "/b", "VolumeOptions": {"Subpath": "x"}}
    with pytest.raises(InvalidRequest, match=r"needs API v1\.45"):
        parse(host={"Mounts": [part]}, version=(1, 44))


def test_two_mounts_on_one_place_are_refused_but_an_anonymous_volume_gives_way() -> None:
    with pytest.raises(InvalidRequest, match="Duplicate mount point: /b"):
        parse(host={"Binds": ["/a:/b", "/c:/b/"]})
    assert len(parse(Volumes={"/b": {}}, host={"Binds": ["/a:/b"]}).spec.mounts) == 1


@pytest.mark.parametrize(
    "mount",
    [
        {"Type": "bind", "Source": "/a"},
        {"Type": "bind", "Source": "a", "Target": "/b"},
        {"Type": "bind", "Source": "/a", "Target": "b"},
        {"Type": "odd", "Target": "/b"},
        {"Type": "image", "Target": "/b"},
        {"Type": "tmpfs", "Source": "x", "Target": "/b"},
        {"Type": "volume", "Target": "/b", "BindOptions": {"Propagation": "shared"}},
        {"Type": "volume", "Target": "/b", "ReadOnly": True},
        {"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"ReadOnlyForceRecursive": True}},
        {"Type": "tmpfs", "Target": "/b", "VolumeOptions": {"NoCopy": True}},
    ],
)
def test_bad_mounts(mount: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parse(host={"Mounts": [mount]})


def test_ports() -> None:
    bindings = {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "127.0.0.1"}],
        "53/udp": [{"HostPort": "53"}],
        "7/SCTP": [{}],
    }
    assert parse(host={"PortBindings": bindings}).spec.ports == (
        PortBinding(container_port=80, host_port=8080),
        PortBinding(container_port=80, host_ip="127.0.0.1"),
        PortBinding(container_port=53, protocol="udp", host_port=53),
        PortBinding(container_port=7, protocol="sctp"),
    )
    ranges = {"80/tcp": [{"HostPort": "8000-8010"}, {"HostPort": "9-9"}]}
    assert parse(host={"PortBindings": ranges}).spec.ports == (
        PortBinding(container_port=80, host_port=8000, host_port_end=8010),
        PortBinding(container_port=80, host_port=9),
    )
    for text in ("0-5", "10-5", "5-", "-5", "1-2-3", "1-99999"):
        with pytest.raises(InvalidRequest, match="invalid port specification"):
            parse(host={"PortBindings": {"80/tcp": [{"HostPort": text}]}})
    assert parse(ExposedPorts={"80/tcp": {}, "90-91": {}}).spec.exposed_ports == (
        "80/tcp",
        "90/tcp",
        "91/tcp",
    )


def test_networking() -> None:
    assert parse(NetworkingConfig={"EndpointsConfig": {"default": None}}).spec.network_mode == "bridge"
    named = parse(
        NetworkingConfig={"EndpointsConfig": {"lan": {"Aliases": ["web"]}}}, host={"NetworkMode": "lan"}
    )
    assert named.spec.network_mode == "lan"
    assert named.spec.networks == (NetworkSpec(name="lan", aliases=("web",)),)
    chosen = parse(NetworkingConfig={"EndpointsConfig": {"bridge": {"MacAddress": "02:00:00:00:00:01"}}})
    assert chosen.spec.mac_address == "02:00:00:00:00:01"
    both = {
        "NetworkingConfig": {"EndpointsConfig": {"b": {}, "a": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}}}
    }
    several = parse(host={"NetworkMode": "b"}, **both)
    assert several.spec.networks == (NetworkSpec(name="b"), NetworkSpec(name="a", ipv4_address="10.0.0.9"))
    for field, text in (
        ("IPv4Address", "web"),
        ("IPv6Address", "10.0.0.1"),
        ("IPv6Address", "::ffff:10.0.0.1"),
    ):
        with pytest.raises(InvalidRequest, match=f"invalid {field[:4]} address: {text}"):
            parse(NetworkingConfig={"EndpointsConfig": {"lan": {"IPAMConfig": {field: text}}}})
    with pytest.raises(InvalidRequest, match="cannot be created with multiple network endpoints: a, b"):
        parse(host={"NetworkMode": "b"}, version=(1, 43), **both)
    with pytest.raises(InvalidRequest, match="conflicting options: NetworkMode none"):
        parse(host={"NetworkMode": "none"}, **both)
    with pytest.raises(InvalidRequest, match="MAC"):
        parse(MacAddress="not a mac")


@pytest.mark.parametrize("mode", ["host", "none", "container:x"])
def test_what_networks_have_that_are_not_the_users(mode: str) -> None:
    def on(**endpoint: object) -> str:
        return parse(
            host={"NetworkMode": mode}, NetworkingConfig={"EndpointsConfig": {mode: endpoint}}
        ).spec.mac_address

    mac = "02:00:00:00:00:01"
    assert ("" if mode == "none" else mac) == on(MacAddress=mac)  # which the engine refuses
    assert "" == on(Links=["a:b"])  # as HostConfig.Links, which it refuses, too
    for endpoint, words in (
        ({"IPAMConfig": {"IPv4Address": "10.0.0.9"}}, "user specified IP address is supported on user"),
        ({"Aliases": ["x"]}, "network-scoped alias is supported only"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            on(**endpoint)


@pytest.mark.parametrize(
    ("host", "field"),
    [
        ({"DeviceRequests": [{"Count": -1}]}, "DeviceRequests"),
        ({"UsernsMode": "x"}, "UsernsMode"),
        ({"CgroupnsMode": "x"}, "CgroupnsMode"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name(host: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedField, match=field):
        parse(host=host)


def test_what_means_nothing_here_is_kept_and_said() -> None:
    host = {"CpuCount": 2, "KernelMemoryTCP": 5, "KernelMemory": 4, "CpuPercent": 7}
    made = parse(host=host)
    assert {"CpuCount": 2, "KernelMemoryTCP": 5} == made.spec.inert
    assert "HostConfig.CpuCount has no effect: it is for Windows" in made.warnings[0]
    assert (3, "linux does not support CPU percent") == (len(made.warnings), made.warnings[2][:34])
    assert 4 == parse(host=host, version=(1, 41)).spec.inert["KernelMemory"]
    assert "KernelMemoryTCP" not in parse(host=host, version=(1, 39)).spec.inert
    with pytest.raises(InvalidRequest, match="Invalid QoS settings"):
        parse(host={"IOMaximumIOps": 5})


def test_what_the_oldest_clients_take_for_granted() -> None:
    host = {"AutoRemove": True}
    made = [parse(host=host, version=(1, minor)).spec for minor in (24, 25, 39, 40)]
    assert [False, True, True, True] == [spec.auto_remove for spec in made]
    assert ["shareable", "shareable", "shareable", ""] == [spec.ipc_mode for spec in made]
    assert "none" == parse(host={"IpcMode": "none"}, version=(1, 39)).spec.ipc_mode


def test_what_the_client_keeps_for_itself_is_shown_again() -> None:
    spec = parse(ArgsEscaped=True, host={"ContainerIDFile": "/x", "Runtime": "crun"}).spec
    assert ({"ArgsEscaped": 1}, "/x", "crun") == (spec.inert, spec.container_id_file, spec.runtime)
    assert () == parse(ArgsEscaped=True).warnings


def test_what_an_update_does_not_change_is_said() -> None:
    given = UpdateConfig(CpuShares=5, Ulimits=[Ulimit(Name="nofile", Soft=1, Hard=1)], CpuCount=1)
    said = warn_update(given, (1, 47))
    assert ["CpuCount has no effect", "Ulimits has no effect"] == [text.partition(":")[0] for text in said]
    assert () == warn_update(UpdateConfig(OomKillDisable=False, MemorySwappiness=-1, Devices=[]), (1, 47))


def test_what_came_later_means_nothing_before() -> None:
    check = {"Test": ["CMD", "x"], "StartInterval": 5_000_000_000}
    tmpfs = {"Type": "tmpfs", "Target": "/t", "BindOptions": {"NonRecursive": True}}
    bind = {"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"CreateMountpoint": True}}
    endpoint = {"EndpointsConfig": {"lan": {"MacAddress": "02:00:00:00:00:01"}}}
    fields = {"Healthcheck": check, "NetworkingConfig": endpoint}
    for version, size, create, mac, interval in (
        ((1, 41), 0, False, "", 0),
        ((1, 43), 9, True, "", 0),
        ((1, 44), 9, True, "02:00:00:00:00:01", 5_000_000_000),
    ):
        mounts = [bind, tmpfs] if version == (1, 41) else [bind]
        host = {"ConsoleSize": [9, 9], "Mounts": mounts, "NetworkMode": "lan"}
        spec = parse(host=host, version=version, **fields).spec
        assert (size, create) == (spec.console_rows, spec.mounts[0].create_source)
        assert spec.networks is not None
        assert spec.health is not None
        assert (mac, interval) == (spec.networks[0].mac_address, spec.health.start_interval_ns)
    with pytest.raises(InvalidRequest, match="BindOptions must not be specified"):
        parse(host={"Mounts": [tmpfs]}, version=(1, 42))
    forced = {**bind, "ReadOnly": True, "BindOptions": {"ReadOnlyForceRecursive": True}}
    with pytest.raises(InvalidRequest, match=r"ReadOnlyForceRecursive needs API v1\.44 or newer"):
        parse(host={"Mounts": [forced]}, version=(1, 43))


def test_what_the_host_s_cgroups_do() -> None:
    spec = parse(
        host={
            "CpuRealtimeRuntime": 400, "CpuRealtimePeriod": 1000,
            "DeviceCgroupRules": ["c 1:* rm"], "MemorySwappiness": 40, "BlkioWeight": 300,
            "BlkioWeightDevice": [{"Path": "/dev/vda", "Weight": 200}],
            "BlkioDeviceWriteIOps": [{"Path": "/dev/vda", "Rate": 7}], "CgroupnsMode": "host",
        }
    ).spec  # fmt: skip
    assert (("c 1:* rm",), "host") == (spec.device_rules, spec.cgroupns_mode)
    assert (40, 300) == (spec.limits.memory_swappiness, spec.limits.blkio_weight)
    assert (400, 1000) == (spec.limits.cpu_rt_runtime_us, spec.limits.cpu_rt_period_us)
    assert spec.limits.throttles == (
        Throttle(what="weight", path="/dev/vda", value=200),
        Throttle(what="WriteIOps", path="/dev/vda", value=7),
    )
    assert parse(host={"MemorySwappiness": -1}).spec.limits.memory_swappiness is None
    for limits in (Limits(memory_swappiness=101), Limits(blkio_weight=5)):
        with pytest.raises(InvalidRequest, match=r"[Rr]ange"):
            check_limits(limits)
    for rule in ("c 1:3 q", "d 1:3 r", "c 1 r", "c 1:3", "c 1:3 rwmr"):
        with pytest.raises(InvalidRequest, match=f"invalid device cgroup rule format: '{rule}'"):
            parse(host={"DeviceCgroupRules": [rule]})
    with pytest.raises(InvalidRequest, match="not an absolute path"):
        parse(host={"BlkioDeviceReadBps": [{"Path": "vda", "Rate": 7}]})


def test_names_of_fields_in_any_case() -> None:
    """Go takes them so, and docker-py sends `detachKeys`."""
    raw = b'{"image": "x", "CMD": ["no"], "Cmd": ["yes"], "hostconfig": {"mounts": [{"type": "tmpfs"}]}}'
    request = decode(raw, ContainerCreateRequest)
    assert ("x", ["yes"]) == (request.Image, request.Cmd)
    assert request.HostConfig.Mounts is not None
    assert "tmpfs" == request.HostConfig.Mounts[0].Type
    kept = decode(
        b'{"networkingConfig": {"endpointsConfig": {"Lan": {"aliases": ["A"]}}}}', ContainerCreateRequest
    )
    assert ["A"] == kept.NetworkingConfig.EndpointsConfig["Lan"].Aliases


def test_a_container_without_a_network() -> None:
    assert Attachment.NONE is attachment(parse(NetworkDisabled=True).spec)[0]


def test_health_checks() -> None:
    assert parse(Healthcheck={"Test": []}).spec.health is None
    assert parse(Healthcheck={"Test": ["NONE"]}).spec.health == HealthCheck(test=("NONE",))
    given = {"Test": ["CMD", "true"], "Interval": 1, "Timeout": 2, "StartPeriod": 3, "StartInterval": 4}
    assert parse(Healthcheck={**given, "Retries": 5}).spec.health == HealthCheck(
        test=("CMD", "true"), interval_ns=1, timeout_ns=2, start_period_ns=3, start_interval_ns=4, retries=5
    )


def test_every_field_of_host_config_is_either_read_or_refused() -> None:
    """A field that this module forgets would be ignored in silence."""
    import inspect

    from insula.api import translate_create, translate_limits

    text = inspect.getsource(translate_create) + inspect.getsource(translate_limits)
    ours_alone = {"ContainerIDFile", "ConsoleSize"}  # the client writes the one, and resizes after start
    missing = [f for f in HostConfig.__struct_fields__ if f not in ours_alone and f not in text]
    assert missing == []


def test_masked_and_read_only_paths_of_one_s_own() -> None:
    spec = parse(host={"MaskedPaths": ["/proc/keys"]}).spec
    decided = decide_security(spec, "")
    assert (("/proc/keys",), READONLY_PATHS) == (decided.masked_paths, decided.readonly_paths)
    with pytest.raises(InvalidRequest, match="MaskedPaths"):
        parse(host={"MaskedPaths": ["proc"]})


def test_unconfined_system_paths() -> None:
    decided = decide_security(parse(host={"MaskedPaths": [], "ReadonlyPaths": []}).spec, "")
    assert ((), ()) == (decided.masked_paths, decided.readonly_paths)


def test_what_clients_compare_is_as_they_wrote_it() -> None:
    host = {
        "SecurityOpt": ["no-new-privileges:true"],
        "Binds": ["data:/data:rw", "/a/:/b:ro,rslave", "cc:/c"],
    }
    spec = parse(host=host).spec
    assert ("no-new-privileges:true",) == spec.security_opt
    assert decide_security(spec, "").no_new_privileges
    assert host["Binds"] == [mount.text for mount in spec.mounts]


def test_the_old_place_of_the_mac_address_warns() -> None:
    assert parse(MacAddress="02:00:00:00:00:01", version=(1, 43)).warnings == ()
    assert "deprecated" in parse(MacAddress="02:00:00:00:00:01").warnings[0]


def test_update_leaves_what_it_does_not_name() -> None:
    now = Limits(memory_bytes=2**26, pids=10, nano_cpus=10**9)
    changed = merge_limits(now, UpdateConfig(Memory=2**27))
    assert (changed.memory_bytes, changed.pids, changed.nano_cpus) == (2**27, 10, 10**9)
    assert merge_limits(now, UpdateConfig(PidsLimit=0)).pids == -1  # said, where 0 is not
    for given, field, words in (
        (
            Limits(memory_bytes=2**27),
            {"Memory": 2**28 + 1},
            "than already set memoryswap limit",
        ),  # twice as much
        (Limits(nano_cpus=10**9), {"CpuQuota": 5000}, "CPU Quota cannot be updated as NanoCPUs has"),
        (Limits(cpu_period_us=5000), {"NanoCpus": 10**9}, "cannot be updated as CPU Period has"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            merge_limits(given, UpdateConfig(**field))  # type: ignore[arg-type]
    assert merge_limits(now, UpdateConfig(PidsLimit=-2)).pids == -1
    with pytest.raises(InvalidRequest, match="Conflicting"):
        merge_limits(now, UpdateConfig(CpuQuota=5000))
    with pytest.raises(InvalidRequest, match="memoryswap"):
        merge_limits(Limits(memory_bytes=2**26, memory_swap_bytes=2**26), UpdateConfig(Memory=2**27))
    assert isinstance(UpdateConfig(), Resources)
