"""Variables, quotes and escapes: what BuildKit's and moby's own table of cases say, and more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.dockerfile.words import expand, expand_text, expand_words
from insula.errors import InvalidRequest

ENV = {"PWD": "/home", "SHELL": "bash", "EMPTY": "", "TWO": "a b", "PATH": "/usr/local/bin:/usr/bin"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ("he'$PWD'o", "he$PWDo"),
        ('he"$PWD"o', "he/homeo"),
        ("hel\\lo", "hello"),
        ("hel\\\\lo", "hel\\lo"),
        ('"hel\\lo"', "hel\\lo"),
        ('"hel\\"lo"', 'hel"lo'),
        ('"hel\\$PWD"', "hel$PWD"),
        ("'hel\\lo'", "hel\\lo"),
        ("\\$PWD", "$PWD"),
        ("$PWD", "/home"),
        ("${PWD}x", "/homex"),
        ("$PWDx", ""),
        ("$", "$"),
        ("a$.b", "a$.b"),
        ("$1", ""),
        ("${NONE-word}", "word"),
        ("${NONE:-word}", "word"),
        ("${EMPTY-word}", ""),
        ("${EMPTY:-word}", "word"),
        ("${PWD:-word}", "/home"),
        ("${PWD:+word}", "word"),
        ("${EMPTY:+word}", ""),
        ("${EMPTY+word}", "word"),
        ("${NONE+word}", ""),
        ("${PWD?no}", "/home"),
        ("${EMPTY?no}", ""),
        ("${NONE:-${SHELL:+x$PWD}}", "x/home"),
        ("${NONE:-'a}b'}", "a}b"),
        ("${NONE:-\\}}", "}"),
        ("${PATH#*:}", "/usr/bin"),
        ("${PATH#/usr}", "/local/bin:/usr/bin"),
        ("${PATH##*/}", "bin"),
        ("${PATH%/*}", "/usr/local/bin:/usr"),
        ("${PATH%%:*}", "/usr/local/bin"),
        ("${PATH/usr/opt}", "/opt/local/bin:/usr/bin"),
        ("${PATH//usr/opt}", "/opt/local/bin:/opt/bin"),
        ("${PATH//\\//-}", "-usr-local-bin:-usr-bin"),
        ("${SHELL/b?s/x}", "xh"),
        ("${PATH//*bin/x}", "x"),
        ("${PATH%:*/*n}", "/usr/local/bin"),
        ("${PATH##*r*b*:}", "/usr/bin"),
        ("${PATH#?usr?}", "local/bin:/usr/bin"),
        ("${TWO//?/-}", "---"),
        ("${TWO/x/y}", "a b"),
        ("${TWO//\\*/y}", "a b"),
        ("", ""),
    ],
)
def test_one_word(text: str, expected: str) -> None:
    assert expected == expand(text, ENV)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b  c", ("a", "b", "c")),
        ("'a b' c", ("a b", "c")),
        ('"" c', ("", "c")),
        ("$TWO", ("a", "b")),
        ('"$TWO"', ("a b",)),
        ("x$TWO", ("xa", "b")),
        ("$TWO$TWO", ("a", "ba", "b")),
        ("$EMPTY", ()),
        ("a\\ b", ("a b",)),
    ],
)
def test_several_words(text: str, expected: tuple[str, ...]) -> None:
    assert expected == expand_words(text, ENV)


def test_what_would_take_for_ever_or_fill_the_memory_is_refused() -> None:
    long = {"x": "a" * 100_000, "y": "b" * 600_000}
    for text in ("${x##*a*a*a*a*b}", "${x%%b*a*a*a*a*}", "${x//*a*a*a*a*b/c}", "$y$y"):
        with pytest.raises(InvalidRequest, match=r"takes too long|more than 1 MiB"):
            expand(text, long)
    assert "a" * 99_999 == expand("${x#a}", long)


def test_a_here_document_keeps_its_quotes() -> None:
    assert 'it\'s "/home" \\n $PWD' == expand_text('it\'s "$PWD" \\n \\$PWD', ENV)


def test_another_escape_character() -> None:
    assert "$PWD \\ /home" == expand("`$PWD \\ $PWD", ENV, "`")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("'open", "looking for matching single-quote"),
        ('"open', "looking for matching double-quote"),
        ("${PWD", "missing '}'"),
        ("${PWD:-x", "missing '}'"),
        ("${}", "bad substitution"),
        ("${PWD!x}", "unsupported modifier (!)"),
        ("${NONE?no such thing}", "NONE: no such thing"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
        ("${NONE:?}", "NONE: is not allowed to be unset"),
        ("${A:-" * 60 + "}" * 60, "nested too deeply"),
    ],
)
def test_what_cannot_be_expanded(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        expand(text, ENV)
    assert complaint in caught.value.message


@given(st.text(alphabet="ab$ {}:-+?#%/\\'\"`\n", max_size=40))
def test_no_text_does_anything_but_expand_or_complain(text: str) -> None:
    for function in (expand, expand_words, expand_text):
        try:
            function(text, ENV)
        except InvalidRequest:
            pass
