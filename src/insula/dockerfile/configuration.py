"""What instructions do to an image's configuration: in a build, and in `commit --change`.  Pure."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from insula.dockerfile.instructions import (
    Command,
    Env,
    Expose,
    Health,
    Instruction,
    Label,
    OnBuild,
    Shell,
    StopSignal,
    User,
    Volume,
    WorkDir,
)
from insula.dockerfile.values import expand_ports
from insula.errors import InvalidRequest
from insula.model.image import ImageConfig
from insula.model.paths import clean_path

DEFAULT_SHELL = ("/bin/sh", "-c")
_SIGNALS = frozenset((
    *("ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE"),
    *("POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU"),
    *("URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX"),
))  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Configuration:
    """A configuration that instructions change.  `command_set`: CMD was said here, so that an ENTRYPOINT
    after it does not take it away (one that was inherited goes)."""

    config: ImageConfig = field(default_factory=ImageConfig)
    command_set: bool = False

    @property
    def shell(self) -> tuple[str, ...]:
        return self.config.shell or DEFAULT_SHELL

    def apply(self, instruction: Instruction) -> str | None:
        """Change the configuration; what history says of that.  None for an instruction that changes files.
        Raises InvalidRequest."""
        config = self.config
        match instruction:
            case Command(entrypoint=False):
                words = self._words(instruction)
                self.config, self.command_set = replace(config, command=words), True
                return f"CMD {_quoted(words)}"
            case Command():
                words = self._words(instruction)
                command = config.command if self.command_set else ()
                self.config = replace(config, entrypoint=words, command=command)
                return f"ENTRYPOINT {_quoted(words)}"
            case Env():
                self.config = replace(config, env=merge_env(config.env, dict(instruction.pairs)))
                return "ENV " + " ".join(f"{name}={value}" for name, value in instruction.pairs)
            case Label():
                self.config = replace(config, labels={**config.labels, **dict(instruction.pairs)})
                return "LABEL " + " ".join(f"{name}={value}" for name, value in instruction.pairs)
            case Expose():
                ports = sorted({port for word in instruction.text.split() for port in expand_ports(word)})
                self.config = replace(config, exposed_ports=tuple(sorted({*config.exposed_ports, *ports})))
                return "EXPOSE " + " ".join(sorted(instruction.text.split()))
            case Volume():
                self.config = replace(config, volumes=tuple(sorted({*config.volumes, *instruction.paths})))
                return f"VOLUME [{' '.join(instruction.paths)}]"
            case User():
                self.config = replace(config, user=instruction.user)
                return f"USER {instruction.user}"
            case WorkDir():
                self.config = replace(config, working_dir=join_path(config.working_dir, instruction.path))
                return f"WORKDIR {self.config.working_dir}"
            case StopSignal():
                check_signal(instruction.signal)
                self.config = replace(config, stop_signal=instruction.signal)
                return f"STOPSIGNAL {instruction.signal}"
            case Health():
                self.config = replace(config, health=instruction.check)
                return f"HEALTHCHECK {_quoted(instruction.check.test)}"
            case Shell():
                self.config = replace(config, shell=instruction.words)
                return f"SHELL [{' '.join(instruction.words)}]"
            case OnBuild():
                self.config = replace(config, on_build=(*config.on_build, instruction.text))
                return f"ONBUILD {instruction.text}"
        return None

    def _words(self, command: Command) -> tuple[str, ...]:
        return command.words if command.words is not None else (*self.shell, command.line)


def join_path(directory: str, path: str) -> str:
    """Absolute and clean; relative paths count from `directory`.  Raises InvalidRequest."""
    if not path:
        raise InvalidRequest("cannot normalize nothing")
    return clean_path(posixpath.join(directory, path))


def check_signal(text: str) -> None:
    """Raises InvalidRequest in moby's words."""
    name = text.upper().removeprefix("SIG")
    base = name.partition("+")[0].partition("-")[0]
    if (text.isdecimal() and 0 < int(text) < 65) or (base in _SIGNALS and (base == name or base[:2] == "RT")):
        return
    raise InvalidRequest(f"Invalid signal: {text}")


def merge_env(env: Sequence[str], pairs: Mapping[str, str]) -> tuple[str, ...]:
    merged = {entry.partition("=")[0]: entry for entry in env}
    merged.update({name: f"{name}={value}" for name, value in pairs.items()})
    return tuple(merged.values())


def env_of(env: Iterable[str]) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in env)
    return {name: value for name, _, value in pairs}


def _quoted(words: Sequence[str]) -> str:
    return f"[{' '.join(json.dumps(word, ensure_ascii=False) for word in words)}]"
