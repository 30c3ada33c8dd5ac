"""Templates of images: when one is made, for whom it is right, and when it goes; with a maker that boots
nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from insula.errors import RuntimeFailed
from insula.isolation.vm import image_templates
from insula.isolation.vm.image_templates import ImageTemplate, ImageTemplates, Kind, identify
from insula.isolation.vm.size import Size
from insula.isolation.vm.template import Template
from insula.system.memory_file import make_memory_file

from .test_vm_templates import make_template

SIZE = Size(vcpus=1, memory_mib=1)


class Maker:
    def __init__(self) -> None:
        self.base = make_template()
        self.made: list[Kind] = []
        self.works = True

    async def make(self, kind: Kind) -> ImageTemplate:
        self.made.append(kind)
        if not self.works:
            raise RuntimeFailed("QEMU does not want to")
        ram, state, upper = (make_memory_file(name, 100) for name in ("ram", "state", "upper"))
        return ImageTemplate(self.base, kind, identify(kind.image_disk), ram=ram, state=state, upper=upper)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest_asyncio.fixture
async def images(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ImageTemplates]:
    monkeypatch.setattr(image_templates, "_QUIET_S", 0.0)
    one = ImageTemplates(maker.make, most=2)
    yield one
    await one.close()


def make_kind(directory: Path, name: str = "image") -> Kind:
    disk = directory / name
    disk.touch()
    return Kind(size=SIZE, image_disk=str(disk), files=("/etc/hosts",))


async def start_often(images: ImageTemplates, kind: Kind, times: int = 2) -> None:
    for _ in range(times):
        images.started(kind)
        await asyncio.sleep(0)
    if images._making is not None:
        await images._making


async def test_the_second_vm_of_an_image_has_one_made(
    images: ImageTemplates, maker: Maker, tmp_path: Path
) -> None:
    kind = make_kind(tmp_path)
    await start_often(images, kind, 1)
    assert [] == maker.made
    assert images.find(maker.base, kind) is None
    await start_often(images, kind, 1)
    assert [kind] == maker.made
    found = images.find(maker.base, kind)
    assert found is not None
    source = found.source()
    assert (maker.base.record.key, True, True) == (source.name, source.template, source.has_root)
    await start_often(images, kind)
    assert [kind] == maker.made
    assert 1 == images.ready()


async def test_one_is_made_while_vms_start_without_a_rest(
    images: ImageTemplates, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_templates, "_QUIET_S", 0.02)
    monkeypatch.setattr(image_templates, "_PATIENCE_S", 0.1)
    kind = make_kind(tmp_path)
    while not maker.made:
        images.started(kind)
        await asyncio.sleep(0.001)


async def test_starts_of_long_ago_do_not_count(
    images: ImageTemplates, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = make_kind(tmp_path)
    await start_often(images, kind, 1)
    monkeypatch.setattr(image_templates, "_RECENT_S", 0.0)
    await start_often(images, kind, 3)
    assert [] == maker.made


async def test_it_is_of_one_file_one_template_and_one_kind(
    images: ImageTemplates, maker: Maker, tmp_path: Path
) -> None:
    kind = make_kind(tmp_path)
    await start_often(images, kind)
    assert images.find(maker.base, dataclasses.replace(kind, files=())) is None
    assert images.find(maker.base, kind) is not None
    (tmp_path / "new").touch()
    os.rename(tmp_path / "new", kind.image_disk)  # the image was removed, and pulled again
    assert images.find(maker.base, kind) is None
    assert 0 == images.ready()
    await start_often(images, kind, 1)
    assert images.find(maker.base, kind) is not None
    other: Template = make_template()  # the same key, booted anew
    assert images.find(other, kind) is None
    assert images.find(maker.base, kind) is None


async def test_a_disk_that_is_gone(images: ImageTemplates, maker: Maker, tmp_path: Path) -> None:
    kind = make_kind(tmp_path)
    await start_often(images, kind)
    os.unlink(kind.image_disk)
    assert images.find(maker.base, kind) is None


async def test_there_are_few_and_one_in_use_stays(
    images: ImageTemplates, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [make_kind(tmp_path, name) for name in "abc"]
    for kind in kinds:
        await start_often(images, kind)
    assert kinds[:2] == maker.made  # the first two were used a moment ago
    monkeypatch.setattr(image_templates, "_BUSY_S", 0.0)
    assert images.find(maker.base, kinds[0]) is not None
    await start_often(images, kinds[2], 1)
    assert kinds == maker.made
    assert images.find(maker.base, kinds[0]) is not None
    assert images.find(maker.base, kinds[1]) is None
    assert images.find(maker.base, kinds[2]) is not None


async def test_none_at_all(maker: Maker, tmp_path: Path) -> None:
    images = ImageTemplates(maker.make, most=0)
    await start_often(images, make_kind(tmp_path), 5)
    assert [] == maker.made


async def test_one_that_cannot_be_made_is_not_tried_at_each_start(
    images: ImageTemplates, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.works = False
    kind = make_kind(tmp_path)
    await start_often(images, kind, 4)
    assert [kind] == maker.made
    monkeypatch.setattr(image_templates, "_RECENT_S", 0.0)
    images.shrink()
    monkeypatch.undo()
    monkeypatch.setattr(image_templates, "_QUIET_S", 0.0)
    maker.works = True
    await start_often(images, kind)
    assert images.find(maker.base, kind) is not None


async def test_memory_goes_back(
    images: ImageTemplates, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = make_kind(tmp_path)
    await start_often(images, kind)
    images.shrink()
    assert 1 == images.ready()
    monkeypatch.setattr(image_templates, "have_memory", lambda mib: False)
    images.shrink()
    assert 0 == images.ready()
    await start_often(images, kind)
    assert 0 == images.ready()  # and none is made
    monkeypatch.setattr(image_templates, "have_memory", lambda mib: True)
    await start_often(images, kind, 1)
    assert 1 == images.ready()
    monkeypatch.setattr(image_templates, "_RECENT_S", 0.0)
    images.shrink()
    assert 0 == images.ready()


async def test_what_belongs_to_a_size_goes_with_it(
    images: ImageTemplates, maker: Maker, tmp_path: Path
) -> None:
    kind = make_kind(tmp_path)
    await start_often(images, kind)
    images.forget(Size(vcpus=2, memory_mib=1))
    assert 1 == images.ready()
    images.forget(SIZE)
    assert 0 == images.ready()
