"""Sizes as people write them: `64m`, `1.5G`, `10 MiB`.  Pure."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?([kmgtp]?)i?b?", re.ASCII | re.IGNORECASE)


def parse_size(text: str, *, unit: int = 1024) -> int | None:
    """Bytes, whichever way they are written, in the grammar of Docker's go-units: with `unit` 1024 its
    RAMInBytes, with 1000 its FromHumanSize.  None for what is no size."""
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    return int(float(found[1]) * unit ** " kmgtp".index((found[2] or " ").lower()))
