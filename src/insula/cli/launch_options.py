"""The options that `create` and `run` share, and the create request they make.

Names and meanings are Docker's; `--isolation` chooses between a container and a virtual machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from insula.cli import values
from insula.cli.endpoints import ON_DEFAULT, finalize_endpoints
from insula.cli.mount import parse_mount
from insula.errors import InvalidRequest

F = TypeVar("F", bound=Callable[..., Any])

# (flags, click arguments); the order is the order of --help
_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--isolation",), {"metavar": "WORD", "help": "process (a container), vm (a virtual machine), or default."}),
    (("--name",), {"help": "Name of the instance."}),
    (("-i", "--interactive"), {"is_flag": True, "help": "Keep stdin open."}),
    (("-t", "--tty"), {"is_flag": True, "help": "Give it a terminal."}),
    (("-a", "--attach"), {"multiple": True, "metavar": "STREAM", "help": "Attach stdin, stdout or stderr."}),
    (("-e", "--env"), {"multiple": True, "metavar": "NAME=VALUE", "help": "Set an environment variable."}),
    (("--env-file",), {"multiple": True, "metavar": "FILE", "help": "Read environment variables from a file."}),
    (("-w", "--workdir"), {"metavar": "DIR", "help": "Working directory inside."}),
    (("-u", "--user"), {"metavar": "USER[:GROUP]", "help": "Name or number of user and group."}),
    (("--group-add",), {"multiple": True, "metavar": "GROUP", "help": "Join one more group."}),
    (("--entrypoint",), {"help": "Replace the image's ENTRYPOINT."}),
    (("-h", "--hostname"), {"help": "Host name inside."}),
    (("--domainname",), {"help": "Domain name inside."}),
    (("-l", "--label"), {"multiple": True, "metavar": "KEY=VALUE", "help": "Set a label."}),
    (("--annotation",), {"multiple": True, "metavar": "KEY=VALUE", "help": "Set an annotation."}),
    (("--init",), {"is_flag": True, "help": "Run a small init that forwards signals and reaps."}),
    (("--stop-signal",), {"metavar": "SIGNAL", "help": "Signal that asks it to stop."}),
    (("--stop-timeout",), {"type": int, "metavar": "SECONDS", "help": "How long stop waits before SIGKILL."}),
    (("--restart",), {"default": "no", "metavar": "POLICY", "help": "no, on-failure[:N], always, unless-stopped."}),
    (("--rm",), {"is_flag": True, "help": "Remove it when it has ended."}),
    (("--pull",), {"default": "missing", "type": click.Choice(["always", "missing", "never"]), "help": "When to pull the image."}),
    (("--platform",), {"metavar": "OS/ARCH", "help": "Platform of the image to pull."}),
    (("-q", "--quiet"), {"is_flag": True, "help": "No progress while pulling."}),
    (("-v", "--volume"), {"multiple": True, "metavar": "SRC:DST[:OPTS]", "help": "Bind a host path or a volume."}),
    (("--mount",), {"multiple": True, "metavar": "KEY=VALUE,…", "help": "Attach a bind, volume or tmpfs."}),
    (("--volumes-from",), {"multiple": True, "metavar": "NAME[:ro]", "help": "Mount what another instance mounts."}),
    (("--tmpfs",), {"multiple": True, "metavar": "DST[:OPTS]", "help": "Mount a tmpfs."}),
    (("--read-only",), {"is_flag": True, "help": "Root file system read-only."}),
    (("--network", "--net"),
     {"multiple": True, "metavar": "NETWORK",
      "help": "bridge, none, host, container:NAME, or a network; also name=…,alias=…,ip=…,ip6=…,mac-address=…; repeatable."}),
    (("-p", "--publish"), {"multiple": True, "metavar": "[IP:][HOST:]PORT", "help": "Publish a port on the host."}),
    (("-P", "--publish-all"), {"is_flag": True, "help": "Publish every exposed port on a free one."}),
    (("--expose",), {"multiple": True, "metavar": "PORT", "help": "Say that a port is served."}),
    (("--dns",), {"multiple": True, "metavar": "ADDRESS", "help": "Name server."}),
    (("--dns-search",), {"multiple": True, "metavar": "DOMAIN", "help": "Search domain."}),
    (("--dns-option", "--dns-opt", "dns_option"), {"multiple": True, "metavar": "OPTION", "help": "Resolver option."}),
    (("--add-host",), {"multiple": True, "metavar": "NAME:ADDRESS", "help": "Line for /etc/hosts."}),
    (("--mac-address",), {"metavar": "MAC", "help": "Hardware address."}),
    (("--ip",), {"metavar": "ADDRESS", "help": "IPv4 address."}),
    (("--ip6",), {"metavar": "ADDRESS", "help": "IPv6 address."}),
    (("--link-local-ip",), {"multiple": True, "metavar": "ADDRESS", "help": "One more address, link-local."}),
    (("--network-alias", "--net-alias", "network_alias"),
     {"multiple": True, "metavar": "NAME", "help": "One more name on its network."}),
    (("--link",), {"multiple": True, "metavar": "INSTANCE[:ALIAS]", "help": "Find another by a name of one's own."}),
    (("-m", "--memory"), {"metavar": "BYTES", "help": "Memory limit; sizes a VM."}),
    (("--memory-swap",), {"metavar": "BYTES", "help": "Memory and swap together; -1 is unlimited."}),
    (("--memory-reservation",), {"metavar": "BYTES", "help": "Soft memory limit."}),
    (("--cpus",), {"metavar": "N", "help": "How many CPUs' worth of time."}),
    (("-c", "--cpu-shares"), {"type": int, "metavar": "N", "help": "Relative weight."}),
    (("--cpu-period",), {"type": int, "metavar": "US", "help": "CFS period in microseconds."}),
    (("--cpu-quota",), {"type": int, "metavar": "US", "help": "CFS quota in microseconds."}),
    (("--cpuset-cpus",), {"metavar": "LIST", "help": "CPUs it may run on: 0-1,3."}),
    (("--cpuset-mems",), {"metavar": "LIST", "help": "Memory nodes it may use."}),
    (("--pids-limit",), {"type": int, "metavar": "N", "help": "How many processes; -1 is unlimited."}),
    (("--ulimit",), {"multiple": True, "metavar": "NAME=SOFT[:HARD]", "help": "Resource limit."}),
    (("--shm-size",), {"metavar": "BYTES", "help": "Size of /dev/shm."}),
    (("--oom-kill-disable",), {"is_flag": True, "help": "No out-of-memory killer."}),
    (("--oom-score-adj",), {"type": int, "metavar": "N", "help": "-1000 to 1000."}),
    (("--privileged",), {"is_flag": True, "help": "All capabilities and devices, no filters."}),
    (("--cap-add",), {"multiple": True, "metavar": "CAP", "help": "Add a capability."}),
    (("--cap-drop",), {"multiple": True, "metavar": "CAP", "help": "Drop a capability."}),
    (("--security-opt",), {"multiple": True, "metavar": "OPTION", "help": "no-new-privileges, seccomp=unconfined|FILE."}),
    (("--device",), {"multiple": True, "metavar": "HOST[:DST[:RWM]]", "help": "Give it a device of the host."}),
    (("--sysctl",), {"multiple": True, "metavar": "KEY=VALUE", "help": "Kernel setting of its namespaces."}),
    (("--pid",), {"metavar": "MODE", "help": "PID namespace: host, or container:NAME."}),
    (("--ipc",), {"metavar": "MODE", "help": "IPC namespace: private, shareable, none, host, or container:NAME."}),
    (("--uts",), {"metavar": "MODE", "help": "UTS namespace: host."}),
    (("--cgroup-parent",), {"metavar": "PATH", "help": "Parent cgroup."}),
    (("--log-driver",), {"metavar": "NAME", "help": "json-file, local, journald or none."}),
    (("--log-opt",), {"multiple": True, "metavar": "KEY=VALUE", "help": "Option of the log driver: max-size=10m."}),
    (("--cidfile",), {"metavar": "FILE", "help": "Write the id to a file."}),
    (("--label-file",), {"multiple": True, "metavar": "FILE", "help": "Read labels from a file."}),
    (("--runtime",), {"metavar": "NAME", "help": "Docker's word for what runs it; --isolation chooses here."}),
    (("--userns",), {"metavar": "MODE", "help": "User namespace: host."}),
    (("--cgroupns",), {"metavar": "MODE", "help": "Cgroup namespace: private or host."}),
    (("--volume-driver",), {"metavar": "NAME", "help": "Driver of new volumes: local."}),
    (("--health-cmd",), {"metavar": "COMMAND", "help": "Run this to see whether it is healthy."}),
    (("--health-interval",), {"metavar": "SPAN", "help": "Time between two checks: 30s."}),
    (("--health-timeout",), {"metavar": "SPAN", "help": "How long a check may take: 30s."}),
    (("--health-retries",), {"type": int, "metavar": "N", "help": "Failures in a row that make it unhealthy: 3."}),
    (("--health-start-period",), {"metavar": "SPAN", "help": "Failures do not count until then."}),
    (("--health-start-interval",), {"metavar": "SPAN", "help": "Time between two checks until then: 5s."}),
    (("--no-healthcheck",), {"is_flag": True, "help": "No health check of the image's."}),
    (("--memory-swappiness",), {"type": int, "metavar": "N", "help": "How readily its pages are swapped, 0 to 100."}),
    (("--blkio-weight",), {"type": int, "metavar": "N", "help": "Block I/O weight: 10 to 1000."}),
    (("--blkio-weight-device",), {"multiple": True, "metavar": "DEVICE:N", "help": "The same, for one device."}),
    (("--device-read-bps",), {"multiple": True, "metavar": "DEVICE:RATE", "help": "Bytes read per second, at most."}),
    (("--device-read-iops",), {"multiple": True, "metavar": "DEVICE:RATE", "help": "Reads per second, at most."}),
    (("--device-write-bps",), {"multiple": True, "metavar": "DEVICE:RATE", "help": "Bytes written per second, at most."}),
    (("--device-write-iops",), {"multiple": True, "metavar": "DEVICE:RATE", "help": "Writes per second, at most."}),
    (("--device-cgroup-rule",), {"multiple": True, "metavar": "RULE", "help": "Devices it may use: c 42:* rmw."}),
    (("--storage-opt",), {"multiple": True, "metavar": "KEY=VALUE", "help": "size=10G: the disk of a VM."}),
    (("--disable-content-trust",), {"is_flag": True, "hidden": True}),
    (("--cpu-rt-period",), {"type": int, "metavar": "US", "help": "Real-time period, where the kernel has it."}),
    (("--cpu-rt-runtime",), {"type": int, "metavar": "US", "help": "Real-time runtime of each such period."}),
    # the daemon refuses these by name; here so that it, and not the parser, says why
    (("--kernel-memory",), {"hidden": True}),
    (("--cpu-count",), {"type": int, "hidden": True}),
    (("--cpu-percent",), {"type": int, "hidden": True}),
    (("--io-maxbandwidth",), {"hidden": True}),
    (("--io-maxiops",), {"type": int, "hidden": True}),
    (("--gpus",), {"hidden": True}),
]  # fmt: skip


def launch_options(function: F) -> F:
    """Decorator: all of them, in the order of the table."""
    for flags, arguments in reversed(_OPTIONS):
        function = click.option(*flags, **arguments)(function)
    return function


def _read_security_options(words: tuple[str, ...]) -> list[str]:
    """`seccomp=FILE` becomes `seccomp=<the profile>`, as the daemon wants it."""
    result = []
    for word in words:
        key, equals, value = word.partition("=")
        if (
            key == "seccomp"
            and equals
            and value not in ("unconfined", "builtin")
            and not value.startswith("{")
        ):
            try:
                with open(value, encoding="utf-8") as file:
                    result.append(f"seccomp={file.read()}")
            except OSError as error:
                raise InvalidRequest(f"--security-opt: {value}: {error.strerror}") from None
        else:
            result.append(word)
    return result


def finalize_create(
    image: str, command: tuple[str, ...], o: dict[str, Any], *, detach: bool
) -> dict[str, Any]:
    """The body of POST /containers/create.  Raises InvalidRequest naming the flag that is wrong."""
    streams = {s.lower() for s in o["attach"]}
    if not streams <= {"stdin", "stdout", "stderr"}:
        raise InvalidRequest("--attach: valid streams are STDIN, STDOUT and STDERR")
    all_streams = not streams and not detach
    interactive = o["interactive"]
    binds, volumes = values.parse_volumes(o["volume"])
    bindings, published = values.parse_publish(o["publish"])
    body: dict[str, Any] = {
        "Image": image,
        "Cmd": list(command) or None,
        "Env": values.read_env(o["env"], o["env_file"]),
        "WorkingDir": o["workdir"] or "",
        "User": o["user"] or "",
        "Hostname": o["hostname"] or "",
        "Domainname": o["domainname"] or "",
        "Labels": values.parse_pairs(
            # of a file, docker takes no line without a value
            (
                *(line for line in values.read_lines(o["label_file"], "--label-file") if "=" in line),
                *o["label"],
            ),
            "--label",
        ),
        "Tty": o["tty"],
        "OpenStdin": interactive,
        "StdinOnce": interactive and not detach,
        "AttachStdin": "stdin" in streams or (all_streams and interactive),
        "AttachStdout": "stdout" in streams or all_streams,
        "AttachStderr": "stderr" in streams or all_streams,
        "ExposedPorts": {**values.parse_expose(o["expose"]), **published},
        "Volumes": volumes,
        "HostConfig": _host_config(o) | {"Binds": binds, "PortBindings": bindings},
    }
    if o["entrypoint"] is not None:
        body["Entrypoint"] = [o["entrypoint"]]
    if o["stop_signal"]:
        body["StopSignal"] = o["stop_signal"]
    if o["stop_timeout"] is not None:
        body["StopTimeout"] = o["stop_timeout"]
    if health := _health(o):
        body["Healthcheck"] = health
    main, endpoints = finalize_endpoints(
        o["network"],
        aliases=o["network_alias"],
        links=o["link"],
        ip=o["ip"],
        ip6=o["ip6"],
        link_local=o["link_local_ip"],
        mac=o["mac_address"],
    )
    body["HostConfig"]["NetworkMode"] = main
    if main in ON_DEFAULT and o["link"]:
        body["HostConfig"]["Links"] = list(o["link"])
    if endpoints:
        body["NetworkingConfig"] = {"EndpointsConfig": endpoints}
    return body


def _health(o: dict[str, Any]) -> dict[str, Any]:
    """Empty when nothing was said of it; what is left out is the image's."""
    spans = {
        name: values.parse_duration_ns(o[option], f"--{option.replace('_', '-')}")
        for name, option in (
            ("Interval", "health_interval"),
            ("Timeout", "health_timeout"),
            ("StartPeriod", "health_start_period"),
            ("StartInterval", "health_start_interval"),
        )
        if o[option]
    }
    asked = {**spans, **({"Retries": o["health_retries"]} if o["health_retries"] else {})}
    if o["no_healthcheck"]:
        if asked or o["health_cmd"]:
            raise InvalidRequest("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    return {**asked, **({"Test": ["CMD-SHELL", o["health_cmd"]]} if o["health_cmd"] else {})}


def _limits(o: dict[str, Any]) -> dict[str, Any]:
    return {
        "Memory": values.parse_bytes(o["memory"], "--memory") if o["memory"] else 0,
        "MemoryReservation": values.parse_bytes(o["memory_reservation"], "--memory-reservation")
        if o["memory_reservation"]
        else 0,
        "MemorySwap": _swap(o["memory_swap"]),
        "NanoCpus": values.parse_cpus(o["cpus"]) if o["cpus"] else 0,
        "CpuShares": o["cpu_shares"] or 0,
        "CpuPeriod": o["cpu_period"] or 0,
        "CpuQuota": o["cpu_quota"] or 0,
        "CpusetCpus": o["cpuset_cpus"] or "",
        "CpusetMems": o["cpuset_mems"] or "",
        "PidsLimit": o["pids_limit"],
        "Ulimits": [values.parse_ulimit(word) for word in o["ulimit"]],
        "OomKillDisable": o["oom_kill_disable"],
    }


def _host_config(o: dict[str, Any]) -> dict[str, Any]:
    """All but binds and ports, which also belong to other parts of the body."""
    return {
        **_limits(o),
        "Isolation": o["isolation"] or "",
        "Mounts": [parse_mount(word) for word in o["mount"]],
        "Tmpfs": dict(word.partition(":")[::2] for word in o["tmpfs"]),
        "PublishAllPorts": o["publish_all"],
        "Dns": list(o["dns"]),
        "DnsSearch": list(o["dns_search"]),
        "DnsOptions": list(o["dns_option"]),
        "ExtraHosts": list(o["add_host"]),
        "AutoRemove": o["rm"],
        "RestartPolicy": values.parse_restart(o["restart"]),
        "ReadonlyRootfs": o["read_only"],
        "Privileged": o["privileged"],
        "CapAdd": list(o["cap_add"]),
        "CapDrop": list(o["cap_drop"]),
        "GroupAdd": list(o["group_add"]),
        "SecurityOpt": _read_security_options(o["security_opt"]),
        "Devices": [values.parse_device(word) for word in o["device"]],
        "Sysctls": values.parse_pairs(o["sysctl"], "--sysctl"),
        "PidMode": o["pid"] or "",
        "IpcMode": o["ipc"] or "",
        "UTSMode": o["uts"] or "",
        "CgroupParent": o["cgroup_parent"] or "",
        "ShmSize": values.parse_bytes(o["shm_size"], "--shm-size") if o["shm_size"] else 0,
        "OomScoreAdj": o["oom_score_adj"] or 0,
        "Annotations": values.parse_pairs(o["annotation"], "--annotation"),
        "LogConfig": {"Type": o["log_driver"] or "", "Config": values.parse_pairs(o["log_opt"], "--log-opt")},
        "Init": True if o["init"] else None,
        **_rarely_asked(o),
    }


def _rarely_asked(o: dict[str, Any]) -> dict[str, Any]:
    """Fields that are sent only when their flag was given."""
    found = {
        "Runtime": o["runtime"],
        "UsernsMode": o["userns"],
        "CgroupnsMode": o["cgroupns"],
        "VolumeDriver": o["volume_driver"],
        "VolumesFrom": list(o["volumes_from"]),
        "MemorySwappiness": o["memory_swappiness"],
        "KernelMemory": values.parse_bytes(o["kernel_memory"], "--kernel-memory")
        if o["kernel_memory"]
        else 0,
        "BlkioWeight": o["blkio_weight"],
        "BlkioWeightDevice": [
            values.parse_throttle(word, "--blkio-weight-device", key="Weight")
            for word in o["blkio_weight_device"]
        ],
        **_throttles(o),
        "CpuRealtimePeriod": o["cpu_rt_period"],
        "CpuRealtimeRuntime": o["cpu_rt_runtime"],
        "CpuCount": o["cpu_count"],
        "CpuPercent": o["cpu_percent"],
        "IOMaximumIOps": o["io_maxiops"],
        "IOMaximumBandwidth": values.parse_bytes(o["io_maxbandwidth"], "--io-maxbandwidth")
        if o["io_maxbandwidth"]
        else 0,
        "DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}] if o["gpus"] else [],
        "DeviceCgroupRules": list(o["device_cgroup_rule"]),
        "StorageOpt": values.parse_pairs(o["storage_opt"], "--storage-opt"),
    }
    return {key: value for key, value in found.items() if value not in (None, "", 0, [], {})}


def _throttles(o: dict[str, Any]) -> dict[str, Any]:
    fields = {
        "BlkioDeviceReadBps": ("device_read_bps", True),
        "BlkioDeviceWriteBps": ("device_write_bps", True),
        "BlkioDeviceReadIOps": ("device_read_iops", False),
        "BlkioDeviceWriteIOps": ("device_write_iops", False),
    }
    return {
        field: [values.parse_throttle(word, f"--{name.replace('_', '-')}", sizes=sizes) for word in o[name]]
        for field, (name, sizes) in fields.items()
    }


def _swap(word: str | None) -> int:
    if not word:
        return 0
    return -1 if word == "-1" else values.parse_bytes(word, "--memory-swap")
