"""What a create request must keep to whatever the isolation; the rest is each backend's `check`.  Pure.

The wording is moby's where moby has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from insula.engine.health import check_health
from insula.engine.links import check_link_mode
from insula.engine.log_options import check_log
from insula.engine.sharing import check_modes
from insula.engine.signals import parse_signal
from insula.errors import InvalidRequest, UnsupportedField
from insula.model.instance import InstanceSpec, RestartPolicy
from insula.model.isolation import root_kind
from insula.model.limits import Limits
from insula.model.network import NetworkSpec
from insula.model.root import RootKind
from insula.model.sizes import parse_size
from insula.system import cpusets
from insula.system.security_modules import has_apparmor, has_selinux

RESTART_POLICIES = ("", "no", "always", "on-failure", "unless-stopped")
_HOSTNAME = re.compile(r"(?!-)[a-zA-Z0-9_.-]{1,63}")
_MOST_DISK = 16 << 40  # what ext4 can be
_MOST_ID = 2**31 - 1
_LEAST_MEMORY = 6 * 1024 * 1024


def check_spec(spec: InstanceSpec) -> None:
    """Raises InvalidRequest, UnsupportedField."""
    check_limits(spec.limits)
    check_restart(spec.restart, auto_remove=spec.auto_remove)
    check_log(spec.log)
    check_modes(spec)
    if spec.health is not None:
        check_health(spec.health)
    if spec.stop_signal:
        parse_signal(spec.stop_signal)
    if spec.working_dir and not spec.working_dir.startswith("/"):
        raise InvalidRequest(
            f"the working directory '{spec.working_dir}' is invalid, it needs to be an absolute path"
        )
    for number in spec.user.split(":"):
        if number.removeprefix("-").isdecimal() and not 0 <= int(number) <= _MOST_ID:
            raise InvalidRequest(f"uids and gids must be in range 0-{_MOST_ID}: {spec.user}")
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise InvalidRequest(f"invalid hostname format: {spec.hostname}")
    for entry in spec.env:
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidRequest(f"invalid environment variable: {entry}")
    if "" in spec.annotations:
        raise InvalidRequest("invalid Annotations: the empty string is not permitted as an annotation key")
    _check_storage(spec)
    _check_network(spec)
    check_labels(spec.security_opt)


def _check_storage(spec: InstanceSpec) -> None:
    """A machine has a disk of its own, which has a size; a container writes to the host's."""
    if not spec.storage_opt:
        return
    if root_kind(spec.isolation) is RootKind.DIRECTORY:
        raise UnsupportedField(  # moby's words
            "HostConfig.StorageOpt",
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
            hint="--isolation vm gives it a disk of the size",
        )
    disk_gib(spec.storage_opt)


def check_labels(options: Iterable[str]) -> tuple[str, ...]:
    """SecurityOpt's AppArmor profile and SELinux labels, which are not applied here.  On a host without that
    module they mean nothing to Docker, either: warnings then.  Raises UnsupportedField on one with it."""
    warnings = []
    for option in options:
        key, _, value = (option if "=" in option else option.replace(":", "=", 1)).partition("=")
        if (key, value) in (("apparmor", "unconfined"), ("label", "disable")):
            continue
        for name, module, works in (
            ("apparmor", "AppArmor", has_apparmor),
            ("label", "SELinux", has_selinux),
        ):
            if key == name and works():
                raise UnsupportedField("HostConfig.SecurityOpt", f"{option!r}: {module} is not supported")
            if key == name:
                warnings.append(f"SecurityOpt: {option} has no effect: this host has no {module}")
    return tuple(warnings)


def disk_gib(options: Mapping[str, str]) -> int:
    """`size=20G` in GiB, rounded up; 0 when it is not given.  Raises InvalidRequest."""
    for name in options:
        if name != "size":
            raise InvalidRequest(f"Unknown option {name[:64]}", hint="--storage-opt size=20G")
    if "size" not in options:
        return 0
    size = parse_size(options["size"].strip()) or 0
    if not 0 < size <= _MOST_DISK:
        raise InvalidRequest(f"invalid size: '{options['size'][:64]}'", hint="as 20G, and at most 16T")
    return -(-size >> 30)


def _check_network(spec: InstanceSpec) -> None:
    if spec.network_mode.partition(":")[0] == "container":
        _check_joined(spec)
    check_link_mode(spec)
    for wanted in spec.networks or ():
        check_predefined(wanted, wanted.name)
    if spec.network_mode == "host" and spec.mac_address:
        raise InvalidRequest("conflicting options: mac-address and the network mode")
    if spec.uts_mode == "host" and spec.hostname:
        raise InvalidRequest("conflicting options: hostname and the UTS mode")


