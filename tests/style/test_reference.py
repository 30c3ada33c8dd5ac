"""docs/reference/configuration.md has every setting, with the default that it really has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from insula.config import Settings

TEXT = (Path(__file__).resolve().parents[2] / "docs/reference/configuration.md").read_text()
ROWS = {
    key: row.split("|")
    for row in re.findall(r"^\| `.*$", TEXT, re.M)
    for key in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])
}


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_a_setting_is_described_with_its_default(field: dataclasses.Field[object]) -> None:
    key = field.name.replace("_", "-")
    assert key in ROWS, f"docs/reference/configuration.md does not describe {key}"
    default = ROWS[key][2]
    value = field.default
    if isinstance(value, bool) or (value and not isinstance(value, tuple)):
        assert str(value).lower().rpartition("/")[2] in default.lower(), f"{key}: {value}"


def test_nothing_else_is_described() -> None:
    assert set(ROWS) == {field.name.replace("_", "-") for field in dataclasses.fields(Settings)}
