"""Templates as they are shown: frozen guests that virtual machines start from.  Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateView:
    """`boot_ms` is what making it took, `size_bytes` what its files take.  `loaded`: its memory is held
    ready.  `current`: a VM of this size would start from it here and now."""

    key: str
    kernel: str
    accelerator: str
    hypervisor: str
    vcpus: int
    memory_mib: int
    created_ns: int
    boot_ms: int
    size_bytes: int
    loaded: bool
    current: bool
