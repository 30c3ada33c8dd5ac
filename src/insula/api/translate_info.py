"""`/info` and `/version` as Docker shows them.  Pure, but for the clock and the environment."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import insula
from insula import __version__
from insula.api.times import format_time
from insula.api.versions import ACCEPTED, ENGINE_VERSION, NEWEST, Version, text_of
from insula.config import Settings
from insula.engine.types import EngineInfo
from insula.isolation.backend import BackendInfo
from insula.model.isolation import Isolation
from insula.system.kernel_facts import KernelFacts

_PLUGINS = {
    "Volume": ["local"],
    "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
    "Authorization": None,
    "Log": ["journald", "json-file", "local", "none"],
}
_NO_SWARM = {
    "NodeID": "",
    "NodeAddr": "",
    "LocalNodeState": "inactive",
    "ControlAvailable": False,
    "Error": "",
    "RemoteManagers": None,
}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_INDEX = "docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What only the daemon itself can count."""

    listeners: int
    tasks: int


def render_version(info: EngineInfo) -> dict[str, Any]:
    """`GET /version`."""
    architecture = {v: k for k, v in _MACHINES.items()}.get(info.architecture, info.architecture)
    details = {
        "ApiVersion": text_of(NEWEST),
        "Arch": architecture,
        "BuildTime": _build_time(),
        "Experimental": "true",
        "GitCommit": f"v{__version__}",
        "GoVersion": f"none (Python {platform.python_version()})",
        "KernelVersion": info.kernel,
        "MinAPIVersion": text_of(ACCEPTED),
        "Os": "linux",
    }
    components = [{"Name": "Engine", "Version": __version__, "Details": details}]
    components += [
        {
            "Name": f"{b.isolation}: {b.runtime or 'not available'}",
            "Version": b.version,
            "Details": dict(b.details),
        }
        for b in info.backends
    ]
    return {
        "Platform": {"Name": "insula"},
        "Components": components,
        "Version": ENGINE_VERSION,
        **{k: v for k, v in details.items() if k != "Experimental"},
        "Experimental": True,
    }


def _build_time() -> str:
    """When this copy of the package was put where it is."""
    return format_time(os.stat(insula.__file__).st_mtime_ns, fixed=True)


