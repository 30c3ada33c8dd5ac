"""`.dockerignore` and wildcards."""

from __future__ import annotations

import pytest

from insula.dockerfile.patterns import Ignored, compile_part, has_wildcards, parse_ignore
from insula.errors import InvalidRequest


def test_what_stands_in_a_dockerignore() -> None:
    text = "\ufeff#!comment\n# comment\n\n  a/  \n/b\n!c/../d\n! e\n./f/.\n #g\n"
    assert ("a", "b", "!d", "!e", "f", "#g") == parse_ignore(text)


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["a"], "a", True),
        (["a"], "a/b/c", True),
        (["a"], "b/a", False),
        (["*.o"], "x.o", True),
        (["*.o"], "d/x.o", False),
        (["**/*.o"], "d/e/x.o", True),
        (["**/*.o"], "x.o", True),
        (["*/x"], "d/x", True),
        (["*/x"], "d/e/x", False),
        (["**"], "a/b", True),
        (["a/**"], "a/b/c", True),
        (["a/**/z"], "a/z", True),
        (["a/**/z"], "a/b/c/z", True),
        (["**/z"], "az", False),
        (["?x"], "ax", True),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["\\*x"], "*x", True),
        (["\\*x"], "ax", False),
        (["*", "!keep"], "keep", False),
        (["*", "!keep"], "other", True),
        (["a", "!a/b"], "a/b/c", False),
        (["a", "!a/b", "a/b/d"], "a/b/d", True),
        (["*.md", "!R*.md", "README-secret.md"], "README.md", False),
        (["*.md", "!R*.md", "README-secret.md"], "README-secret.md", True),
        (["."], "a", False),
        ([], "a", False),
    ],
)
def test_what_is_left_out(patterns: list[str], path: str, expected: bool) -> None:
    assert expected is Ignored(patterns).matches(path)


@pytest.mark.parametrize("pattern", ["[a", "!", "[b-a]"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(InvalidRequest):
        Ignored([pattern])


def test_parts_of_a_source() -> None:
    assert compile_part("a*.t?t").fullmatch("abc.txt")
    assert not compile_part("a*.t?t").fullmatch("b.txt")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", False),
        ("a*", True),
        ("a?", True),
        ("[a]", True),
        (r"\[a\].txt", False),
        (r"\*", False),
        (r"\\*", True),
        (r"\[a\]*", True),
        ("back\\slash", False),
        ("end\\", False),
        ("new\\\nline*", True),
        ("\\" * 100_001, False),
    ],
)
def test_escaped_wildcards_make_no_pattern(source: str, expected: bool) -> None:
    assert expected is has_wildcards(source)
