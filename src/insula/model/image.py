"""Images as stored.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from insula.model.health import HealthCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """OCI content descriptor: what a blob is, how long, and its digest (`sha256:…`)."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a name means on a registry: a manifest, or an index of several, and for which platforms."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The `config` object of an OCI image: what a workload gets unless the request says otherwise."""

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()
    health: HealthCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image: `id` is the digest of its configuration blob (`sha256:…`).

    `diff_ids` are the digests of the uncompressed layers, lowest first.  `layers` are the blobs as
    they came (possibly compressed), in the same order.  `tags` are familiar names (`debian:12`),
    `digests` are `name@sha256:…` as pulled or pushed.  `size_bytes` is the unpacked size.  `manifest` is the
    digest of the manifest that it came with, kept as a blob so that a push gives the same digest; empty
    when there is none (loaded, imported, committed): a push then makes one.  `container` is the id of the
    instance that it was committed from, and `container_image` the name of its image, where it says so.
    """

    id: str
    config: ImageConfig
    platform: Platform
    diff_ids: tuple[str, ...]
    layers: tuple[Descriptor, ...]
    history: tuple[HistoryEntry, ...] = ()
    created: str = ""
    author: str = ""
    comment: str = ""
    size_bytes: int = 0
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    parent: str = ""
    container: str = ""
    container_image: str = ""
    manifest: str = ""
    tagged_ns: int = field(default=0, compare=False)
    """When it got a tag last here."""
