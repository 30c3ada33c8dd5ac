"""What clients show of an error, the handles of results, and filters of records."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.services import parse_filters
from insula.api.buildkit.solve import definition_of, line_in, result_of, source_of
from insula.build.prune import LOCAL, MOUNT, CacheRecord
from insula.errors import InsulaError, UnsupportedField

_FILE = b"FROM a\nENV A=1\n\nRUN x \\\n # inside\n y\n\n# after\nCOPY <<E /z\nRUN no\nE\nRUN z"


@pytest.mark.parametrize(("line", "last"), [(1, 1), (2, 2), (4, 6), (9, 11), (12, 12)])
def test_an_instruction_is_shown_whole(line: int, last: int) -> None:
    [(url, shown)] = source_of("Dockerfile", _FILE, line)
    assert "github.com/moby/buildkit/errdefs.Source+json" == url
    assert ("Dockerfile", _FILE) == (shown["info"]["filename"], base64.b64decode(shown["info"]["data"]))
    assert [{"start": {"line": line}, "end": {"line": last}}] == shown["ranges"]


def test_what_does_not_parse_shows_its_line() -> None:
    assert 2 == line_in("dockerfile parse error on line 2: unknown instruction: RUNN")
    assert 0 == line_in("no space left")
    [(_, shown)] = source_of("D", b"FROM a\nRUNN", 2)
    assert 2 == shown["ranges"][0]["end"]["line"]
    assert [] == source_of("D", b"", 0) == source_of("D", b"x", 7)


def test_a_result_comes_back_as_it_went_out() -> None:
    definition = wire.Definition.FromString(definition_of("abc123").SerializeToString())
    assert "abc123" == result_of(definition)
    with pytest.raises(InsulaError, match="only Dockerfiles"):
        result_of(wire.Definition())
    with pytest.raises(InsulaError, match="no LLB"):
        result_of(wire.Definition(**{"def": [b"\xff\xff"]}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        ([], "cm"),
        ([""], "cm"),
        (["type==source.local"], "c"),
        (["type!=source.local"], "m"),
        (["id~=ach,type==exec.cachemount"], "m"),
        (["id~=ach,type==source.local"], ""),
        (["id==con", 'description=="cached mount a,b"'], "cm"),
        (['description=="cached mount a,b",type==exec.cachemount'], "m"),
        (["description~=local source"], "c"),
    ],
)
def test_records_are_chosen_as_buildx_asks(texts: list[str], chosen: str) -> None:
    numbers: dict[str, Any] = {"size_bytes": 1, "created_ns": 1, "used_ns": 1, "labels": {}}
    context = CacheRecord(ident="context", kind=LOCAL, description="local source for context", **numbers)
    mount = CacheRecord(ident="cache", kind=MOUNT, description="cached mount a,b", **numbers)
    asked = parse_filters(texts)
    assert chosen == "c" * asked(context) + "m" * asked(mount)


@pytest.mark.parametrize("text", ["mutable==true", "id", "type==a,shared", 'id==a"b', ","])
def test_other_filters_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedField, match="is not known"):
        parse_filters([text])
