"""Records to JSON and back, for the store and for plans: strict, typed, one place.  Pure.

Not for the API's own shapes: those are in `api.wire`.  msgspec does the work (docs/decisions/0002).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from insula.errors import CorruptData

T = TypeVar("T")


def encode(record: object) -> str:
    """A frozen dataclass as one line of JSON."""
    return msgspec.json.encode(record).decode()


def decode(text: str | bytes, kind: type[T]) -> T:
    """The reverse.  Raises CorruptData when the text is not such a record."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptData(f"stored {kind.__name__} cannot be read: {error}") from error


def to_builtins(record: object) -> Any:
    """A record as dicts, lists, strings and numbers."""
    return msgspec.to_builtins(record)
