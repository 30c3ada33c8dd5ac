"""JSON to the documents of the API and back.  Pure."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from insula.errors import InvalidRequest

T = TypeVar("T")

_encoder = msgspec.json.Encoder()

# objects whose keys mean something even when the value is null
_KEYED = ("ExposedPorts", "Volumes", "EndpointsConfig")


def read_json(raw: bytes) -> Any:
    """Raises InvalidRequest."""
    if not raw.strip():
        raise InvalidRequest("invalid JSON: got EOF while reading request body")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"invalid JSON: {error}") from None


def decode(raw: bytes, kind: type[T]) -> T:
    """`null` counts as not given, as in Go.  Raises InvalidRequest saying where."""
    return convert(read_json(raw), kind)


def convert(document: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(_without_nulls(document), kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid JSON: {error}") from None


def _without_nulls(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        if key in _KEYED:
            return {k: {} if v is None else _without_nulls(v) for k, v in value.items()}
        return {k: _without_nulls(v, k) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value if v is not None]
    return value


def json_bytes(document: object) -> bytes:
    """One line."""
    return _encoder.encode(document) + b"\n"


def to_builtins(document: object) -> dict[str, Any]:
    """A struct as a dict, to add to."""
    plain = msgspec.to_builtins(document)
    assert isinstance(plain, dict)
    return plain
