"""An instance made again from what inspect says of it is the same: what programs do that put a newer image
in the place of an older one (watchtower, Portainer, ansible, compose 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api_wire import ask, create
from fake_house import House, start_house

pytestmark = pytest.mark.timeout(60)

_MIB = 1 << 20

ASKED: tuple[dict[str, Any], ...] = (
    {"Hostname": "a.b", "Domainname": "d.example", "User": "1:2", "Tty": True, "OpenStdin": True},
    {"StdinOnce": True, "AttachStdin": True, "AttachStdout": True, "WorkingDir": "/tmp/x"},
    {"Entrypoint": ["sh", "-c"], "Cmd": ["true"]},
    {"Entrypoint": [], "Cmd": ["true"]},
    {"StopSignal": "SIGINT", "StopTimeout": 0},
    {"StopTimeout": 7, "Labels": {"a": "b", "c": ""}, "Shell": ["/bin/sh", "-x"], "OnBuild": ["RUN x"]},
    {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data/": {}}},
    {"Volumes": {"/m": {}}, "HostConfig": {"Binds": ["named:/m", "/anonymous", "/srv:/s:ro,z"]}},
    {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000, "Retries": 3}},
    {"Healthcheck": {"Test": ["NONE"]}, "NetworkDisabled": True},
    {"MacAddress": "02:42:ac:11:00:99"},
    {"HostConfig": {"Memory": 64 * _MIB, "MemorySwap": -1, "MemoryReservation": 32 * _MIB}},
    {"HostConfig": {"CpuPeriod": 50_000, "CpuQuota": 25_000, "CpusetCpus": "0", "CpusetMems": "0"}},
    {"HostConfig": {"NanoCpus": 500_000_000, "CpuShares": 512, "PidsLimit": 100, "OomScoreAdj": 100}},
    {"HostConfig": {"Ulimits": [{"Name": "core", "Soft": -1, "Hard": -1}], "ShmSize": 32 * _MIB}},
    {"HostConfig": {"Init": False, "ReadonlyRootfs": True, "ContainerIDFile": "/tmp/id"}},
    {"HostConfig": {"Init": True, "CapAdd": ["NET_ADMIN"], "CapDrop": ["MKNOD"], "GroupAdd": ["audio"]}},
    {"HostConfig": {"SecurityOpt": ["no-new-privileges", "label=disable"], "Annotations": {"x": "y"}}},
    {"HostConfig": {"MaskedPaths": [], "ReadonlyPaths": ["/proc/sys"]}},
    {"HostConfig": {"Privileged": True, "MaskedPaths": None, "ReadonlyPaths": None}},
    {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/srv", "Target": "/m", "Consistency": "cached"}]}},
    {"HostConfig": {"Mounts": [{"Type": "volume", "Target": "/m"}, {"Type": "tmpfs", "Target": "/a"}]}},
    {"HostConfig": {"Tmpfs": {"/t": "rw,size=1m"}, "Sysctls": {"net.ipv4.ip_forward": "1"}}},
    {"HostConfig": {"VolumesFrom": ["donor:ro"], "IpcMode": "shareable", "PidMode": "host"}},
    {"HostConfig": {"Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/n",
                                 "CgroupPermissions": "rw"}], "DeviceCgroupRules": ["c 1:3 rwm"]}},
    {"HostConfig": {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}},
    {"HostConfig": {"LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}}},
    {"HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18080-18082"}]}}},
    {"HostConfig": {"Dns": ["8.8.8.8"], "DnsSearch": ["."], "ExtraHosts": ["h:host-gateway", "b:::1"]}},
)  # fmt: skip


def missing(asked: Any, shown: Any, where: str = "") -> list[str]:
    """What of `asked` is not in `shown`."""
    if isinstance(asked, dict) and isinstance(shown, dict):
        return [each for name in asked for each in missing(asked[name], shown.get(name), f"{where}.{name}")]
    return [] if asked == shown else [f"{where}: {asked} became {shown}"]


async def inspect(house: House, ident: str) -> dict[str, Any]:
    status, _, body = await ask(house, "GET", f"/v1.45/containers/{ident}/json")
    assert 200 == status, body
    found: dict[str, Any] = json.loads(body)
    return found


async def make(house: House, document: dict[str, Any]) -> dict[str, Any]:
    status, _, body = await ask(house, "POST", "/v1.45/containers/create", document)
    assert 201 == status, (document, body)
    return await inspect(house, json.loads(body)["Id"])


async def test_inspect_says_what_was_asked_for_and_makes_the_same_again(tmp_path: Path) -> None:
    async with start_house(tmp_path) as house:
        await create(house, "sleep", "100", Volumes={"/shared": {}})
        donor = next(iter(house.engine.list(all=True))).id
        for asked in ASKED:
            text = json.dumps({"Image": "busybox", "Cmd": ["true"], **asked}).replace("donor", donor)
            given = json.loads(text)
            first = await make(house, given)
            host = given.pop("HostConfig", {})
            assert [] == missing(given, first["Config"]) + missing(host, first["HostConfig"])
            networks = {"EndpointsConfig": first["NetworkSettings"]["Networks"]}
            second = await make(
                house,
                {**first["Config"], "HostConfig": first["HostConfig"], "NetworkingConfig": networks},
            )
            for part in ("Config", "HostConfig", "Path", "Args"):
                assert first[part] == second[part]
            assert networks["EndpointsConfig"] == second["NetworkSettings"]["Networks"]


async def test_whose_namespaces_it_has_is_kept_by_id(tmp_path: Path) -> None:
    """A name may be another's tomorrow.  A network's owner need not be there yet, as in Docker."""
    async with start_house(tmp_path) as house:
        donor = await create(house, "sleep", "100", HostConfig={"IpcMode": "shareable"})
        name = (await inspect(house, donor))["Name"]
        for field in ("NetworkMode", "PidMode", "IpcMode"):
            made = await make(house, {"Image": "busybox", "HostConfig": {field: f"container:{name}"}})
            assert f"container:{donor}" == made["HostConfig"][field]
        made = await make(house, {"Image": "busybox", "HostConfig": {"NetworkMode": "container:later"}})
        assert "container:later" == made["HostConfig"]["NetworkMode"]
