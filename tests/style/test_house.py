"""Rules of the house that no linter knows.  Each says in its message what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from insula import errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "insula").rglob("*.py"))
C_SOURCES = sorted((ROOT / "guest").rglob("*.[ch]"))
LONGEST = 600


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES + C_SOURCES, ids=name_of)
def test_file_is_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST, f"{name_of(path)} has {lines} lines: split it by subject"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_isolation_is_asked_only_at_the_seam(path: Path) -> None:
    place = path.relative_to(ROOT / "src" / "insula").parts[0]
    if place in ("isolation", "model"):
        return
    asked = re.findall(
        r"isolation\s*(?:==|!=|is not|is|in)\s*(?:Isolation\b|[\"'(])|(?:==|!=|is)\s*Isolation\.",
        path.read_text(),
    )
    assert not asked, f"{name_of(path)}: let the backend or model.isolation decide, not the caller: {asked}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sql_stays_in_the_store(path: Path) -> None:
    if "store" in path.parts:
        return
    assert "import sqlite3" not in path.read_text(), f"{name_of(path)}: ask store/ instead"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_msgspec_stays_at_the_wire_and_the_codec(path: Path) -> None:
    place = path.relative_to(ROOT / "src" / "insula")
    if place.parts[:2] == ("api", "wire") or str(place) == "model/codec.py":
        return
    assert not re.search(r"^\s*(import|from) msgspec", path.read_text(), re.M), (
        f"{name_of(path)}: use api.wire or model.codec"
    )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_left_for_later(path: Path) -> None:
    words = re.findall(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())
    assert not words, f"{name_of(path)}: do it, or open an issue"


def test_the_drawn_error_tree_is_the_real_one() -> None:
    """Every class of `errors` stands in the drawing at its top."""
    drawing = errors.__doc__ or ""
    real = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    missing = sorted(name for name in real if not re.search(rf"\b{name}\b", drawing))
    assert missing == []


def test_every_promise_names_its_test() -> None:
    """SPECIFICATION.md: a row has an existing test file, or says *pending*."""
    rows = [line for line in (ROOT / "SPECIFICATION.md").read_text().splitlines() if line.startswith("| S")]
    assert rows, "SPECIFICATION.md has no rows"
    for row in rows:
        enforced = row.rstrip("|").rpartition("|")[2].strip()
        if "pending" in enforced:
            continue
        paths = re.findall(r"`((?:tests|tools)/[^`:]+)", enforced)  # tools/leftovers.py ends `make test`
        assert paths, f"no test named in: {row}"
        for path in paths:
            assert (ROOT / path).exists(), f"{path} does not exist: {row}"
