"""Images as Docker shows them, and image configurations out of requests.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from insula.api.filters import Filters
from insula.api.times import ZERO, format_time, parse_time, unix_seconds
from insula.api.translate_health import parse_health, render_check
from insula.api.versions import NEWEST, Version
from insula.api.wire.codec import ABSENT, without_empty
from insula.api.wire.container import GraphDriverData
from insula.api.wire.container_config import CONFIG_OMITS, ContainerConfig
from insula.api.wire.image import (
    DistributionInspect,
    HistoryResponseItem,
    ImageInspect,
    ImageSummary,
    OCIDescriptor,
    OCIPlatform,
    RootFS,
)
from insula.errors import InvalidRequest
from insula.model.image import Image, ImageConfig, Offer

LIST_FILTERS = ("before", "dangling", "label", "label!", "reference", "since", "until")


def render_summary(
    image: Image, version: Version = NEWEST, *, containers: int = -1, shared_size: int = -1
) -> ImageSummary:
    """Until API 1.42 one without a name is called `<none>`; `VirtualSize` is there until 1.43."""
    nameless = version < (1, 43) and not (image.tags or image.digests)
    return ImageSummary(
        Id=image.id,
        ParentId=image.parent,
        RepoTags=["<none>:<none>"] if nameless else list(image.tags),
        RepoDigests=["<none>@<none>"] if nameless else list(image.digests),
        Created=unix_seconds(image.created),
        Size=image.size_bytes,
        SharedSize=shared_size,
        Labels=image.config.labels or None,
        Containers=containers,
        VirtualSize=image.size_bytes if version < (1, 44) else ABSENT,
    )


def render_inspect(image: Image, version: Version = NEWEST) -> ImageInspect:
    """With what it was committed from until API 1.44, as documented, and later where that is known.

    `ContainerConfig` is there in every version: docker-compose 1, which speaks the newest, takes the
    volumes of a service from it when it makes its container anew, and fails without.  Where the container
    is not known, the image's own configuration says the same.
    """
    document = _render_inspect(image)
    if version < (1, 44):
        document.VirtualSize = image.size_bytes
        document.Created = image.created or ZERO
    document.ContainerConfig = render_image_config(image.config)
    if image.container:
        document.Container = image.container
        document.ContainerConfig.Image = image.container_image
    elif version < (1, 45):
        document.Container = ""
    return document


def _render_inspect(image: Image) -> ImageInspect:
    return ImageInspect(
        Id=image.id,
        RepoTags=list(image.tags),
        RepoDigests=list(image.digests),
        Parent=image.parent,
        Comment=image.comment,
        Created=image.created or ABSENT,
        DockerVersion="",
        Author=image.author,
        Config=render_image_config(image.config),
        Architecture=image.platform.architecture,
        Variant=image.platform.variant,
        Os=image.platform.os,
        Size=image.size_bytes,
        GraphDriver=GraphDriverData(Name="overlay2", Data=None),
        RootFS=RootFS(Type="layers", Layers=list(image.diff_ids)),
        Metadata={"LastTagTime": format_time(image.tagged_ns)},
    )


def render_offer(offer: Offer) -> DistributionInspect:
    """`GET /distribution/{name}/json`."""
    return DistributionInspect(
        Descriptor=OCIDescriptor(
            media_type=offer.descriptor.media_type, digest=offer.descriptor.digest, size=offer.descriptor.size
        ),
        Platforms=[
            OCIPlatform(architecture=p.architecture, os=p.os, variant=p.variant) for p in offer.platforms
        ],
    )


def render_image_config(config: ImageConfig) -> ContainerConfig:
    rendered = ContainerConfig(
        User=config.user,
        ExposedPorts={p: {} for p in config.exposed_ports},
        Env=list(config.env) or None,
        Cmd=list(config.command) or None,
        Healthcheck=render_check(config.health),
        Volumes={v: {} for v in config.volumes} or None,
        WorkingDir=config.working_dir,
        Entrypoint=list(config.entrypoint) or None,
        OnBuild=list(config.on_build) or None,
        Labels=config.labels or None,
        StopSignal=config.stop_signal,
        Shell=list(config.shell) or None,
    )
    return without_empty(rendered, CONFIG_OMITS)


def parse_image_config(given: ContainerConfig) -> ImageConfig:
    """What `commit` is given in its body."""
    return ImageConfig(
        command=_words(given.Cmd),
        entrypoint=_words(given.Entrypoint),
        env=tuple(given.Env or ()),
        user=given.User,
        working_dir=given.WorkingDir,
        labels=given.Labels or {},
        exposed_ports=tuple(given.ExposedPorts),
        volumes=tuple(given.Volumes or ()),
        stop_signal=given.StopSignal,
        shell=tuple(given.Shell or ()),
        on_build=tuple(given.OnBuild or ()),
        health=parse_health(given.Healthcheck),
    )


def _words(given: str | list[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def render_history(
    image: Image, layer_size: Callable[[str], int], parents: Sequence[Image] = ()
) -> list[HistoryResponseItem]:
    """Newest first.  The topmost entry has an id, and those that are of `parents`, the images that it was
    built on here, nearest first; the others are layers, not images."""
    layers = iter(image.diff_ids)
    items = []
    for entry in image.history:
        diff_id = None if entry.empty_layer else next(layers, None)
        items.append(
            HistoryResponseItem(
                Id="<missing>",
                Created=unix_seconds(entry.created),
                CreatedBy=entry.created_by,
                Tags=None,
                Size=layer_size(diff_id) if diff_id else 0,
                Comment=entry.comment,
            )
        )
    items += [
        HistoryResponseItem(
            Id="<missing>",
            Created=unix_seconds(image.created),
            CreatedBy="",
            Tags=None,
            Size=layer_size(d),
            Comment="",
        )
        for d in layers
    ]
    items.reverse()
    for item, one in zip(items, (image, *parents), strict=False):
        item.Id, item.Tags = one.id, list(one.tags) or None
    return items


def parents_of(image: Image, find: Callable[[str], Image | None]) -> list[Image]:
    """The images that this one was built on, nearest first, as long as each has one entry of history more."""
    found = [image]
    while found[-1].parent and (parent := find(found[-1].parent)) is not None:
        if len(parent.history) + 1 != len(found[-1].history):
            break
        found.append(parent)
    return found[1:]


def image_matches(image: Image, filters: Filters, find: Callable[[str], Image], now_ns: int) -> bool:
    """`since` and `before` raise NotFound for an image that is not there."""
    dangling = filters.flag("dangling")
    if dangling is not None and dangling == bool(image.tags):
        return False
    if not filters.labels(image.config.labels):
        return False
    if "label!" in filters and filters.labels(image.config.labels, "label!"):
        return False
    created = _created_ns(image)
    if any(created <= _created_ns(find(ref)) for ref in filters.get("since")):
        return False
    if any(created >= _created_ns(find(ref)) for ref in filters.get("before")):
        return False
    if any(created >= parse_time(text, now_ns, "until filter") for text in filters.get("until")):
        return False
    if "reference" in filters:
        named = names_that_match(image, filters)
        return bool(named.tags or named.digests)
    return True


def names_that_match(image: Image, filters: Filters) -> Image:
    """With only those of its names that the `reference` filter lets through; all of them without one."""
    if "reference" not in filters:
        return image
    patterns = [_glob(pattern) for pattern in filters.get("reference")]

    def kept(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            name
            for name in names
            if any(p.fullmatch(n) for p in patterns for n in (name, _without_tag(name)))
        )

    return replace(image, tags=kept(image.tags), digests=kept(image.digests))


def _created_ns(image: Image) -> int:
    return parse_time(image.created, 0, "created") if image.created else 0


def _without_tag(name: str) -> str:
    name = name.partition("@")[0]
    head, _, tail = name.rpartition(":")
    return head if head and "/" not in tail else name


def _glob(pattern: str) -> re.Pattern[str]:
    """Go's path.Match: `*` and `?` stop at a slash."""
    source = "".join("[^/]*" if c == "*" else "[^/]" if c == "?" else re.escape(c) for c in pattern)
    return re.compile(source)


def repository_tag(repository: str, tag: str) -> str | None:
    """`repo` and `tag` parameters as one reference; None when no repository is named.  Raises
    InvalidRequest."""
    if not repository:
        return None
    if "@" in repository or tag.startswith("sha256:"):
        if "@" in repository and not tag:
            raise InvalidRequest("refusing to create a tag with a digest reference")
        return f"{repository}@{tag}"
    return f"{repository}:{tag}" if tag else repository
