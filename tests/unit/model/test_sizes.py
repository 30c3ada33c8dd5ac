"""Sizes as people write them."""

from __future__ import annotations

import pytest

from insula.model.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("64b", 64),
        ("64k", 64 << 10),
        ("1.5g", 3 << 29),
        ("10 MiB", 10 << 20),
        ("2TB", 2 << 40),
        ("1P", 1 << 50),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert size == parse_size(text)


def test_a_size_in_thousands() -> None:
    assert 10_000_000 == parse_size("10m", unit=1000)


@pytest.mark.parametrize("text", ["", " ", "m", "-1", "1.m", "much", "1 k b", "1x", "1e3", "²", "9" * 400])
def test_what_is_no_size(text: str) -> None:
    assert parse_size(text) is None
