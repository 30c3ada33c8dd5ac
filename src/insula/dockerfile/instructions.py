"""What instructions say: one frozen record for each kind, made from a `reader.Line`.  Pure.

Variables are still in them; `expansion` replaces those when an instruction's turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from insula.dockerfile.health import parse_healthcheck
from insula.dockerfile.modes import parse_mode
from insula.dockerfile.mounts import RunMount, parse_mount
from insula.dockerfile.reader import Heredoc, Line, Source, parse_error
from insula.dockerfile.values import json_words, parse_pairs, quoted_words, split_flags, take_flags
from insula.errors import InvalidRequest
from insula.model.health import HealthCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class From:
    image: str
    name: str = ""
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg:
    """Names with their defaults; None: without one."""

    pairs: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """COPY, and ADD (`add`).  `heredocs` are sources too, by their names."""

    sources: tuple[str, ...]
    target: str
    heredocs: tuple[Heredoc, ...] = ()
    add: bool = False
    source_stage: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    checksum: str = ""
    keep_git: bool = False
    unpack: bool | None = None

    @property
    def word(self) -> str:
        return "ADD" if self.add else "COPY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`words` is the exec form, `script` the shell's.  One that begins with `#!` names its interpreter."""

    words: tuple[str, ...] | None = None
    script: str = ""
    mounts: tuple[RunMount, ...] = ()
    network: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """CMD, and ENTRYPOINT (`entrypoint`)."""

    words: tuple[str, ...] | None = None
    line: str = ""
    entrypoint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDir:
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBuild:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal:
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    check: HealthCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer:
    name: str


