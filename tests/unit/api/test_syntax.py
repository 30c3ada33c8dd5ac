"""What is wrong with a JSON text, against what Go's encoding/json says of the same bytes."""

from __future__ import annotations

import pytest

from insula.api.wire.codec import read_json
from insula.api.wire.syntax import MOST_BYTES, find_mistake
from insula.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{invalid json", "invalid character 'i' looking for beginning of object key string"),
        (b"invalid", "invalid character 'i' looking for beginning of value"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b'{"a":{"b":[1,{}]},}', "invalid character '}' looking for beginning of object key string"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b"{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
        (b'"a\nb"', "invalid character '\\n' in string literal"),
        (b'"\\x"', "invalid character 'x' in string escape code"),
        (b'"\\u12g4"', "invalid character 'g' in \\u hexadecimal character escape"),
        (b"-a", "invalid character 'a' in numeric literal"),
        (b"1.x", "invalid character 'x' after decimal point in numeric literal"),
        (b"1e+x", "invalid character 'x' in exponent of numeric literal"),
        (b"trve", "invalid character 'v' in literal true (expecting 'u')"),
        (b'{"a":', "unexpected EOF"),
        (b'{"a', "unexpected EOF"),
        (b"[" * 1000, "unexpected EOF"),
    ],
)
def test_a_mistake_in_gos_words(text: bytes, message: str) -> None:
    assert f"invalid JSON: {message}" == find_mistake(text)
    with pytest.raises(InvalidRequest) as raised:
        read_json(text)
    assert f"invalid JSON: {message}" == raised.value.message


def test_more_than_one_document() -> None:
    assert "unexpected content after JSON" == find_mistake(b"{} trailing")
    assert "unexpected content after JSON" == find_mistake(b"1 2")


def test_what_is_right_or_too_far_away_has_none() -> None:
    for text in (b'{"a": [1, -0.5e3, true, null, "\\u00e9"], "b": {}} ', b"[]", b'"x"'):
        assert "" == find_mistake(text)
        read_json(text)
    assert "" == find_mistake(b" " * MOST_BYTES + b"x")
