"""The man pages are those that the command line's tables make."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_man_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("man", ROOT / "tools" / "man.py")
    assert spec is not None
    assert spec.loader is not None
    man = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(man)
    on_disk = {path.name: path.read_text() for path in (ROOT / "docs" / "man").glob("*.1")}
    assert man.render_all() == on_disk, "run: make man"
