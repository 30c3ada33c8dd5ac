"""ARGs: which are declared, what they are, and which a RUN sees.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from insula.dockerfile.expansion import expand_instruction
from insula.dockerfile.instructions import Arg, From
from insula.dockerfile.stages import Dockerfile
from insula.images.registry.manifests import host_platform, parse_platform

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
PREDEFINED = frozenset((*_PROXIES, *(name.upper() for name in _PROXIES)))


def platform_arguments(wanted: str) -> dict[str, str]:
    """What BuildKit has for every build; a stage that wants one declares it.  "": this host's platform."""
    platform = parse_platform(wanted) if wanted else host_platform()
    whole = "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)
    values = {
        "PLATFORM": whole,
        "OS": platform.os,
        "ARCH": platform.architecture,
        "VARIANT": platform.variant,
    }
    return {side + name: value for side in ("BUILD", "TARGET") for name, value in values.items()}


class Arguments:
    """`given` are the request's `--build-arg`s."""

    def __init__(self, given: Mapping[str, str | None], platform: Mapping[str, str]) -> None:
        # a name alone takes the value of the daemon's environment in no engine: it is unset
        self._given = {name: value for name, value in given.items() if value is not None}
        self._names = tuple(given)
        self._global: dict[str, str | None] = dict(platform)
        self._stage: dict[str, str | None] = {}
        self._used: set[str] = set()

    def add_global(self, arg: Arg) -> None:
        """Before the first FROM."""
        for name, default in arg.pairs:
            self._used.add(name)
            self._global[name] = self._given.get(name, default)

    def globals(self) -> dict[str, str]:
        return {name: value for name, value in self._global.items() if value is not None}

    def begin_stage(self) -> None:
        self._stage = {}

    def declare(self, arg: Arg) -> None:
        """In a stage: the request's value, else the default, else what it is before the first FROM."""
        for name, default in arg.pairs:
            self._used.add(name)
            value = self._given.get(name, default)
            self._stage[name] = self._global.get(name) if value is None else value

    def declared(self, env: Iterable[str]) -> dict[str, str]:
        """Those of this stage that have a value and that ENV does not have."""
        known = {entry.partition("=")[0] for entry in env}
        return {n: v for n, v in self._stage.items() if v is not None and n not in known}

    def for_run(self, env: Iterable[str]) -> dict[str, str]:
        """What a RUN's environment has besides ENV: the predefined ones need no ARG."""
        known = {entry.partition("=")[0] for entry in env}
        predefined = {n: v for n, v in self._given.items() if n in PREDEFINED and n not in known}
        return {**predefined, **self.declared(env)}

    def in_history(self, env: Iterable[str]) -> list[str]:
        """What the cache and history have of them: predefined ones only when they are declared."""
        return sorted(f"{name}={value}" for name, value in self.declared(env).items())

    def unused(self) -> list[str]:
        return sorted(name for name in self._names if name not in self._used and name not in PREDEFINED)


def with_origins(
    parsed: Dockerfile, given: Mapping[str, str | None], platform: Mapping[str, str]
) -> Dockerfile:
    """With what each FROM names as the ARGs before the first one make it.  Raises InvalidRequest."""
    arguments = Arguments(given, platform)
    for step in parsed.arguments:
        arg = expand_instruction(step.instruction, arguments.globals(), parsed.escape)
        assert isinstance(arg, Arg)
        arguments.add_global(arg)
    stages = []
    for stage in parsed.stages:
        origin = expand_instruction(stage.origin, arguments.globals(), parsed.escape)
        assert isinstance(origin, From)
        stages.append(replace(stage, origin=origin))
    return replace(parsed, stages=tuple(stages))


def epoch_of(given: Mapping[str, str | None]) -> int | None:
    """SOURCE_DATE_EPOCH, seconds, if the request has it: nothing in the image is newer then."""
    text = given.get("SOURCE_DATE_EPOCH") or ""
    return int(text) if text.isdecimal() and len(text) < 12 else None
