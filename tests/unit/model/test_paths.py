"""Paths as they are written."""

from __future__ import annotations

import pytest

from insula.model.paths import clean_path


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("a/b", "/a/b"),
        ("//a", "/a"),
        ("/a//b/./c/", "/a/b/c"),
        ("/a/../../b", "/b"),
        ("../..", "/"),
    ],
)
def test_a_path_is_from_the_root_and_has_one_form(path: str, clean: str) -> None:
    assert clean == clean_path(path)
