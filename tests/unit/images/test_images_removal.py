"""Names, ids and what `docker rmi` may remove, on a real store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from insula.errors import Conflict, InvalidReference, InvalidRequest, NoSuchImage
from insula.images.catalog import Catalog
from insula.images.records import InUse, Use
from insula.images.removal import plan_prune, plan_removal
from insula.model.image import Descriptor, Image, ImageConfig, Platform
from insula.store.store import Store

_INSTANCE = "c0ffee" + "0" * 58


def make_image(start: str, parent: str = "") -> Image:
    layer = "sha256:" + start[0] * 64
    return Image(
        id="sha256:" + start.ljust(64, "0"),
        config=ImageConfig(),
        platform=Platform(),
        diff_ids=(layer,),
        layers=(Descriptor(media_type="", digest=layer, size=1),),
        parent=parent,
    )


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    store = Store(str(tmp_path / "insula.db"))
    yield Catalog(store)
    store.close()


def used_by(image: Image, *, running: bool = False) -> InUse:
    return lambda image_id: Use(holder=_INSTANCE, running=running) if image_id == image.id else None


def nobody(_: str) -> None:
    """Uses no image."""


def names(
    catalog: Catalog, ref: str, in_use: InUse = nobody, *, force: bool = False
) -> tuple[object, object]:
    plan = plan_removal(catalog, ref, force=force, prune_children=True, in_use=in_use)
    return plan.untag, tuple(image.id for image in plan.delete)


def test_found_by_every_name(catalog: Catalog) -> None:
    image = make_image("abc1")
    digest = "sha256:" + "9" * 64
    stored = catalog.add(image, tags=("debian:latest",), digest=f"debian@{digest}")
    assert stored == replace(image, tags=("debian:latest",), digests=(f"debian@{digest}",))
    for ref in (
        "debian", "debian:latest", "docker.io/library/debian", f"debian@{digest}", f"debian:x@{digest}",
        image.id, image.id[7:], "abc", "sha256:abc1",
    ):  # fmt: skip
        assert catalog.find(ref) == stored, ref


def test_not_found_in_dockers_words(catalog: Catalog) -> None:
    with pytest.raises(NoSuchImage, match="No such image: debian:latest"):
        catalog.find("debian")
    with pytest.raises(NoSuchImage, match="No such image: sha256:0"):
        catalog.find("sha256:" + "0" * 64)
    with pytest.raises(InvalidReference, match="must be lowercase"):
        catalog.find("Debian")


def test_beginning_that_fits_two_ids_is_refused(catalog: Catalog) -> None:
    first, second = catalog.add(make_image("ab1")), catalog.add(make_image("ab2"))
    with pytest.raises(InvalidRequest, match="ambiguous"):
        catalog.find("ab")
    assert (catalog.find("ab1"), catalog.find("ab2")) == (first, second)


def test_name_goes_before_the_beginning_of_an_id(catalog: Catalog) -> None:
    catalog.add(make_image("abc1"))
    named = catalog.add(make_image("fff"), tags=("abc:latest",))
    assert catalog.find("abc") == named


def test_catalog_is_read_back(catalog: Catalog) -> None:
    stored = catalog.add(make_image("a"), tags=("x:1",))
    catalog.reload()
    assert catalog.all() == (stored,)


def test_names_are_in_the_order_of_their_whole_forms(catalog: Catalog) -> None:
    names = ("web:1", "web-x:1", "team/web:1", "a.example/web:1")
    stored = catalog.add(make_image("a"), tags=names)
    assert ("a.example/web:1", "web-x:1", "web:1", "team/web:1") == stored.tags


def test_one_of_two_tags_is_only_untagged(catalog: Catalog) -> None:
    image = catalog.add(make_image("a"), tags=("x:1",))
    catalog.tag("x:2", image.id)
    assert names(catalog, "x:1", used_by(image, running=True)) == (("x:1",), ())


def test_last_tag_takes_the_digests_and_the_image_along(catalog: Catalog) -> None:
    digest = "x@sha256:" + "9" * 64
    image = catalog.add(make_image("a"), tags=("x:1",), digest=digest)
    assert names(catalog, "x:1") == (("x:1", digest), (image.id,))


def test_last_tag_in_use(catalog: Catalog) -> None:
    image = catalog.add(make_image("abcdef"), tags=("x:1",))
    expected = (
        'conflict: unable to remove repository reference "x:1" (must force) - container c0ffee000000 '
        "is using its referenced image abcdef000000"
    )
    for running in (False, True):
        with pytest.raises(Conflict) as caught:
            names(catalog, "x:1", used_by(image, running=running))
        assert caught.value.message == expected
        assert names(catalog, "x:1", used_by(image, running=running), force=True) == (("x:1",), ())


def test_by_id_with_tags_of_two_repositories(catalog: Catalog) -> None:
    image = catalog.add(make_image("abcdef"), tags=("x:1",))
    catalog.tag("y:1", image.id)
    with pytest.raises(Conflict) as caught:
        names(catalog, "abcdef")
    assert caught.value.message == (
        "conflict: unable to delete abcdef000000 (must be forced) - "
        "image is referenced in multiple repositories"
    )
    assert names(catalog, image.id, force=True) == (("x:1", "y:1"), (image.id,))


def test_by_id_with_one_repository(catalog: Catalog) -> None:
    digest = "x@sha256:" + "9" * 64
    image = catalog.add(make_image("a"), tags=("x:1",), digest=digest)
    assert names(catalog, image.id) == (("x:1", digest), (image.id,))


def test_by_id_in_use(catalog: Catalog) -> None:
    image = catalog.add(make_image("abcdef"), tags=("x:1",))
    with pytest.raises(
        Conflict, match=r"\(must be forced\) - image is being used by stopped container c0ffee"
    ):
        names(catalog, "abcdef", used_by(image))
    assert names(catalog, "abcdef", used_by(image), force=True) == (("x:1",), ())
    for force in (False, True):
        with pytest.raises(
            Conflict, match=r"\(cannot be forced\) - image is being used by running container c0ffee"
        ):
            names(catalog, "abcdef", used_by(image, running=True), force=force)


def test_parent_stays_while_it_has_children_and_goes_with_the_last(catalog: Catalog) -> None:
    parent = catalog.add(make_image("a"))
    child = catalog.add(make_image("b", parent.id), tags=("x:1",))
    with pytest.raises(Conflict, match="image has dependent child images"):
        names(catalog, parent.id, force=True)
    assert names(catalog, "x:1") == (("x:1",), (child.id, parent.id))
    plan = plan_removal(catalog, "x:1", force=False, prune_children=False, in_use=nobody)
    assert [image.id for image in plan.delete] == [child.id]


def test_named_parent_stays(catalog: Catalog) -> None:
    parent = catalog.add(make_image("a"), tags=("base:1",))
    child = catalog.add(make_image("b", parent.id), tags=("x:1",))
    assert names(catalog, "x:1") == (("x:1",), (child.id,))


def test_prune_spares_what_is_named_or_used(catalog: Catalog) -> None:
    dangling, busy = catalog.add(make_image("a")), catalog.add(make_image("b"))
    named = catalog.add(make_image("c"), tags=("x:1",))
    for dangling_only, expected in ((True, {dangling.id}), (False, {dangling.id, named.id})):
        plan = plan_prune(catalog, dangling_only=dangling_only, in_use=used_by(busy), wanted=catalog.all())
        assert {image.id for image in plan.delete} == expected


def test_what_images_need(catalog: Catalog) -> None:
    image = catalog.add(replace(make_image("a"), manifest="sha256:" + "e" * 64))
    assert catalog.needed() == {image.id, "sha256:" + "a" * 64, "sha256:" + "e" * 64}
    catalog.delete(image.id)
    assert catalog.needed() == set()


def test_retagging_moves_the_name(catalog: Catalog) -> None:
    first, second = catalog.add(make_image("a"), tags=("x:1",)), catalog.add(make_image("b"))
    catalog.tag("x:1", second.id)
    assert catalog.find("x:1").id == second.id
    assert catalog.find(first.id).tags == ()
    with pytest.raises(NoSuchImage):
        catalog.tag("x:1", "sha256:" + "0" * 64)
