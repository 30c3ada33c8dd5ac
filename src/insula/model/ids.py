"""Identifiers: 64 hex digits, twelve of which are shown.  Pure but for the random source."""

from __future__ import annotations

import re
import secrets

from insula.errors import InvalidRequest

SHORT = 12
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def make_id() -> str:
    """A new id.  Never all digits in its short form: docker's clients would take that for a number."""
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:SHORT].isdecimal():
            return candidate


def short_id(full: str) -> str:
    return full.removeprefix("sha256:")[:SHORT]


def check_name(name: str) -> str:
    """An instance's name without its leading slash.  Raises InvalidRequest in moby's words."""
    bare = name.removeprefix("/")
    if not _NAME.fullmatch(bare):
        raise InvalidRequest(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare
