"""A kernel image taken apart: the ELF file inside a bzImage.  Pure (bytes in, bytes out).

Under TCG the guest's own decompression is a second of boot; QEMU loads the plain ELF file directly
where the kernel has a PVH entry.  Under KVM the bzImage is as fast and keeps address randomisation.
"""

from __future__ import annotations

import lzma
import struct
import zlib

from insula.errors import CorruptData

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_MOST = 256 * 1024 * 1024


def decompress_lz4_legacy(data: bytes) -> bytes:
    """The format of `lz4 -l`, which kernels use: a magic, then blocks with their lengths in front.  Raises
    CorruptData."""
    out = bytearray()
    at = 4
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size == 0 or at + size > len(data):
            break
        _lz4_block(data[at : at + size], out)
        if len(out) > _MOST:
            raise CorruptData("the kernel image decompresses to more than 256 MiB")
        at += size
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray) -> None:
    at, end, base = 0, len(block), len(out)
    while at < end:
        token = block[at]
        at += 1
        literals = token >> 4
        if literals == 15:
            while True:
                more = block[at]
                at += 1
                literals += more
                if more != 255:
                    break
        out += block[at : at + literals]
        at += literals
        if at >= end:
            return
        offset = block[at] | block[at + 1] << 8
        at += 2
        length = (token & 15) + 4
        if length == 19:
            while True:
                more = block[at]
                at += 1
                length += more
                if more != 255:
                    break
        start = len(out) - offset
        if offset == 0 or start < base:
            raise CorruptData("the kernel image's LZ4 data is damaged")
        if offset >= length:
            out += out[start : start + length]
        else:  # the match overlaps what it makes: a repeating pattern
            pattern = out[start:]
            out += (pattern * (length // offset + 1))[:length]


def _payload(image: bytes) -> bytes:
    """By the boot protocol (Documentation/x86/boot.rst, 2.08): offset and length are in the setup header."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise CorruptData("the kernel is not a bzImage")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    return image[start : start + length]


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF file in a bzImage.  Raises CorruptData for what it does not understand."""
    payload = _payload(image)
    try:
        if payload.startswith(_LZ4_LEGACY):
            plain = decompress_lz4_legacy(payload)
        elif payload.startswith(b"\xfd7zXZ"):
            plain = lzma.LZMADecompressor().decompress(payload, _MOST)
        elif payload.startswith(b"\x1f\x8b"):
            plain = zlib.decompressobj(31).decompress(payload, _MOST)
        elif payload.startswith(b"\x28\xb5\x2f\xfd"):
            from backports import zstd

            plain = zstd.ZstdDecompressor().decompress(payload, _MOST)
        else:
            raise CorruptData(f"the kernel is compressed in an unknown way ({payload[:4].hex()})")
    except (lzma.LZMAError, zlib.error, IndexError, ValueError) as error:
        raise CorruptData(f"the kernel image cannot be decompressed: {error}") from error
    if not plain.startswith(b"\x7fELF"):
        raise CorruptData("what is inside the kernel image is not an ELF file")
    return plain


def has_pvh_entry(vmlinux: bytes) -> bool:
    """Whether it carries the note XEN_ELFNOTE_PHYS32_ENTRY (18), which QEMU boots by."""
    return any(struct.pack("<III", 4, size, 18) + b"Xen\0" in vmlinux for size in (4, 8))


_STUB_ADDRESS = 0x1000000
_STUB_BYTES = 512


def make_stub(kernel: bytes) -> bytes:
    """A few hundred bytes that QEMU takes for a kernel of the same kind: an ELF file with a PVH entry, or
    a bzImage.

    A clone's guest has its kernel in memory already, but QEMU reads whatever file it is given, whole, into
    memory of its own (47 MB), and maps firmware that depends on its kind.  Raises CorruptData for neither.
    """
    if not kernel.startswith(b"\x7fELF"):
        _payload(kernel)
        return kernel[: ((kernel[0x1F1] or 4) + 1) * 512 + _STUB_BYTES]
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", _STUB_ADDRESS)  # XEN_ELFNOTE_PHYS32_ENTRY
    note_at = 64 + 2 * 56
    load_at = note_at + len(note)
    # ELF64, little endian, System V; EXEC, x86-64
    header = struct.pack("<4s5B7x", b"\x7fELF", 2, 1, 1, 0, 0) + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, _STUB_ADDRESS, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    # PT_LOAD (1), readable and executable; PT_NOTE (4)
    load = struct.pack("<IIQQQQQQ", 1, 5, load_at, _STUB_ADDRESS, _STUB_ADDRESS, _STUB_BYTES, _STUB_BYTES, 16)
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 4)
    return header + load + notes + note + bytes(_STUB_BYTES)