def render_info(
    info: EngineInfo,
    settings: Settings,
    facts: KernelFacts,
    activity: Activity,
    version: Version = NEWEST,
) -> dict[str, Any]:
    """`GET /info`, with every section filled."""
    backends = {b.isolation: b for b in info.backends}
    default = backends.get(info.default_isolation)
    process = backends.get(Isolation.PROCESS) or BackendInfo(
        isolation=Isolation.PROCESS, runtime="", version=""
    )
    init = os.path.basename(dict(process.details).get("init", ""))
    has_status = version >= (1, 44)
    return {
        "ID": info.id,
        "Containers": info.running + info.paused + info.stopped,
        "ContainersRunning": info.running,
        "ContainersPaused": info.paused,
        "ContainersStopped": info.stopped,
        "Images": info.images,
        "Driver": "overlay2",
        "DriverStatus": [
            [f"isolation {b.isolation}", f"{b.runtime} {b.version}".strip() or "not available"]
            for b in info.backends
        ]
        + [[f"{b.isolation} {name}", text] for b in info.backends for name, text in b.details],
        "Plugins": _PLUGINS,
        "MemoryLimit": facts.memory_limit,
        "SwapLimit": facts.swap_limit,
        "KernelMemoryTCP": False,
        "CpuCfsPeriod": facts.cpu_quota,
        "CpuCfsQuota": facts.cpu_quota,
        "CPUShares": facts.cpu_shares,
        "CPUSet": facts.cpuset,
        "PidsLimit": facts.pids_limit,
        "IPv4Forwarding": facts.ipv4_forwarding,
        "BridgeNfIptables": facts.bridge_iptables,
        "BridgeNfIp6tables": facts.bridge_ip6tables,
        "Debug": settings.log_level == "debug",
        "NFd": facts.file_descriptors,
        "OomKillDisable": facts.oom_kill_disable,
        "NGoroutines": activity.tasks,
        "SystemTime": format_time(time.time_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": str(facts.cgroup_version),
        "NEventsListener": activity.listeners,
        "KernelVersion": info.kernel,
        "OperatingSystem": info.operating_system,
        "OSVersion": facts.os_version,
        "OSType": "linux",
        "Architecture": _MACHINES.get(info.architecture, info.architecture),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": _registries(settings),
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "GenericResources": None,
        "DockerRootDir": info.data_root,
        "HttpProxy": _proxy("http_proxy"),
        "HttpsProxy": _proxy("https_proxy"),
        "NoProxy": _proxy("no_proxy"),
        "Name": info.name,
        "Labels": list(info.labels),
        "ExperimentalBuild": True,
        "ServerVersion": ENGINE_VERSION,
        "Runtimes": {
            b.runtime or b.isolation.value: {"path": dict(b.details).get("runtime path", b.runtime)}
            | ({"status": {"isolation": b.isolation.value, "version": b.version}} if has_status else {})
            for b in info.backends
        },
        "DefaultRuntime": (default.runtime if default else "") or "runc",
        "Swarm": _NO_SWARM,
        "LiveRestoreEnabled": True,
        "Isolation": info.default_isolation.value,
        "InitBinary": init,
        "ContainerdCommit": _commit(f"none (conmon {dict(process.details).get('conmon', 'not available')})"),
        "RuncCommit": _commit(f"{process.runtime} {process.version}".strip()),
        "InitCommit": _commit(init),
        "SecurityOptions": ["name=seccomp,profile=builtin"]
        + (["name=cgroupns"] if facts.cgroup_version == 2 else []),
        "ProductLicense": "Apache-2.0",
        "CDISpecDirs": [],
        "Warnings": _warnings(info, settings, facts) or None,
    }


def _commit(text: str) -> dict[str, str]:
    return {"ID": text, "Expected": text}


def _proxy(name: str) -> str:
    """Without what may be a password in it."""
    value = os.environ.get(name) or os.environ.get(name.upper()) or ""
    scheme, separator, rest = value.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else value.rpartition("@")[2]


def _registries(settings: Settings) -> dict[str, Any]:
    mirrors = list(settings.registry_mirror)
    networks = [name for name in settings.insecure_registry if "/" in name]
    indexes = {_INDEX: {"Name": _INDEX, "Mirrors": mirrors, "Secure": True, "Official": True}} | {
        name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False}
        for name in settings.insecure_registry
        if name not in networks
    }
    return {
        "AllowNondistributableArtifactsCIDRs": [],
        "AllowNondistributableArtifactsHostnames": [],
        "InsecureRegistryCIDRs": [*networks, "::1/128", "127.0.0.0/8"],
        "IndexConfigs": indexes,
        "Mirrors": mirrors,
    }


def _open_doors(settings: Settings) -> Iterator[str]:
    if settings.tlsverify:
        return
    scheme, lack = ("https", "TLS client verification") if settings.tls else ("http", "encryption")
    for host in settings.host:
        if host.startswith("tcp://"):
            yield (
                f"WARNING: API is accessible on {scheme}{host.removeprefix('tcp')} without {lack}.\n"
                "         Access to the remote API is equivalent to root access on the host."
            )


def _warnings(info: EngineInfo, settings: Settings, facts: KernelFacts) -> list[str]:
    """Docker's words for what the kernel lacks, and for an API that is open to everybody."""
    lacking = (
        (facts.memory_limit, "memory limit"),
        (facts.swap_limit, "swap limit"),
        (facts.cpu_quota, "cpu cfs quota"),
        (facts.cpu_shares, "cpu shares"),
        (facts.cpuset, "cpuset"),
        (facts.pids_limit, "pids limit"),
    )
    return [
        *_open_doors(settings),
        *info.warnings,
        *(f"isolation {b.isolation}: {b.problem}" for b in info.backends if b.problem),
        *(f"WARNING: No {what} support" for there, what in lacking if not there),
        *([] if facts.ipv4_forwarding else ["WARNING: IPv4 forwarding is disabled"]),
    ]