def _check_joined(spec: InstanceSpec) -> None:
    """What belongs to the instance whose network it is (moby: daemon/runconfig's validateNetMode)."""
    if not spec.network_mode.partition(":")[2]:
        raise InvalidRequest("Invalid network mode: invalid container format container:<name|id>")
    conflicts = (
        (spec.hostname, "hostname"),
        (spec.mac_address, "mac-address"),
        (spec.dns, "dns"),
        (spec.extra_hosts, "custom host-to-IP mapping"),
    )
    for given, what in conflicts:
        if given:
            raise InvalidRequest(f"conflicting options: {what} and the network mode")
    if spec.ports or spec.publish_all:
        raise InvalidRequest("conflicting options: port publishing and the container type network mode")
    if spec.exposed_ports:
        raise InvalidRequest("conflicting options: port exposing and the container type network mode")


def check_predefined(wanted: NetworkSpec, network: str) -> None:
    """What no network has that is not the user's own: the default bridge, the host's, another's, none.
    `network` is its name, or the mode.  Raises InvalidRequest."""
    if network not in ("", "default", "bridge", "host", "none") and not network.startswith("container:"):
        return
    if wanted.ipv4_address or wanted.ipv6_address:
        raise InvalidRequest("user specified IP address is supported on user defined networks only")
    if wanted.aliases:
        raise InvalidRequest("network-scoped alias is supported only for containers in user defined networks")
    if wanted.links:
        raise InvalidRequest(
            "links of an endpoint are supported only on user defined networks",
            hint="on the default bridge they are HostConfig.Links (run --link)",
        )


def check_restart(policy: RestartPolicy, *, auto_remove: bool = False) -> None:
    """Raises InvalidRequest."""
    if policy.name not in RESTART_POLICIES:
        raise InvalidRequest(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of 'no', 'always', "
            "'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidRequest("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise InvalidRequest("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if auto_remove and policy.name not in ("", "no"):
        raise InvalidRequest("can't create 'AutoRemove' container with restart policy")


def check_cpusets(limits: Limits) -> None:
    """Of this host's CPUs and memory nodes, in dockerd's words.  Raises InvalidRequest."""
    for text, kind, name, available in (
        (limits.cpuset_cpus, "cpus", "CPUs", cpusets.available_cpus),
        (limits.cpuset_mems, "mems", "memory nodes", cpusets.available_nodes),
    ):
        if not text:
            continue
        wanted = cpusets.parse(text)
        if wanted is None:
            raise InvalidRequest(f"Invalid value {text} for cpuset {kind}")
        if not wanted <= (there := available()):
            raise InvalidRequest(
                f"Requested {name} are not available - requested {text}, available: {cpusets.show(there)}"
            )


def check_limits(limits: Limits) -> None:
    """What no isolation could give, and CPUs that this host has not; moby's words.  Raises InvalidRequest."""
    memory, swap = limits.memory_bytes, limits.memory_swap_bytes
    if 0 < memory < _LEAST_MEMORY:
        raise InvalidRequest("Minimum memory limit allowed is 6MB")
    if swap > 0 and memory <= 0:
        raise InvalidRequest("You should always set the Memory limit when using Memoryswap limit, see usage")
    if memory > 0 and 0 < swap < memory:
        raise InvalidRequest("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory > 0 and limits.memory_reservation_bytes > memory:
        raise InvalidRequest("Minimum memory limit can not be less than memory reservation limit, see usage")
    if 0 < limits.memory_reservation_bytes < _LEAST_MEMORY:
        raise InvalidRequest("Minimum memory reservation allowed is 6MB")
    check_cpusets(limits)
    if limits.nano_cpus > 0 and (limits.cpu_quota_us > 0 or limits.cpu_period_us > 0):
        which = "Period" if limits.cpu_period_us > 0 else "Quota"
        raise InvalidRequest(f"Conflicting options: Nano CPUs and CPU {which} cannot both be set.")
    if limits.nano_cpus < 0:
        raise InvalidRequest("range of CPUs is invalid: it must be more than 0")
    if limits.cpu_period_us and not 1000 <= limits.cpu_period_us <= 1_000_000:
        raise InvalidRequest(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < limits.cpu_quota_us < 1000:
        raise InvalidRequest("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    runtime, period = limits.cpu_rt_runtime_us, limits.cpu_rt_period_us
    if runtime < 0 or period < 0:
        raise InvalidRequest("cpu real-time runtime and period can not be negative")
    if runtime and period and runtime > period:
        raise InvalidRequest("cpu real-time runtime cannot be higher than cpu real-time period")
    if not -1000 <= limits.oom_score_adj <= 1000:
        raise InvalidRequest(
            f"Invalid value {limits.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    if limits.memory_swappiness is not None and not 0 <= limits.memory_swappiness <= 100:
        raise InvalidRequest(
            f"Invalid value: {limits.memory_swappiness}, valid memory swappiness range is 0-100"
        )
    for weight in (limits.blkio_weight, *(t.value for t in limits.throttles if t.what == "weight")):
        if weight and not 10 <= weight <= 1000:
            raise InvalidRequest("Range of blkio weight is from 10 to 1000")
    if limits.shm_size_bytes < 0:
        raise InvalidRequest("SHM size can not be less than 0")
    for limit in limits.ulimits:
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise InvalidRequest(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
