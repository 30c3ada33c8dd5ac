"""What clients show of an error, and the handles of results."""

from __future__ import annotations

import base64

import pytest

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.solve import definition_of, line_in, result_of, source_of
from insula.errors import InsulaError

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
