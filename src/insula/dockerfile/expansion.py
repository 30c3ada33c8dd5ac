"""Variables in instructions, replaced when their turn comes.  Pure.

RUN, CMD, ENTRYPOINT, SHELL and HEALTHCHECK have none: what a shell runs is the shell's to expand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from insula.dockerfile.instructions import (
    Arg,
    Copy,
    Env,
    Expose,
    From,
    Instruction,
    Label,
    Maintainer,
    Run,
    StopSignal,
    User,
    Volume,
    WorkDir,
)
from insula.dockerfile.mounts import RunMount
from insula.dockerfile.words import expand, expand_text, expand_words
from insula.errors import InvalidRequest


def expand_instruction(instruction: Instruction, env: Mapping[str, str], escape: str = "\\") -> Instruction:
    """Raises InvalidRequest for a substitution that cannot be."""

    def one(text: str) -> str:
        return expand(text, env, escape)

    match instruction:
        case From():
            return replace(instruction, image=one(instruction.image), platform=one(instruction.platform))
        case Arg():
            # one by one: a default may name what stands before it on the line
            known, pairs = dict(env), []
            for untrusted_name, default in instruction.pairs:
                name = expand(untrusted_name, known, escape)
                value = None if default is None else expand(default, known, escape)
                if value is not None:
                    known.setdefault(name, value)
                pairs.append((name, value))
            return Arg(pairs=tuple(pairs))
        case Env() | Label():
            made = tuple((one(name), one(value)) for name, value in instruction.pairs)
            if any(not name for name, _ in made):
                raise InvalidRequest(f"{type(instruction).__name__.upper()} names can not be blank")
            return replace(instruction, pairs=made)
        case Copy():
            return _copy(instruction, env, escape)
        case Run():
            return replace(instruction, mounts=tuple(_mount(m, env, escape) for m in instruction.mounts))
        case Expose():
            return Expose(text=" ".join(expand_words(instruction.text, env, escape)))
        case Volume():
            paths = tuple(one(path) for path in instruction.paths)
            if any(not path.strip() for path in paths):
                raise InvalidRequest("VOLUME specified can not be an empty string")
            return Volume(paths=paths)
        case User():
            return User(user=one(instruction.user))
        case WorkDir():
            return WorkDir(path=one(instruction.path))
        case StopSignal():
            return StopSignal(signal=one(instruction.signal))
        case Maintainer():
            return instruction
        case _:
            return instruction


def _copy(copy: Copy, env: Mapping[str, str], escape: str) -> Copy:
    return replace(
        copy,
        sources=tuple(expand(source, env, escape) for source in copy.sources),
        target=expand(copy.target, env, escape),
        chown=expand(copy.chown, env, escape),
        chmod=expand(copy.chmod, env, escape),
        checksum=expand(copy.checksum, env, escape),
        exclude=tuple(expand(pattern, env, escape) for pattern in copy.exclude),
        heredocs=tuple(
            replace(here, content=expand_text(here.content, env, escape)) if here.expand else here
            for here in copy.heredocs
        ),
    )


def _mount(mount: RunMount, env: Mapping[str, str], escape: str) -> RunMount:
    return replace(
        mount,
        target=expand(mount.target, env, escape),
        source=expand(mount.source, env, escape),
        id=expand(mount.id, env, escape),
    )
