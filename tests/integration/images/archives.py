"""Tar archives for tests, made with the standard library: those of strangers, not of our own writer."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass, field

from insula.images.content import ContentStore
from insula.model.image import Descriptor


@dataclass
class Builder:
    """Members in the order in which they are added."""

    form: int = tarfile.PAX_FORMAT
    _out: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self._archive = tarfile.TarFile(fileobj=self._out, mode="w", format=self.form)

    def add(self, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Builder:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode = kind, len(data), 0o644
        for key, value in fields.items():
            setattr(info, key, value)
        self._archive.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name: str, **fields: object) -> Builder:
        return self.add(name, kind=tarfile.DIRTYPE, **{"mode": 0o755, **fields})

    def symlink(self, name: str, target: str) -> Builder:
        return self.add(name, kind=tarfile.SYMTYPE, linkname=target)

    def link(self, name: str, target: str) -> Builder:
        return self.add(name, kind=tarfile.LNKTYPE, linkname=target)

    def done(self) -> bytes:
        self._archive.close()
        return self._out.getvalue()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def stored(content: ContentStore, data: bytes) -> Descriptor:
    return Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar", digest=content.put(data), size=len(data)
    )
