"""JSON to the documents of the API and back.  Pure."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, Union

import msgspec

from insula.errors import InvalidRequest

T = TypeVar("T")

ABSENT = msgspec.UNSET
"""Of a field: an answer of this version does not have it."""

_encoder = msgspec.json.Encoder()

# objects whose keys mean something even when the value is null
_KEYED = ("ExposedPorts", "Volumes", "EndpointsConfig")
_POINTERS = ("Init", "StopTimeout")


def read_json(raw: bytes) -> Any:
    """Raises InvalidRequest."""
    if not raw.strip():
        raise InvalidRequest("invalid JSON: got EOF while reading request body")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        from insula.api.wire.syntax import find_mistake

        raise InvalidRequest(find_mistake(raw) or f"invalid JSON: {error}") from None


def decode(raw: bytes, kind: type[T]) -> T:
    """`null` counts as not given, as in Go.  Raises InvalidRequest saying where."""
    return convert(read_json(raw), kind)


def convert(document: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(_without_nulls(spell(document, kind)), kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid JSON: {error}") from None


def spell(value: Any, kind: Any) -> Any:
    """`value` with the names of fields as `kind` spells them: Go reads `detachKeys` for `DetachKeys`, and
    clients rely on it.  A name that is spelt right wins."""
    shape, child = _shape(kind)
    if isinstance(value, list) and shape is list:
        return [spell(each, child) for each in value]
    if not isinstance(value, dict) or shape not in (dict, msgspec.Struct):
        return value
    if shape is dict:
        return {key: spell(each, child) for key, each in value.items()}
    exact, folded = child
    found: dict[str, Any] = {}
    for key, each in value.items():
        name = key if key in exact else folded.get(key.lower(), key)
        if name == key or name not in value:
            found[name] = spell(each, exact[name]) if name in exact else each
    return found


def find_strangers(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """Fields that hold something and that `kind` does not have, as `HostConfig.Mounts.Tpye`."""
    shape, child = _shape(kind)
    if isinstance(value, list) and shape is list:
        for each in value:
            yield from find_strangers(each, child, where)
    elif isinstance(value, dict) and shape is dict:
        for key, each in value.items():
            yield from find_strangers(each, child, f"{where}{key}.")
    elif isinstance(value, dict) and shape is msgspec.Struct:
        for name, each in value.items():
            if name in child[0]:
                yield from find_strangers(each, child[0][name], f"{where}{name}.")
            elif each:
                yield f"{where}{name}"


@functools.cache
def _shape(kind: Any) -> tuple[Any, Any]:
    """What a type holds: (Struct, its fields), (list, of what), (dict, of what) or (None, None)."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = typing.get_type_hints(kind)
        return msgspec.Struct, (fields, {name.lower(): name for name in fields})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return next((shape for each in args if (shape := _shape(each))[0] is not None), (None, None))
    if origin is list:
        return list, args[0]
    return (dict, args[1]) if origin is dict else (None, None)


def _without_nulls(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        if key in _KEYED:
            return {k: {} if v is None else _without_nulls(v) for k, v in value.items()}
        return {k: _without_nulls(v, k) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value if v is not None]
    return value


def without_empty(document: T, names: Iterable[str]) -> T:
    """The same struct, of which an answer leaves out those fields that hold nothing (Go's `omitempty`).

    Clients ask whether they are there: `"Healthcheck" in config`.  A number or a truth value that may be null
    holds something when it is 0 or false: a pointer in Go.
    """
    for name in names:
        value = getattr(document, name)
        if value is None or (not value and name not in _POINTERS):
            setattr(document, name, ABSENT)
    return document


def json_bytes(document: object) -> bytes:
    """One line."""
    return _encoder.encode(document) + b"\n"


def to_builtins(document: object) -> dict[str, Any]:
    """A struct as a dict, to add to."""
    plain = msgspec.to_builtins(document)
    assert isinstance(plain, dict)
    return plain
