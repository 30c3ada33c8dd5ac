"""Where a stage stands: its image so far, and the configuration that the next one will have.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from insula.dockerfile.configuration import Configuration
from insula.model.image import Image


@dataclass(slots=True, kw_only=True)
class StageState:
    """`origin` is what it began with; `missed`: the cache had not what was asked for, and rests."""

    image: Image | None = None
    origin: Image | None = None
    author: str = ""
    missed: bool = False
    configuration: Configuration = field(default_factory=Configuration)

    def take_triggers(self) -> tuple[str, ...]:
        """ONBUILD of the base, which the new image does not have."""
        config = self.configuration.config
        self.configuration.config = replace(config, on_build=())
        return config.on_build

    def add_default_path(self, entry: str) -> None:
        config = self.configuration.config
        if not any(one.startswith("PATH=") for one in config.env):
            self.configuration.config = replace(config, env=(*config.env, entry))

    def nop(self, said: str, *, spaced: bool = True) -> str:
        """History's words for a step that runs nothing."""
        return " ".join((*self.configuration.shell, f"#(nop) {' ' if spaced else ''}{said}"))
