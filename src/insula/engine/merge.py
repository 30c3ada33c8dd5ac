"""What a request and its image's defaults come to: moby's rules.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from insula.engine.health import merge_health
from insula.errors import InvalidRequest
from insula.model.ids import short_id
from insula.model.image import ImageConfig
from insula.model.instance import InstanceSpec, MergedConfig

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STOP_SIGNAL = "SIGTERM"


def merge_config(
    spec: InstanceSpec, image: ImageConfig, instance_id: str, *, host_name: str = ""
) -> MergedConfig:
    """Raises InvalidRequest when nothing says what to run.

    An entrypoint in the request drops the image's command too (moby's `merge`).  `host_name` is the
    host's own, which an instance on the host's network takes.
    """
    entrypoint, command = spec.entrypoint, spec.command
    if not entrypoint:
        if not command:
            command = image.command
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == ("",):  # `--entrypoint ""`: none at all, and not the image's command either
        entrypoint = ()
    merged_command = command or ()
    if not entrypoint and not merged_command:
        raise InvalidRequest("no command specified")
    hostname = spec.hostname
    if not hostname:
        hostname = host_name if spec.network_mode == "host" and host_name else short_id(instance_id)
    return MergedConfig(
        entrypoint=tuple(entrypoint),
        command=tuple(merged_command),
        env=add_missing(spec.env, image.env),
        user=spec.user or image.user,
        working_dir=spec.working_dir or image.working_dir,
        hostname=hostname,
        stop_signal=spec.stop_signal or image.stop_signal,
        labels={**image.labels, **spec.labels},
        exposed_ports=_unique((*spec.exposed_ports, *image.exposed_ports)),
        volumes=_unique((*image.volumes, *(spec.volumes or ()))),
        health=merge_health(spec.health, image.health),
        shell=spec.shell or image.shell,
    )


def add_missing(own: Iterable[str], defaults: Iterable[str]) -> tuple[str, ...]:
    """`own`, then those of `defaults` whose variable it does not name."""
    merged = list(own)
    known = {entry.partition("=")[0] for entry in merged}
    for entry in defaults:
        key = entry.partition("=")[0]
        if key not in known:
            known.add(key)
            merged.append(entry)
    return tuple(merged)


def replace_env(base: Iterable[str], overrides: Iterable[str]) -> tuple[str, ...]:
    """`base` with each override in the place of its namesake, else at the end; one without `=` removes."""
    order: dict[str, str | None] = {entry.partition("=")[0]: entry for entry in base}
    for entry in overrides:
        key, equals, _ = entry.partition("=")
        order[key] = entry if equals else None
    return tuple(entry for entry in order.values() if entry is not None)


def process_env(
    config_env: Iterable[str], hostname: str, *, tty: bool, linked: Iterable[str] = ()
) -> tuple[str, ...]:
    """The main process's environment, all but HOME.  `linked`: what links say of others."""
    base = [f"PATH={PATH}", f"HOSTNAME={hostname}"]
    if tty:
        base.append("TERM=xterm")
    return replace_env((*base, *linked), config_env)


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
