"""Modes of `--chmod`: octal, and symbolic, the same as chmod(1) makes them."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from insula.dockerfile.modes import parse_mode
from insula.errors import InvalidRequest

_TEXTS = (
    *("u=rwX,go=rX", "+x", "a-w", "u+s,g-s", "o=u", "g=o-w+x", "ug=rw,o=", "=", "go-rwx", "+t", "u=g,g=u"),
    *("a=rX", "755", "u+x-w,o=g", "-s", "g+s", "u=rws", "ugo+X"),
)


@pytest.mark.parametrize("text", _TEXTS)
def test_the_same_as_chmod(text: str, tmp_path: Path) -> None:
    for directory, before in itertools.product((False, True), (0o644, 0o755, 0o4711, 0o2750, 0o1777, 0o600)):
        path = tmp_path / f"{directory}{before:o}"
        path.mkdir() if directory else path.touch()
        os.chmod(path, before)
        subprocess.run(["sh", "-c", 'umask 0; exec chmod "$@"', "sh", "--", text, path], check=True)
        expected = path.stat().st_mode & 0o7777
        if text.isdecimal():  # GNU's chmod keeps the set-id bits of directories there
            expected = int(text, 8)
        assert oct(expected) == oct(parse_mode(text).of(before, directory=directory)), (
            directory,
            oct(before),
        )


@pytest.mark.parametrize("text", ["", "99", "77777", "u", "u+q", "x", "u=rw,", "a+x;rm", "8"])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid chmod parameter"):
        parse_mode(text)
