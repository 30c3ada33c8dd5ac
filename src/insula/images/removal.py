"""What `docker rmi` and `docker image prune` may remove, decided in moby's order and words.  Pure.

Source: moby daemon/images/image_delete.go.  One thing differs: an image removed by force while a stopped
instance still needs it loses its names but stays, unnamed, until nobody uses it (moby deletes the record
and keeps the layers; here the instance could not be started again).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from insula.errors import Conflict
from insula.images.catalog import Catalog
from insula.images.records import InUse, Use
from insula.model.ids import short_id
from insula.model.image import Image
from insula.model.reference import parse_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Names to take away, then images to delete, in order."""

    untag: tuple[str, ...] = ()
    delete: tuple[Image, ...] = ()


def find_use(image: Image, in_use: InUse) -> Use | None:
    use = in_use(image.id)
    return Use(holder=use) if isinstance(use, str) else use


def _names(image: Image) -> tuple[str, ...]:
    return (*image.tags, *image.digests)


def _is_single(names: Sequence[str]) -> bool:
    """At most one tag, and digests of the same repository only."""
    if len(names) <= 1:
        return True
    tags = [name for name in names if "@" not in name]
    repositories = {parse_reference(name).name for name in names}
    return len(tags) <= 1 and len(repositories) == 1


def _conflict(image: Image, why: str, *, hard: bool) -> Conflict:
    force = "cannot be forced" if hard else "must be forced"
    return Conflict(f"conflict: unable to delete {short_id(image.id)} ({force}) - {why}")


def _check(catalog: Catalog, image: Image, use: Use | None, *, force: bool, named: bool) -> None:
    """Raises Conflict.  `named`: may the image still have names?"""
    if catalog.children(image.id):
        raise _conflict(image, "image has dependent child images", hard=True)
    if use is not None and use.running:
        raise _conflict(image, f"image is being used by running container {short_id(use.holder)}", hard=True)
    if force:
        return
    if not named and _names(image):
        raise _conflict(image, "image is referenced in multiple repositories", hard=False)
    if use is not None:
        raise _conflict(image, f"image is being used by stopped container {short_id(use.holder)}", hard=False)


def plan_removal(catalog: Catalog, ref: str, *, force: bool, prune_children: bool, in_use: InUse) -> Removal:
    """Raises NoSuchImage, Conflict."""
    image = catalog.find(ref)
    use = find_use(image, in_use)
    names = _names(image)
    if not catalog.is_id(ref, image):
        if not force and _is_single(names) and use is not None:
            raise Conflict(
                f'conflict: unable to remove repository reference "{ref}" (must force) - container '
                f"{short_id(use.holder)} is using its referenced image {short_id(image.id)}"
            )
        untag = _untag_one(ref, names)
        if len(untag) < len(names):
            return Removal(untag=untag)
        if use is not None or catalog.children(image.id):
            return Removal(untag=untag)  # it loses its last name and stays
        return Removal(untag=untag, delete=_with_parents(catalog, image, prune_children, in_use))
    _check(catalog, image, use, force=force, named=_is_single(names))
    if use is not None:
        return Removal(untag=names)
    return Removal(untag=names, delete=_with_parents(catalog, image, prune_children, in_use))


def _untag_one(ref: str, names: Sequence[str]) -> tuple[str, ...]:
    """The name, and with a repository's last tag the digests of that repository."""
    reference = parse_reference(ref).tagged()
    name = str(reference)
    if reference.digest:
        return (name,)
    same = [n for n in names if n != name and parse_reference(n).name == reference.name]
    if any("@" not in other for other in same):
        return (name,)
    return (name, *same)


def _with_parents(catalog: Catalog, image: Image, prune_children: bool, in_use: InUse) -> tuple[Image, ...]:
    """The image, then parents that have no name, no user and no other child."""
    found = [image]
    while prune_children and (parent := catalog.get(found[-1].parent)) is not None:
        others = [child for child in catalog.children(parent.id) if child not in found]
        if _names(parent) or others or find_use(parent, in_use) is not None or parent in found:
            break
        found.append(parent)
    return tuple(found)


def plan_prune(catalog: Catalog, *, dangling_only: bool, in_use: InUse, wanted: Sequence[Image]) -> Removal:
    """Of `wanted`, those that nobody uses and that have no tag (or, if not `dangling_only`, any)."""
    untag: list[str] = []
    delete: list[Image] = []
    for image in wanted:
        if find_use(image, in_use) is not None or (dangling_only and image.tags):
            continue
        if any(child not in delete for child in catalog.children(image.id)):
            continue
        untag += _names(image)
        delete.append(image)
    return Removal(untag=tuple(untag), delete=tuple(delete))
