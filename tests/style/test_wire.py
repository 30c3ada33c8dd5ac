"""What protoc made is of the .proto beside it: the same messages, fields and numbers."""

from __future__ import annotations

import re
from pathlib import Path

from insula.api.buildkit import wire_pb2

_PROTO = Path(wire_pb2.__file__).with_name("wire.proto")
_FIELD = re.compile(r"^\s*(?:repeated |map<[^>]+> )?(?:\w+ )?(\w+) = (\d+);", re.MULTILINE)


def test_the_generated_module_is_up_to_date() -> None:
    text = re.sub(r"//.*", "", _PROTO.read_text())
    text = re.sub(r"enum \w+ \{[^}]*\}", "", text)
    written = {
        name: {field: int(number) for field, number in _FIELD.findall(body)}
        for name, body in re.findall(r"message (\w+) \{([^}]*)\}", text)
    }
    made = {
        name: {field.name: field.number for field in message.fields}
        for name, message in wire_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    assert made == written
    assert len(made) > 30
