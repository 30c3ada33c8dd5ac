"""From a request, its image and what was made for it to a LaunchPlan.  Pure: decides, makes nothing."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from insula.config import Settings
from insula.engine.merge import process_env
from insula.errors import InvalidRequest, UnsupportedField
from insula.isolation.plan import Console, Device, LaunchPlan, Process, Security
from insula.isolation.sizing import machine_for
from insula.model.ids import short_id
from insula.model.instance import InstanceSpec, MergedConfig
from insula.model.isolation import root_kind
from insula.model.mounts import EtcFile, Mount
from insula.model.network import Endpoint, NetworkSpec, PortBinding
from insula.model.root import DirectoryRoot, DiskRoot, RootKind
from insula.security.capabilities import finalize_capabilities, normalise
from insula.security.paths import finalize_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where an instance's own things lie on the host; `log_path` "" for no log."""

    state_dir: str
    run_dir: str
    log_path: str


_JOIN = "container:"


class Attachment(enum.Enum):
    BRIDGE = enum.auto()
    NONE = enum.auto()
    HOST = enum.auto()
    JOIN = enum.auto()
    """The network of another instance, and no other."""


def attachment(spec: InstanceSpec) -> tuple[Attachment, str]:
    """How it is to be on the network, and on which, or whose."""
    if spec.network_mode.startswith(_JOIN):
        return Attachment.JOIN, spec.network_mode.removeprefix(_JOIN)
    if spec.network_mode == "host":
        return Attachment.HOST, ""
    if spec.network_mode == "none" or spec.network_disabled:
        return Attachment.NONE, ""
    return Attachment.BRIDGE, "bridge" if spec.network_mode in ("", "default") else spec.network_mode


def wanted_networks(spec: InstanceSpec) -> tuple[NetworkSpec, ...]:
    """What it is to be on, in the order in which it is connected."""
    how, network = attachment(spec)
    if how is not Attachment.BRIDGE:
        return ()
    if spec.networks is None:
        return (NetworkSpec(name=network, mac_address=spec.mac_address),)
    return spec.networks


def names_on(wanted: NetworkSpec, *, name: str, instance_id: str, hostname: str) -> tuple[str, ...]:
    """What the others on a user-defined network find an instance by (inspect's DNSNames)."""
    return tuple(dict.fromkeys((name, *wanted.aliases, short_id(instance_id), hostname)))


def placeholder_root(spec: InstanceSpec) -> DirectoryRoot | DiskRoot:
    """For a plan that is only to be checked."""
    if root_kind(spec.isolation) is RootKind.DISK:
        return DiskRoot(image_disk="", upper_disk="")
    return DirectoryRoot(merged="", lowers=(), upper="", work="")


def decide_security(spec: InstanceSpec, default_profile: str) -> Security:
    """`default_profile` is the seccomp profile's JSON text.  Raises InvalidRequest, UnsupportedField."""
    seccomp = "" if spec.privileged else default_profile
    no_new_privileges = False
    for option in spec.security_opt:
        key, separator, value = option.partition("=")
        if not separator and ":" in option:  # the old form, still sent by some clients
            key, separator, value = option.partition(":")
        if key == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise InvalidRequest(f'invalid --security-opt: "{option}"')
            no_new_privileges = value != "false"
        elif key == "seccomp" and value == "unconfined":
            seccomp = ""
        elif key == "seccomp" and value in ("builtin", "default"):
            seccomp = default_profile
        elif key == "seccomp":
            seccomp = _checked_profile(value)
        elif key in ("apparmor", "label") and value:
            continue  # neither is applied here (`checks.check_labels`)
        elif option in ("systempaths=unconfined", "systempaths:unconfined"):
            continue  # finalize_paths
        else:
            raise UnsupportedField("HostConfig.SecurityOpt", f"{option!r} is not supported")
    masked, read_only = finalize_paths(
        tuple(
            option.replace(":", "=", 1) for option in spec.security_opt if option.startswith("systempaths")
        ),
        privileged=spec.privileged,
        masked=spec.masked_paths,
        read_only=spec.readonly_paths,
    )
    return Security(
        capabilities=finalize_capabilities(spec.cap_add, spec.cap_drop, privileged=spec.privileged),
        all_capabilities="ALL" in normalise(spec.cap_add),
        seccomp=seccomp,
        masked_paths=masked,
        readonly_paths=read_only,
        no_new_privileges=no_new_privileges,
        privileged=spec.privileged,
        read_only_root=spec.read_only_root,
        devices=tuple(
            Device(host_path=d.host_path, path=d.container_path or d.host_path, rules=d.permissions)
            for d in spec.devices
        ),
        device_rules=spec.device_rules,
        sysctls=tuple(sorted(spec.sysctls.items())),
    )


