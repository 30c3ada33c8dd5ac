"""Dockerfile instructions that change a configuration: `import --change`, `commit --change`.  Pure."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import shlex
from collections.abc import Sequence

from insula.errors import InvalidRequest
from insula.images.healthcheck import parse_healthcheck
from insula.model.image import ImageConfig

_INSTRUCTIONS = (
    *("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD"),
    *("SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_SHELL = ("/bin/sh", "-c")


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """`changes` are lines such as `CMD ["sh"]` or `ENV A=1`.  Raises InvalidRequest."""
    for line in changes:
        word, _, rest = line.strip().partition(" ")
        instruction, rest = word.upper(), rest.strip()
        if instruction not in _INSTRUCTIONS:
            raise InvalidRequest(
                f"{word or line!r} is not a valid change command", hint=f"one of {', '.join(_INSTRUCTIONS)}"
            )
        if not rest:
            raise InvalidRequest(f"{instruction} requires at least one argument")
        config = _apply(config, instruction, rest)
    return config


def _apply(config: ImageConfig, instruction: str, rest: str) -> ImageConfig:
    match instruction:
        case "CMD":
            return dataclasses.replace(config, command=_command(config, rest))
        case "ENTRYPOINT":
            return dataclasses.replace(config, entrypoint=_command(config, rest))
        case "ENV":
            return dataclasses.replace(config, env=_merge_env(config.env, _pairs(instruction, rest)))
        case "LABEL":
            return dataclasses.replace(config, labels={**config.labels, **_pairs(instruction, rest)})
        case "EXPOSE":
            ports = [port for word in rest.split() for port in _ports(word)]
            return dataclasses.replace(config, exposed_ports=tuple(sorted({*config.exposed_ports, *ports})))
        case "VOLUME":
            volumes = _json_list(rest) or tuple(rest.split())
            return dataclasses.replace(config, volumes=tuple(sorted({*config.volumes, *volumes})))
        case "WORKDIR":
            joined = posixpath.normpath(posixpath.join("/", config.working_dir, _unquoted(rest)))
            return dataclasses.replace(config, working_dir=joined)
        case "USER":
            return dataclasses.replace(config, user=_unquoted(rest))
        case "STOPSIGNAL":
            return dataclasses.replace(config, stop_signal=rest)
        case "HEALTHCHECK":
            return dataclasses.replace(config, health=parse_healthcheck(rest))
        case "SHELL":
            if (shell := _json_list(rest)) is None:
                raise InvalidRequest("SHELL requires the arguments to be in JSON form")
            return dataclasses.replace(config, shell=shell)
        case _:
            return dataclasses.replace(config, on_build=(*config.on_build, rest))


def _json_list(text: str) -> tuple[str, ...] | None:
    """The exec form.  None for anything else, as Docker then takes it for the shell form."""
    if not text.startswith("["):
        return None
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return tuple(items) if isinstance(items, list) and all(isinstance(i, str) for i in items) else None


def _command(config: ImageConfig, rest: str) -> tuple[str, ...]:
    exec_form = _json_list(rest)
    return exec_form if exec_form is not None else (*(config.shell or _SHELL), rest)


def _split(instruction: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidRequest(f"{instruction} {text}: {error}") from None


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _pairs(instruction: str, rest: str) -> dict[str, str]:
    """`a=1 b="two words"`, or the old form `a the rest of the line`."""
    first = rest.split(None, 1)
    if "=" not in first[0]:
        if len(first) == 1:
            raise InvalidRequest(f"{instruction} {rest}: must have two arguments")
        return {first[0]: _unquoted(first[1])}
    pairs: dict[str, str] = {}
    for word in _split(instruction, rest):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{instruction}: syntax error: {word!r} must be of the form name=value")
        pairs[name] = value
    return pairs


def _merge_env(env: Sequence[str], pairs: dict[str, str]) -> tuple[str, ...]:
    merged = {entry.partition("=")[0]: entry for entry in env}
    merged.update({name: f"{name}={value}" for name, value in pairs.items()})
    return tuple(merged.values())


def _ports(word: str) -> list[str]:
    match = _PORT.fullmatch(word)
    if match is None:
        raise InvalidRequest(f"invalid containerPort: {word}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 0 < first <= last <= 65535:
        raise InvalidRequest(f"invalid containerPort: {word}")
    return [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]
