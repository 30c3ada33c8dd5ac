"""Which stages, names and paths a target needs."""

from __future__ import annotations

import pytest

from insula.build.arguments import with_origins
from insula.dockerfile.stages import parse_dockerfile

_STAGES = """\
FROM a AS one
COPY src /src
FROM b AS two
RUN x
FROM one AS three
COPY --from=two /x /x
RUN --mount=from=four,target=/m x
FROM c AS four
FROM three
ADD https://x/y https://x/z /
COPY ./lib/ conf/*.d /etc/
"""


def test_a_target_needs_what_it_is_made_from() -> None:
    parsed = parse_dockerfile(_STAGES.encode())
    assert frozenset({0, 1, 2, 4}) == parsed.needed()  # `four` comes later: it is an image's name there
    assert frozenset({1}) == parsed.up_to("two").needed()
    names, paths = parsed.used()
    assert {"a", "b", "one", "two", "four", "three"} == names
    assert {"src", "lib", "conf/*.d"} == paths


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("FROM a\nRUN x", set()),
        ("FROM a\nCOPY . /", None),
        ("FROM a\nARG D\nCOPY $D /", None),
        ("FROM a\nCOPY ../../x /y", {"x"}),
        ('FROM a\nCOPY "" /y', None),
        ("FROM a\nCOPY a\\?b c /y/", None),
        ("FROM a\nCOPY <<E /y\nE\n", set()),
        ("FROM a\nRUN --mount=target=/c x", None),
        ("FROM a\nRUN --mount=source=d/e,target=/c x", {"d/e"}),
        ("FROM a\nADD https://x/y /y", set()),
    ],
)
def test_what_is_copied_of_the_context(text: str, paths: set[str] | None) -> None:
    found = parse_dockerfile(text.encode()).used()[1]
    assert paths == (None if found is None else set(found))


def test_a_name_that_is_known_later_counts_for_all_before_it() -> None:
    parsed = parse_dockerfile(b"ARG B=one\nFROM a AS one\nFROM b AS two\nFROM $B\n")
    assert frozenset({0, 1, 2}) == parsed.needed()
    known = with_origins(parsed, {}, {})
    assert frozenset({0, 2}) == known.needed()
    assert frozenset({1, 2}) == with_origins(parsed, {"B": "two"}, {}).needed()
