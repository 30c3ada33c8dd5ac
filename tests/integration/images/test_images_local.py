"""Save, load, import and commit through the facade; removal of what nobody needs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.errors import Conflict, CorruptData, InvalidReference, InvalidRequest, NoSuchImage
from insula.images.images import Images
from insula.images.records import Use
from insula.model.reports import PruneFilters
from integration.images.fake_registry import FakeRegistry, digest, make_tar

pytestmark = pytest.mark.integration


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


def nobody(_: str) -> None:
    """Uses no image."""


async def pulled(images: Images, source: FakeRegistry, tag: str = "latest", **files: bytes) -> str:
    source.put_image(tag=tag, layers=[{"base": b"base"}, dict(files)])
    return (await images.pull(f"{source.domain}/test/image:{tag}")).id


async def clear(images: Images) -> None:
    for image in images.list():
        await images.remove(image.id, force=True, in_use=nobody)
    assert images.content.digests() == ()
    assert images.layers.diff_ids() == ()


async def test_saved_image_is_loaded_as_it_was(images: Images, source: FakeRegistry) -> None:
    before = images.find(await pulled(images, source, a=b"1"))
    await images.tag(before.id, "mine:1")
    data = await whole(images.save(["mine:1"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as saved:
        names = saved.getnames()
    assert {"manifest.json", "index.json", "oci-layout"} <= set(names)
    await clear(images)
    (after,) = await images.load(pieces(data))
    assert after.tags == ("mine:1",)
    assert (after.id, after.layers[0].digest, after.manifest) == (
        before.id,
        before.layers[0].digest,
        before.manifest,
    )
    assert after.size_bytes == before.size_bytes


async def test_repository_is_saved_with_all_its_tags(images: Images, source: FakeRegistry) -> None:
    first, second = await pulled(images, source, "a", a=b"1"), await pulled(images, source, "b", b=b"2")
    data = await whole(images.save([f"{source.domain}/test/image"]))
    await clear(images)
    loaded = await images.load(pieces(data))
    assert {(image.id, image.tags) for image in loaded} == {
        (first, (f"{source.domain}/test/image:a",)),
        (second, (f"{source.domain}/test/image:b",)),
    }
    with pytest.raises(NoSuchImage):
        images.save(["nothing"])


async def test_broken_archive_leaves_nothing(images: Images, source: FakeRegistry) -> None:
    image_id = await pulled(images, source, a=b"1" * 5000)
    data = await whole(images.save([image_id]))
    await clear(images)
    with pytest.raises(CorruptData):
        await images.load(pieces(data[: len(data) // 2]))
    with pytest.raises(InvalidRequest):
        await images.load(pieces(make_tar({"a": b"1"})))
    assert images.list() == ()
    assert images.content.digests() == ()


async def test_archive_whose_second_image_lies_leaves_nothing(images: Images, source: FakeRegistry) -> None:
    good, bad = make_tar({"a": b"1"}), make_tar({"b": b"2"})
    files: dict[str, bytes] = {}
    entries = []
    for number, (layer, diff_id) in enumerate(((good, digest(good)), (bad, "sha256:" + "0" * 64))):
        config = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [diff_id]}}
        files |= {f"{number}.json": json.dumps(config).encode(), f"{number}.tar": layer}
        entries.append({"Config": f"{number}.json", "Layers": [f"{number}.tar"], "RepoTags": [f"x:{number}"]})
    files["manifest.json"] = json.dumps(entries).encode()
    with pytest.raises(CorruptData):
        await images.load(pieces(make_tar(files)))
    assert images.list() == ()
    assert images.layers.diff_ids() == ()


async def test_import_makes_an_image_of_one_layer(images: Images) -> None:
    image = await images.import_(
        pieces(make_tar({"etc/motd": b"hi"})), ref="rootfs", message="mine", changes=('CMD ["sh"]', "ENV A=1")
    )
    assert image.tags == ("rootfs:latest",)
    assert (image.config.command, image.config.env, image.comment) == (("sh",), ("A=1",), "mine")
    assert Path(images.layers.path(image.diff_ids[0]), "etc/motd").read_bytes() == b"hi"
    with pytest.raises(InvalidReference):
        await images.import_(pieces(b""), ref="Bad")
    with pytest.raises(InvalidRequest, match="is not a valid change command"):
        await images.import_(pieces(make_tar({"a": b"1"})), ref=None, changes=("FROM scratch",))
    assert len(images.content.digests()) == 2


async def test_commit_adds_a_layer_and_remembers_its_parent(images: Images, source: FakeRegistry) -> None:
    base = images.find(await pulled(images, source, a=b"1"))
    made = await images.commit(
        pieces(make_tar({"new": b"2"})),
        base=base,
        config=base.config,
        author="ali",
        message="why",
        ref="made:1",
    )
    assert made.diff_ids[:-1] == base.diff_ids
    assert made.layers[:-1] == base.layers
    assert (made.parent, made.tags, made.author, made.comment) == (base.id, ("made:1",), "ali", "why")
    with pytest.raises(Conflict, match="dependent child images"):
        await images.remove(base.id, force=True, in_use=nobody)
    await images.remove("made:1", in_use=nobody)
    assert images.list() == (base,)
    assert images.layers.diff_ids() == tuple(sorted(base.diff_ids))


async def test_removal_keeps_layers_that_another_image_has(images: Images, source: FakeRegistry) -> None:
    await pulled(images, source, "a", a=b"1")
    second = images.find(await pulled(images, source, "b", b=b"2"))
    await images.remove(f"{source.domain}/test/image:a", in_use=nobody)
    assert images.layers.diff_ids() == tuple(sorted(second.diff_ids))
    assert all(images.content.has(layer.digest) for layer in second.layers)


async def test_forced_removal_of_an_image_in_use_keeps_its_files(
    images: Images, source: FakeRegistry
) -> None:
    image = images.find(await pulled(images, source, a=b"1"))

    def used(image_id: str) -> Use | None:
        return Use(holder="f" * 64) if image_id == image.id else None

    removed = await images.remove(image.tags[0], force=True, in_use=used)
    assert [one.untagged for one in removed] == [*image.tags, *image.digests]
    assert images.find(image.id).tags == ()
    assert images.layers.has(image.diff_ids[0])
    report = await images.prune(in_use=used)
    assert report.deleted == ()
    report = await images.prune(in_use=nobody)
    assert report.deleted == (image.id,)
    assert report.reclaimed_bytes > 0
    assert images.layers.diff_ids() == ()


async def test_prune_honours_filters(images: Images, source: FakeRegistry) -> None:
    image_id = await pulled(images, source, a=b"1")
    for filters in (PruneFilters(labels=("nosuch",)), PruneFilters(until_ns=1)):
        report = await images.prune(dangling_only=False, in_use=nobody, filters=filters)
        assert report.deleted == ()
    report = await images.prune(dangling_only=False, in_use=nobody)
    assert image_id in report.deleted


async def test_tag_rules(images: Images, source: FakeRegistry) -> None:
    image_id = await pulled(images, source, a=b"1")
    await images.tag(image_id, "new")
    assert images.find("new:latest").id == image_id
    with pytest.raises(InvalidReference, match="digest reference"):
        await images.tag(image_id, "new@sha256:" + "0" * 64)
    with pytest.raises(InvalidReference, match="ambiguous tag"):
        await images.tag(image_id, "sha256:1")
    with pytest.raises(NoSuchImage):
        await images.tag("nosuch", "new")


async def test_documents_are_as_they_came(images: Images, source: FakeRegistry) -> None:
    image = images.find(await pulled(images, source, a=b"1"))
    assert json.loads(images.content.read(image.id))["architecture"] == "amd64"
