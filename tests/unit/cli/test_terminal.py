"""Detach keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli.terminal import Detached, KeyWatcher, parse_detach_keys
from insula.errors import InvalidRequest


def test_default_keys() -> None:
    assert b"\x10\x11" == parse_detach_keys("ctrl-p,ctrl-q")


def test_letters_and_controls_mix() -> None:
    assert b"a\x00b\x1b" == parse_detach_keys("a,ctrl-@,b,ctrl-[")


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "alt-x", "ab"])
def test_unknown_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--detach-keys"):
        parse_detach_keys(text)


def test_the_whole_sequence_detaches() -> None:
    watcher = KeyWatcher(b"\x10\x11")
    assert b"abc" == watcher.feed(b"abc\x10")
    with pytest.raises(Detached):
        watcher.feed(b"\x11")


def test_what_only_begins_like_it_is_passed_on() -> None:
    watcher = KeyWatcher(b"\x10\x11")
    assert b"" == watcher.feed(b"\x10")
    assert b"\x10x" == watcher.feed(b"x")


@given(st.lists(st.binary(max_size=20)))
def test_nothing_is_lost_or_reordered(pieces: list[bytes]) -> None:
    watcher = KeyWatcher(b"\x10\x10\x11")
    typed = b"".join(pieces).replace(b"\x11", b"")
    sent = b"".join(watcher.feed(bytes([byte])) for byte in typed)
    assert typed.startswith(sent)
    assert typed[len(sent) :] in (b"", b"\x10", b"\x10\x10")
