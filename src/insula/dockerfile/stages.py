"""A whole Dockerfile: what comes before the first FROM, and its stages.  Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from insula.dockerfile.instructions import Arg, Copy, From, Run, Step, parse_steps
from insula.dockerfile.reader import parse_error, read_dockerfile
from insula.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`first` is its FROM."""

    first: Step
    origin: From
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """`arguments` are the ARGs before the first FROM."""

    arguments: tuple[Step, ...]
    stages: tuple[Stage, ...]
    escape: str = "\\"

    def up_to(self, target: str) -> Dockerfile:
        """Without the stages after `target`, a name or a number; "" is the last.  Raises InvalidRequest."""
        if not target:
            return self
        number = find_stage(self.stages, target)
        if number is None:
            raise InvalidRequest(f'target stage "{target}" could not be found')
        return Dockerfile(arguments=self.arguments, stages=self.stages[: number + 1], escape=self.escape)

    def needed(self) -> frozenset[int]:
        """The last stage, and those that it is made from.  A name that is known only later counts for all."""
        todo, found = [len(self.stages) - 1], set[int]()
        while todo:
            number = todo.pop()
            if number in found:
                continue
            found.add(number)
            for name in _names_used(self.stages[number]):
                if "$" in name:
                    todo += range(number)
                elif (other := find_stage(self.stages[:number], name)) is not None:
                    todo.append(other)
        return frozenset(found)

    def used(self) -> tuple[frozenset[str], frozenset[str] | None]:
        """What the stages that are needed take from elsewhere: the names of stages, images and contexts, in
        lower case, and the paths in the context that they copy; None: all of it, or that is not known yet."""
        names: set[str] = set()
        paths: set[str] | None = set()
        for number in self.needed():
            names.update(name.lower() for name in _names_used(self.stages[number]))
            for path in _paths_used(self.stages[number]):
                if paths is None or path is None:
                    paths = None
                else:
                    paths.add(path)
        return frozenset(names), frozenset(paths) if paths is not None else None


def _paths_used(stage: Stage) -> Iterator[str | None]:
    """Of the context; None for all of it."""
    for step in stage.steps:
        instruction = step.instruction
        if isinstance(instruction, Copy) and not instruction.source_stage:
            for source in instruction.sources:
                if instruction.add and "://" in source:
                    continue
                yield _in_context(source)
        elif isinstance(instruction, Run):
            for mount in instruction.mounts:
                if mount.kind == "bind" and not mount.source_stage:
                    yield _in_context(mount.source)


def _in_context(path: str) -> str | None:
    """None also for what is not known before its variables, quotes and escapes are replaced."""
    if set(path) & set("$\"'\\`"):
        return None
    return posixpath.normpath(f"/{path}").lstrip("/") or None


def _names_used(stage: Stage) -> Iterator[str]:
    """What may be stages: FROM, and each `from`."""
    yield stage.origin.image
    for step in stage.steps:
        if isinstance(step.instruction, Copy) and step.instruction.source_stage:
            yield step.instruction.source_stage
        elif isinstance(step.instruction, Run):
            yield from (mount.source_stage for mount in step.instruction.mounts if mount.source_stage)


def find_stage(stages: Sequence[Stage], name: str) -> int | None:
    """By name, the last one that has it, else by number."""
    for number in reversed(range(len(stages))):
        if stages[number].origin.name and stages[number].origin.name == name.lower():
            return number
    if name.isdecimal() and int(name) < len(stages):
        return int(name)
    return None


def parse_dockerfile(data: bytes) -> Dockerfile:
    """Raises InvalidRequest, with the line's number where there is one."""
    source = read_dockerfile(data)
    arguments: list[Step] = []
    stages: list[tuple[Step, From, list[Step]]] = []
    for step in parse_steps(source):
        if isinstance(step.instruction, From):
            stages.append((step, step.instruction, []))
        elif stages:
            stages[-1][2].append(step)
        elif isinstance(step.instruction, Arg):
            arguments.append(step)
        else:
            raise parse_error(step.number, "no build stage in current context")
    if not stages:
        raise InvalidRequest(
            "no build stage in current context: the Dockerfile has no FROM"
            if arguments
            else "the Dockerfile cannot be empty"
        )
    return Dockerfile(
        arguments=tuple(arguments),
        stages=tuple(
            Stage(first=first, origin=origin, steps=tuple(steps)) for first, origin, steps in stages
        ),
        escape=source.escape,
    )
