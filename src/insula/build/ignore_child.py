"""The confined child behind `context`: which of some names the context's .dockerignore leaves out.

A process of its own, since a hostile pattern may keep a regular expression busy without end.  Synchronous;
never imported but as a child's module.
"""

from __future__ import annotations

import os
from typing import Any

from insula.dockerfile.patterns import Ignored, parse_ignore
from insula.dockerfile.reader import MAX_BYTES
from insula.system.child import Reply
from insula.system.confine import CAP_DAC_OVERRIDE, confine, die_with_parent, own_namespaces


def main(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    die_with_parent()
    own_namespaces()
    confine(int(request["root_fd"]), capabilities=(CAP_DAC_OVERRIDE,))
    with open("/.dockerignore", "rb", opener=_open) as file:
        text = file.read(MAX_BYTES).decode(errors="replace")
    ignored = Ignored(parse_ignore(text))
    return {
        "ignored": [name for name in request["names"] if ignored.matches(os.path.normpath(name).lstrip("/"))]
    }


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
