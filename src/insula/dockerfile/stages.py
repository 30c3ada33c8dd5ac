"""A whole Dockerfile: what comes before the first FROM, and its stages.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from insula.dockerfile.instructions import Arg, From, Step, parse_steps
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
