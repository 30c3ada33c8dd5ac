"""The config.json that a plan becomes, against golden files.  INSULA_GOLDEN=write makes them anew."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from insula.isolation.plan import Console, Device, LaunchPlan, Process, Security
from insula.isolation.process.spec import (
    DeviceNode,
    HostFacts,
    cgroup_name,
    make_config,
    make_exec_process,
    with_home,
)
from insula.isolation.users import Identity
from insula.model.isolation import Isolation
from insula.model.limits import Limits, Ulimit
from insula.model.mounts import EtcFile, Mount, MountKind
from insula.model.network import Endpoint, LinkKind
from insula.model.root import DirectoryRoot
from insula.security.capabilities import ALL, finalize_capabilities
from insula.security.paths import MASKED_PATHS, READONLY_PATHS

GOLDEN = Path(__file__).parent / "golden"
ID = "0123456789abcdef" * 4
ROOT = Identity(0, 0, (), "/root")
FACTS = HostFacts(
    cgroup_version=1,
    kernel=(6, 1),
    capabilities=frozenset(ALL),
    swap_accounting=True,
    init_path="/usr/bin/tini-static",
)
PROFILE = json.dumps(
    {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}],
    }
)

MINIMAL = LaunchPlan(
    id=ID,
    isolation=Isolation.PROCESS,
    state_dir="/var/lib/insula/instances/x",
    run_dir="/run/insula/instances/x",
    hostname="0123456789ab",
    process=Process(args=("sh",), env=("PATH=/bin",)),
    console=Console(log_path="/log"),
    limits=Limits(),
    security=Security(
        capabilities=finalize_capabilities(),
        seccomp=PROFILE,
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
    ),
    directory=DirectoryRoot(merged="/run/insula/roots/x/merged", lowers=("/l",), upper="/u", work="/w"),
)
FULL = dataclasses.replace(
    MINIMAL,
    process=Process(
        args=("sleep", "5"),
        env=("PATH=/bin", "HOME=/mine"),
        cwd="/srv",
        user="bob",
        tty=True,
        console_rows=24,
        console_cols=80,
    ),
    limits=Limits(
        memory_bytes=64 << 20,
        nano_cpus=500_000_000,
        pids=32,
        oom_score_adj=100,
        shm_size_bytes=1 << 20,
        ulimits=(Ulimit(name="nofile", soft=100, hard=200), Ulimit(name="core", soft=0, hard=-1)),
    ),
    security=dataclasses.replace(
        MINIMAL.security,
        no_new_privileges=True,
        read_only_root=True,
        devices=(Device(host_path="/dev/fuse", path="/dev/fuse", rules="rw"),),
        sysctls=(("net.core.somaxconn", "1024"),),
    ),
    domainname="example.org",
    mounts=(
        Mount(kind=MountKind.TMPFS, target="/srv/tmp", options=("size=1m",)),
        Mount(kind=MountKind.BIND, target="/srv", source="/data", propagation="rslave"),
        Mount(kind=MountKind.BIND, target="/dev/shm", source="/shm", read_only=True),
    ),
    etc_files=(EtcFile(target="/etc/hosts", text="", host_path="/run/insula/hosts"),),
    endpoints=(
        Endpoint(
            network_id="n",
            network_name="bridge",
            kind=LinkKind.VETH,
            link="iv0123456789",
            interface="eth0",
            mac="02:00:00:00:00:01",
            address="172.29.0.2",
            prefix_len=16,
            gateway="172.29.0.1",
            netns="/run/insula/netns/1",
        ),
    ),
    init=True,
)
PRIVILEGED = dataclasses.replace(
    MINIMAL,
    security=Security(capabilities=tuple(sorted(ALL)), seccomp="", privileged=True),
    host_network=True,
    pid_mode="host",
    ipc_mode="host",
    uts_mode="host",
)
FUSE = DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229, mode=0o666, uid=0, gid=0, rules="rw")


@pytest.mark.parametrize(
    ("name", "plan", "identity", "facts", "devices"),
    [
        ("process-minimal", MINIMAL, ROOT, FACTS, ()),
        ("process-minimal-v2", MINIMAL, ROOT, dataclasses.replace(FACTS, cgroup_version=2), ()),
        ("process-raw-seccomp", MINIMAL, ROOT, dataclasses.replace(FACTS, raw_seccomp=True), ()),
        ("process-full", FULL, Identity(1000, 1000, (50,), "/home/bob"), FACTS, (FUSE,)),
        ("process-privileged", PRIVILEGED, ROOT, FACTS, ()),
    ],
)
def test_config(
    name: str, plan: LaunchPlan, identity: Identity, facts: HostFacts, devices: tuple[DeviceNode, ...]
) -> None:
    actual = make_config(plan, identity, facts, devices)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("INSULA_GOLDEN") == "write":
        path.write_text(json.dumps(actual, indent=2) + "\n")
    assert actual == json.loads(path.read_text())


def test_exec_has_the_instances_limits_and_privileged_exec_everything() -> None:
    process = Process(args=("id",), env=())
    plain = make_exec_process(FULL, process, ROOT, FACTS, privileged=False)
    assert plain["capabilities"]["bounding"] == list(finalize_capabilities())
    assert plain["noNewPrivileges"] is True
    assert plain["env"] == ["HOME=/root"]
    assert plain["rlimits"][0] == {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}
    full = make_exec_process(FULL, process, ROOT, FACTS, privileged=True)
    assert full["capabilities"]["bounding"] == sorted(ALL)
    assert full["noNewPrivileges"] is False


def test_home_is_set_only_when_missing() -> None:
    assert with_home(("A=b",), "/h") == ["A=b", "HOME=/h"]
    assert with_home(("HOME=/x",), "/h") == ["HOME=/x"]
    assert with_home(("HOME=", "A=b"), "/h") == ["A=b", "HOME=/h"]


def test_cgroup_is_named_by_the_instance_below_its_parent() -> None:
    assert cgroup_name(MINIMAL) == f"insula/{ID}"
    assert cgroup_name(dataclasses.replace(MINIMAL, cgroup_parent="/mine/")) == f"mine/{ID}"
    for parent in ("../../../mine", "/a/../../mine/.", "//mine"):
        assert cgroup_name(dataclasses.replace(MINIMAL, cgroup_parent=parent)) == f"mine/{ID}"
    assert cgroup_name(dataclasses.replace(MINIMAL, cgroup_parent="..")) == f"insula/{ID}"


def test_all_capabilities_are_those_that_the_host_has() -> None:
    security = dataclasses.replace(MINIMAL.security, capabilities=tuple(sorted(ALL)), all_capabilities=True)
    facts = dataclasses.replace(FACTS, capabilities=frozenset({"CAP_CHOWN", "CAP_KILL"}))
    config = make_config(dataclasses.replace(MINIMAL, security=security), ROOT, facts)
    assert ["CAP_CHOWN", "CAP_KILL"] == config["process"]["capabilities"]["bounding"]
