"""Dockerfile instructions that change a configuration: `import --change`, `commit --change`.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from insula.errors import InvalidRequest
from insula.model.image import ImageConfig

_INSTRUCTIONS = (
    *("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD"),
    *("SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """`changes` are lines such as `CMD ["sh"]` or `ENV A=1`.  Raises InvalidRequest."""
    if not changes:
        return config
    # not before somebody needs it: the daemon keeps what it has once loaded
    from insula.dockerfile.configuration import Configuration, env_of
    from insula.dockerfile.expansion import expand_instruction
    from insula.dockerfile.instructions import parse_step
    from insula.dockerfile.reader import read_lines

    changed = Configuration(config=config)
    source = read_lines(changes)
    if any(not change.strip() for change in changes):
        raise InvalidRequest("a change is empty", hint=f"one of {', '.join(_INSTRUCTIONS)}")
    for line in source.lines:
        if line.word not in _INSTRUCTIONS:
            raise InvalidRequest(
                f"{line.code.split()[0]} is not a valid change command",
                hint=f"one of {', '.join(_INSTRUCTIONS)}",
            )
        step = parse_step(line, source.escape)
        changed.apply(expand_instruction(step.instruction, env_of(changed.config.env), source.escape))
    return changed.config
