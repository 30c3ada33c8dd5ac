"""Docker's multiplexed stream: 8 bytes of header (channel, three zeros, length), then the data.  Pure."""

from __future__ import annotations

import struct

from insula.model.stream import Channel

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

_HEADER = struct.Struct(">BxxxI")


def frame(channel: Channel, data: bytes) -> bytes:
    return _HEADER.pack(channel, len(data)) + data