def _checked_profile(untrusted_text: str) -> str:
    try:
        profile = json.loads(untrusted_text)
    except ValueError as error:
        raise InvalidRequest(f"Decoding seccomp profile failed: {error}") from None
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise InvalidRequest("Decoding seccomp profile failed: it has no defaultAction")
    return untrusted_text


def decide_ports(spec: InstanceSpec, config: MergedConfig) -> tuple[PortBinding, ...]:
    """What to publish: what was asked for and, with `-P`, the exposed rest."""
    if attachment(spec)[0] is not Attachment.BRIDGE:
        return ()
    bindings = list(spec.ports)
    if spec.publish_all:
        bound = {(binding.container_port, binding.protocol) for binding in bindings}
        for port, protocol in (pair for exposed in config.exposed_ports for pair in parse_exposed(exposed)):
            if (port, protocol) not in bound:
                bound.add((port, protocol))
                bindings.append(PortBinding(container_port=port, protocol=protocol))
    return tuple(bindings)


def parse_exposed(text: str) -> tuple[tuple[int, str], ...]:
    """`80`, `80/tcp`, `8000-8010/udp` as (port, protocol) pairs.  Raises InvalidRequest."""
    ports, _, protocol = text.partition("/")
    first, dash, last = ports.partition("-")
    try:
        low, high = int(first), int(last if dash else first)
    except ValueError:
        low, high = 0, 0
    if not 0 < low <= high <= 65535 or protocol not in ("", "tcp", "udp", "sctp"):
        raise InvalidRequest(f"invalid port specification: {text!r}")
    return tuple((port, protocol or "tcp") for port in range(low, high + 1))


def make_plan(
    instance_id: str,
    spec: InstanceSpec,
    config: MergedConfig,
    *,
    settings: Settings,
    places: Places,
    root: DirectoryRoot | DiskRoot,
    security: Security,
    mounts: tuple[Mount, ...] = (),
    etc_files: tuple[EtcFile, ...] = (),
    endpoints: tuple[Endpoint, ...] = (),
    netns: str = "",
    host_keys: tuple[str, ...] = (),
    link_env: tuple[str, ...] = (),
) -> LaunchPlan:
    """All that is decided about an instance as one immutable plan.  What is to be made for it is given by
    the caller, placeholders where it is not made yet."""
    return LaunchPlan(
        id=instance_id,
        isolation=spec.isolation,
        state_dir=places.state_dir,
        run_dir=places.run_dir,
        hostname=config.hostname,
        domainname=spec.domainname,
        process=Process(
            args=config.args,
            env=process_env(config.env, config.hostname, tty=spec.tty, linked=link_env),
            cwd=config.working_dir or "/",
            user=config.user,
            groups=spec.groups,
            tty=spec.tty,
            console_rows=spec.console_rows,
            console_cols=spec.console_cols,
        ),
        console=Console(
            open_stdin=spec.open_stdin,
            # a terminal's input ends with no client, as in Docker
            stdin_once=spec.stdin_once and not spec.tty,
            log_path="" if spec.log.driver == "none" else places.log_path,
        ),
        limits=spec.limits,
        security=security,
        directory=root if isinstance(root, DirectoryRoot) else None,
        disk=root if isinstance(root, DiskRoot) else None,
        machine=machine_for(spec.isolation, spec.limits, settings),
        mounts=mounts,
        etc_files=etc_files,
        endpoints=endpoints,
        host_network=attachment(spec)[0] is Attachment.HOST,
        netns=netns,
        joins_network=attachment(spec)[0] is Attachment.JOIN,
        init=bool(spec.init),
        cgroup_parent=spec.cgroup_parent,
        cgroupns_mode=spec.cgroupns_mode,
        pid_mode=spec.pid_mode,
        ipc_mode=spec.ipc_mode,
        uts_mode=spec.uts_mode,
        host_keys=host_keys,
    )
