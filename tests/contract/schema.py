"""Answers held against Docker's published swagger (`swagger/README.md`), each version's own."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft4Validator

from insula.api.versions import NEWEST, OLDEST, Version, check_version, split_version, text_of
from insula.errors import InvalidRequest

VERSIONS: tuple[Version, ...] = tuple((1, minor) for minor in range(OLDEST[1], NEWEST[1] + 1))

_HERE = Path(__file__).parent / "swagger"
# of Go's nil slices, maps and pointers the swagger says nothing, and JSON has null for them
_NIL = ("array", "object")
# no JSON: a swagger 2 schema for a stream of bytes or of documents
_STREAMS = ("/containers/{id}/logs", "/containers/{id}/attach", "/exec/{id}/start", "/build", "/session")
# pages of images and networks, whose names have slashes
_NAMED = ("/images/", "/distribution/", "/networks/")
# pointers in moby's Go: null where there is no number yet, or none was asked for
_POINTERS = ("ExitCode", "MemorySwappiness", "OomKillDisable")


@functools.cache
def swagger(version: Version = NEWEST) -> dict[str, Any]:
    """`definitions` as JSON schemas, `paths` with the swagger's schemas of the answers."""
    document = published(version)
    return {
        "definitions": {name: _json_schema(body) for name, body in document["definitions"].items()},
        "paths": document["paths"],
    }


@functools.cache
def published(version: Version = NEWEST) -> dict[str, Any]:
    """`definitions`, `paths` (answers) and `requests` as they are written."""
    if version == NEWEST:
        document: dict[str, Any] = json.loads((_HERE / "docker-v1.47.json").read_text())
        return {**document, "requests": json.loads((_HERE / "docker-v1.47-requests.json").read_text())}
    newer = published((1, version[1] + 1))
    changes = json.loads((_HERE / "docker-older.json").read_text())[text_of(version)]
    return {part: _with(newer[part], changes[part]) for part in ("definitions", "paths", "requests")}


def _with(newer: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: body for name, body in {**newer, **changes}.items() if body is not None}


def _json_schema(schema: Any) -> Any:
    """Swagger 2's dialect as JSON Schema draft 4."""
    if isinstance(schema, list):
        return [_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _json_schema(value) for key, value in schema.items() if key != "format"}
    for name in _POINTERS:
        if isinstance(field := made.get(name), dict) and isinstance(field.get("type"), str):
            field["type"] = [field["type"], "null"]
    if "hyperv" in made.get("enum", ()):  # an isolation, and that has one word more here
        made["enum"] = [*made["enum"], "vm"]
    nullable = made.pop("x-nullable", False) is True
    kind = made.get("type")
    if isinstance(kind, str) and (nullable or kind in _NIL):
        made["type"] = [kind, "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
    return made


@functools.cache
def _paths(version: Version) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (
            re.compile(
                re.sub(r"\\\{[a-z]+\\\}", ".+" if path.startswith(_NAMED) else "[^/]+", re.escape(path))
            ),
            path,
        )
        for path in sorted(swagger(version)["paths"], key=lambda p: (p.count("{"), -len(p)))
    )


def find_schema(method: str, target: str, status: int) -> tuple[str, Any] | None:
    """(path as the swagger has it, schema of this answer); None when the swagger has no word for it."""
    version, path = _version_of(target)
    for pattern, name in _paths(version):
        answers = swagger(version)["paths"][name].get(method.lower())
        if answers is not None and pattern.fullmatch(path):
            schema = answers.get(str(status)) or answers.get("default")
            return None if schema is None or name in _STREAMS else (name, _json_schema(schema))
    return None


def _version_of(target: str) -> tuple[Version, str]:
    """And the path.  One that is refused is answered as the newest, one that is accepted as the oldest."""
    word, path = split_version(urlsplit(target).path)
    try:
        return max(check_version(word), OLDEST), path
    except InvalidRequest:
        return NEWEST, path


def complaints(method: str, target: str, status: int, body: bytes) -> list[str]:
    """What in an answer is not as Docker says."""
    found = find_schema(method, target, status)
    if found is None or not body:
        return []
    name, schema = found
    whole = {**schema, "definitions": swagger(_version_of(target)[0])["definitions"]}
    if schema.get("type") == "string":
        return []
    answer = json.loads(body)
    errors = Draft4Validator(whole).iter_errors(answer)
    return [f"{method} {name} {status}: {e.json_path}: {e.message[:200]}" for e in errors]


def strangers(method: str, target: str, status: int, body: bytes) -> set[str]:
    """Fields of an answer that this version's description of it does not have, as `Network.EnableIPv4`."""
    found = find_schema(method, target, status)
    assert found is not None, (method, target, status)
    definitions = swagger(_version_of(target)[0])["definitions"]
    return set(_strangers(json.loads(body), found[1], definitions, found[0]))


def _strangers(value: Any, schema: Any, definitions: dict[str, Any], where: str) -> Iterator[str]:
    while "$ref" in schema:
        where = schema["$ref"].rpartition("/")[2]
        schema = definitions[where]
    if isinstance(value, list):
        for each in value:
            yield from _strangers(each, schema.get("items", {}), definitions, where)
    if not isinstance(value, dict):
        return
    known = _properties(schema, definitions)
    more = schema.get("additionalProperties")
    for name, each in value.items():
        if name in known:
            yield from _strangers(each, known[name], definitions, f"{where}.{name}")
        elif isinstance(more, dict):
            yield from _strangers(each, more, definitions, where)
        elif known:
            yield f"{where}.{name}"


def _properties(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Those that it is made of (`allOf`), too."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    found = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        found |= _properties(part, definitions)
    return found
