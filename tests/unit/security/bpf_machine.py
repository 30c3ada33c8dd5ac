"""An interpreter of classic BPF as seccomp uses it: for tests of generated filters."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def run_filter(program: bytes, nr: int, args: Sequence[int] = (), arch: int = 0xC000003E) -> tuple[int, int]:
    """(verdict, instructions executed)."""
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack("=iIQ6Q", nr - (1 << 32) if nr >= 1 << 31 else nr, arch, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program))
    position = accumulator = steps = 0
    while True:
        kind, if_true, if_false, k = code[position]
        position += 1
        steps += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif kind == 0x54:
            accumulator &= k
        elif kind == 0x05:
            position += k
        elif kind == 0x06:
            return k, steps
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[kind]
            position += if_true if holds else if_false
