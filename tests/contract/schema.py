"""Answers held against Docker's published swagger (`swagger/README.md`)."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft4Validator

_FILE = Path(__file__).parent / "swagger" / "docker-v1.45.json"
# of Go's nil slices, maps and pointers the swagger says nothing, and JSON has null for them
_NIL = ("array", "object")
# no JSON: a swagger 2 schema for a stream of bytes or of documents
_STREAMS = ("/containers/{id}/logs", "/containers/{id}/attach", "/exec/{id}/start", "/build", "/session")
# pages of images, whose names have slashes
_NAMED = ("/images/", "/distribution/")
# pointers in moby's Go: null where there is no number yet, or none was asked for
_POINTERS = ("ExitCode", "MemorySwappiness", "OomKillDisable")


@functools.cache
def swagger() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_FILE.read_text())
    return {
        "definitions": {name: _json_schema(body) for name, body in document["definitions"].items()},
        "paths": document["paths"],
    }


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
def _paths() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (
            re.compile(
                re.sub(r"\\\{[a-z]+\\\}", ".+" if path.startswith(_NAMED) else "[^/]+", re.escape(path))
            ),
            path,
        )
        for path in sorted(swagger()["paths"], key=lambda p: (p.count("{"), -len(p)))
    )


def find_schema(method: str, target: str, status: int) -> tuple[str, Any] | None:
    """(path as the swagger has it, schema of this answer); None when the swagger has no word for it."""
    path = re.sub(r"^/v1\.\d+(?=/)", "", urlsplit(target).path)
    for pattern, name in _paths():
        answers = swagger()["paths"][name].get(method.lower())
        if answers is not None and pattern.fullmatch(path):
            schema = answers.get(str(status)) or answers.get("default")
            return None if schema is None or name in _STREAMS else (name, _json_schema(schema))
    return None


def complaints(method: str, target: str, status: int, body: bytes) -> list[str]:
    """What in an answer is not as Docker says."""
    found = find_schema(method, target, status)
    if found is None or not body:
        return []
    name, schema = found
    whole = {**schema, "definitions": swagger()["definitions"]}
    if schema.get("type") == "string":
        return []
    answer = json.loads(body)
    errors = Draft4Validator(whole).iter_errors(answer)
    return [f"{method} {name} {status}: {e.json_path}: {e.message[:200]}" for e in errors]
