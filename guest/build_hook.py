"""Hatchling's build hook: a wheel carries the programs of its architecture, and its tag says so.  Sync."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build import build_all, find_architecture


class GuestHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        architecture = find_architecture()
        for path in build_all(architecture):
            build_data["force_include"][str(path)] = f"insula/_guest/{path.name}"
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{architecture}"


def get_build_hook() -> type[GuestHook]:
    return GuestHook
