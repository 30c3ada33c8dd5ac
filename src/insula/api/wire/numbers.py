"""Numbers as Go has them: out of range is a bad request, not a surprise later.  Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Uint16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
