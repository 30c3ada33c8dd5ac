"""The Dockerfile instructions that `docker commit --change` and `docker import --change` take.  Pure.

Not a Dockerfile parser: one instruction per line, no build.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable

from insula.errors import InvalidRequest
from insula.model.image import ImageConfig

_SHELL = ("/bin/sh", "-c")


def apply_changes(config: ImageConfig, untrusted_changes: Iterable[str]) -> ImageConfig:
    """`config` with each line applied in order.  Raises InvalidRequest naming the line."""
    for block in untrusted_changes:
        for raw in block.splitlines():
            line = raw.strip()
            if line and not line.startswith("#"):
                config = _apply(config, line)
    return config


def _apply(config: ImageConfig, line: str) -> ImageConfig:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if not rest:
        raise InvalidRequest(
            f"dockerfile parse error: {word.upper()} requires at least one argument: {line!r}"
        )
    match word.upper():
        case "CMD":
            return dataclasses.replace(config, command=_command(rest, config))
        case "ENTRYPOINT":
            # as in a build: a new entrypoint forgets the old command
            return dataclasses.replace(config, entrypoint=_command(rest, config), command=())
        case "ENV":
            env = {entry.partition("=")[0]: entry for entry in config.env}
            env.update({key: f"{key}={value}" for key, value in _pairs(rest, line).items()})
            return dataclasses.replace(config, env=tuple(env.values()))
        case "LABEL":
            return dataclasses.replace(config, labels={**config.labels, **_pairs(rest, line)})
        case "EXPOSE":
            ports = [port if "/" in port else f"{port}/tcp" for port in rest.split()]
            return dataclasses.replace(config, exposed_ports=_added(config.exposed_ports, ports))
        case "VOLUME":
            return dataclasses.replace(config, volumes=_added(config.volumes, _list(rest) or rest.split()))
        case "USER":
            return dataclasses.replace(config, user=rest)
        case "WORKDIR":
            base = "" if rest.startswith("/") else (config.working_dir or "/").rstrip("/") + "/"
            return dataclasses.replace(config, working_dir=base + rest)
        case "ONBUILD":
            return dataclasses.replace(config, on_build=(*config.on_build, rest))
        case "STOPSIGNAL":
            return dataclasses.replace(config, stop_signal=rest)
        case "SHELL":
            return dataclasses.replace(config, shell=tuple(_list(rest) or ()))
        case other:
            raise InvalidRequest(f"{other} is not a valid change command", hint=f"the line was {line!r}")


def _list(text: str) -> list[str] | None:
    """The exec form, a JSON list of strings; None when it is not one."""
    if not text.startswith("["):
        return None
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else None


def _command(text: str, config: ImageConfig) -> tuple[str, ...]:
    items = _list(text)
    return tuple(items) if items is not None else (*(config.shell or _SHELL), text)


def _pairs(text: str, line: str) -> dict[str, str]:
    """`k=v k2="v 2"`, or the old `k v with spaces`."""
    first = text.split(None, 1)
    if "=" not in first[0]:
        if len(first) != 2:
            raise InvalidRequest(f"dockerfile parse error: {line!r} needs a name and a value")
        return {first[0]: first[1]}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidRequest(f"dockerfile parse error: {line!r}: {error}") from None
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InvalidRequest(f"dockerfile parse error: {line!r}: can't find = in {word!r}")
        pairs[key] = value
    return pairs


def _added(known: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))
