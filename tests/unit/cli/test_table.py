"""What docker's users read: sizes, ages, tables, templates."""

from __future__ import annotations

import pytest

from insula.cli.table import human_age, human_binary, human_size, parse_time, print_rows


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "0B"), (999, "999B"), (1240000, "1.24MB"), (117_000_000, "117MB")]
)
def test_sizes(size: int, expected: str) -> None:
    assert expected == human_size(size)


def test_binary_sizes() -> None:
    assert "1.5MiB" == human_binary(3 << 19)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (180, "3 minutes"),
        (3700, "About an hour"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
        (15 * 86400, "2 weeks"),
        (800 * 86400, "2 years"),
    ],
)
def test_ages(seconds: float, expected: str) -> None:
    assert expected == human_age(seconds)


def test_times_with_nanoseconds() -> None:
    assert 1767225600.123456 == pytest.approx(parse_time("2026-01-01T00:00:00.123456789Z"))
    assert 0.0 == parse_time("0001-01-01T00:00:00Z")


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    written: list[str] = []
    print_rows([{"A": "xyz", "B": 1}], {"A": "A", "B": "B"}, write=written.append)
    assert ["A         B", "xyz       1"] == written


def test_a_table_of_a_template_has_headings() -> None:
    written: list[str] = []
    print_rows(
        [{"Names": "a", "Other": "b"}],
        {"Names": "NAMES"},
        template="table {{.Names}}\t{{.Other}}",
        write=written.append,
    )
    assert ["NAMES     OTHER", "a         b"] == written