Instruction = (
    From | Arg | Env | Label | Copy | Run | Command | Expose | Volume | User | WorkDir | OnBuild | StopSignal
    | Shell | Health | Maintainer
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An instruction with where it stands.  `code` is shown to the user."""

    number: int
    code: str
    instruction: Instruction


_COPY_FLAGS = {"from": False, "chown": False, "chmod": False, "link": True, "parents": True, "exclude": False}
_ADD_FLAGS = {
    "chown": False, "chmod": False, "link": True, "checksum": False, "keep-git-dir": True, "exclude": False,
    "unpack": True,
}  # fmt: skip
_RUN_FLAGS = {"mount": False, "network": False, "security": False}


def parse_steps(source: Source) -> tuple[Step, ...]:
    """Raises InvalidRequest with the line's number."""
    return tuple(parse_step(line, source.escape) for line in source.lines)


def parse_step(line: Line, escape: str = "\\") -> Step:
    """One instruction.  Raises InvalidRequest."""
    parse = _PARSERS.get(line.word)
    if parse is None:
        raise parse_error(line.number, f"unknown instruction: {line.word}")
    try:
        if not line.text:
            raise InvalidRequest(f"{line.word} requires {_WANTED.get(line.word, 'at least one argument')}")
        made = parse(line, escape)
    except InvalidRequest as error:
        if error.message.startswith("dockerfile parse error"):
            raise
        raise InvalidRequest(parse_error(line.number, error.message).message, hint=error.hint) from None
    return Step(number=line.number, code=line.code, instruction=made)


_WANTED = {
    "FROM": "either one or three arguments",
    "USER": "exactly one argument",
    "WORKDIR": "exactly one argument",
    "STOPSIGNAL": "exactly one argument",
    "MAINTAINER": "exactly one argument",
    "ADD": "at least two arguments, but only one was provided. Destination could not be determined",
    "COPY": "at least two arguments, but only one was provided. Destination could not be determined",
}


def _no_flags(line: Line) -> str:
    flags, rest = split_flags(line.text)
    take_flags(line.word, flags, {})
    return rest


def _one(line: Line) -> str:
    """A single argument, blanks in it and all."""
    return _no_flags(line)


def _from(line: Line, _: str) -> From:
    flags, rest = split_flags(line.text)
    found = take_flags("FROM", flags, {"platform": False})
    words = rest.split()
    name = ""
    if len(words) == 3 and words[1].upper() == "AS":
        name = words[2].lower()
        if not name[0].isalpha() or not all(c.isalnum() or c in "-_." for c in name):
            raise InvalidRequest(
                f'invalid name for build stage: "{words[2]}", '
                "name can't start with a number or contain symbols"
            )
    elif len(words) != 1:
        raise InvalidRequest("FROM requires either one or three arguments")
    return From(image=words[0], name=name, platform=_single(found, "platform"))


def _arg(line: Line, escape: str) -> Arg:
    pairs: list[tuple[str, str | None]] = []
    for word in quoted_words(_no_flags(line), escape):
        name, equals, value = word.partition("=")
        if not name:
            raise InvalidRequest("ARG names can not be blank")
        pairs.append((name, value if equals else None))
    return Arg(pairs=tuple(pairs))


def _env(line: Line, escape: str) -> Env:
    return Env(pairs=parse_pairs("ENV", _no_flags(line), escape))


def _label(line: Line, escape: str) -> Label:
    return Label(pairs=parse_pairs("LABEL", _no_flags(line), escape))


def _copy(line: Line, _: str) -> Copy:
    add = line.word == "ADD"
    flags, rest = split_flags(line.text)
    found = take_flags(line.word, flags, _ADD_FLAGS if add else _COPY_FLAGS, many=("exclude",))
    words = json_words(rest)
    words = words if words is not None else tuple(rest.split())
    if len(words) < 2:
        raise InvalidRequest(
            f"{line.word} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    names = {f"<<{here.name}" for here in line.heredocs}
    sources = tuple(w for w in words[:-1] if not _is_heredoc(w, names))
    chmod = _single(found, "chmod")
    if chmod and "$" not in chmod:
        parse_mode(chmod)
    return Copy(
        sources=sources,
        target=words[-1],
        heredocs=line.heredocs,
        add=add,
        source_stage=_single(found, "from"),
        chown=_single(found, "chown"),
        chmod=chmod,
        link=_single(found, "link") == "true",
        parents=_single(found, "parents") == "true",
        exclude=found.get("exclude", ()),
        checksum=_single(found, "checksum"),
        keep_git=_single(found, "keep-git-dir") == "true",
        unpack=_single(found, "unpack") == "true" if "unpack" in found else None,
    )


def _is_heredoc(word: str, names: set[str]) -> bool:
    return word.replace("-", "", 1).replace('"', "").replace("'", "").lstrip("0123456789") in names


def _run(line: Line, _: str) -> Run:
    flags, rest = split_flags(line.text)
    found = take_flags("RUN", flags, _RUN_FLAGS, many=("mount",))
    security = _single(found, "security")
    if security not in ("", "sandbox"):
        raise InvalidRequest(
            f"--security={security} is not allowed", hint="a build's RUNs are never privileged"
        )
    network = _single(found, "network")
    if network not in ("", "default", "none", "host"):
        raise InvalidRequest(f"invalid network mode: {network}", hint="default, none or host")
    mounts = tuple(parse_mount(text) for text in found.get("mount", ()))
    if not rest:
        raise InvalidRequest("RUN requires at least one argument")
    words = json_words(rest)
    if words is not None:
        return Run(words=words, mounts=mounts, network=network)
    script = split_flags(line.script)[1]
    if len(line.heredocs) == 1 and _is_heredoc(rest, {f"<<{line.heredocs[0].name}"}):
        script = line.heredocs[0].content  # nothing but the here-document: it is the script
    return Run(script=script, mounts=mounts, network=network)


def _command(line: Line, _: str) -> Command:
    text = _no_flags(line)
    words = json_words(text)
    return Command(words=words, line="" if words is not None else text, entrypoint=line.word == "ENTRYPOINT")


def _expose(line: Line, _: str) -> Expose:
    return Expose(text=_no_flags(line))


def _volume(line: Line, _: str) -> Volume:
    text = _no_flags(line)
    words = json_words(text)
    paths = words if words is not None else tuple(text.split())
    if not paths:
        raise InvalidRequest("VOLUME requires at least one argument")
    if any(not path.strip() for path in paths):
        raise InvalidRequest("VOLUME specified can not be an empty string")
    return Volume(paths=paths)


def _on_build(line: Line, _: str) -> OnBuild:
    text = _no_flags(line)
    trigger = text.partition(" ")[0].upper()
    if trigger == "ONBUILD":
        raise InvalidRequest("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise InvalidRequest(f"{trigger} isn't allowed as an ONBUILD trigger")
    body = line.code.partition("\n")[2] if line.heredocs else ""
    return OnBuild(text=f"{text}\n{body}" if body else text)


def _shell(line: Line, _: str) -> Shell:
    words = json_words(_no_flags(line))
    if words is None:
        raise InvalidRequest("SHELL requires the arguments to be in JSON form")
    if not words:
        raise InvalidRequest("SHELL requires at least one argument")
    return Shell(words=words)


def _single(found: dict[str, tuple[str, ...]], name: str) -> str:
    return found.get(name, ("",))[0]


_PARSERS: dict[str, Callable[[Line, str], Instruction]] = {
    "FROM": _from,
    "ARG": _arg,
    "ENV": _env,
    "LABEL": _label,
    "COPY": _copy,
    "ADD": _copy,
    "RUN": _run,
    "CMD": _command,
    "ENTRYPOINT": _command,
    "EXPOSE": _expose,
    "VOLUME": _volume,
    "USER": lambda line, _: User(user=_one(line)),
    "WORKDIR": lambda line, _: WorkDir(path=_one(line)),
    "ONBUILD": _on_build,
    "STOPSIGNAL": lambda line, _: StopSignal(signal=_one(line)),
    "SHELL": _shell,
    "HEALTHCHECK": lambda line, _: Health(check=parse_healthcheck(line.text)),
    "MAINTAINER": lambda line, _: Maintainer(name=_one(line)),
}
