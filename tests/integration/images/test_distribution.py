"""Asking a registry what a name means there (`GET /distribution/{name}/json`), without pulling."""

from __future__ import annotations

import pytest

from insula.errors import CorruptData, NotFound
from insula.images.images import Images
from insula.images.registry.manifests import DOCKER_LIST, DOCKER_MANIFEST
from insula.model.image import Platform
from integration.images.fake_registry import FakeRegistry, error

pytestmark = pytest.mark.integration


async def test_a_single_image_says_its_platform_in_its_configuration(
    images: Images, source: FakeRegistry
) -> None:
    digest = source.put_image(layers=[{"f": b"x"}], architecture="arm64")
    offer = await images.look(f"{source.domain}/test/image")
    assert (DOCKER_MANIFEST, digest) == (offer.descriptor.media_type, offer.descriptor.digest)
    assert len(source.manifests[f"test/image@{digest}"][1]) == offer.descriptor.size
    assert (Platform(os="linux", architecture="arm64"),) == offer.platforms
    assert () == images.list()


async def test_an_index_lists_its_platforms(images: Images, source: FakeRegistry) -> None:
    made = {
        f"linux/{name}": source.put_image(tag=name, layers=[{name: b"x"}], architecture=name)
        for name in ("amd64", "arm64")
    }
    digest = source.put_index("test/image", "both", made)
    offer = await images.look(f"{source.domain}/test/image:both")
    assert (DOCKER_LIST, digest) == (offer.descriptor.media_type, offer.descriptor.digest)
    assert {"amd64", "arm64"} == {platform.architecture for platform in offer.platforms}
    assert offer == await images.look(f"{source.domain}/test/image@{digest}")


async def test_what_a_registry_says_is_checked(images: Images, source: FakeRegistry) -> None:
    with pytest.raises(NotFound):
        await images.look(f"{source.domain}/test/none")
    source.put_image(layers=[{"f": b"x"}])
    blob = next(name for name, data in source.blobs.items() if data.startswith(b'{"os"'))
    source.blobs[blob] += b" "
    with pytest.raises(CorruptData, match="does not match its digest"):
        await images.look(f"{source.domain}/test/image")


async def test_a_refusal_is_the_registry_s(images: Images, source: FakeRegistry) -> None:
    async def closed(request: object) -> object:
        return error(403, "DENIED", "not you")

    source.before = closed  # type: ignore[assignment]
    with pytest.raises(Exception, match="not you"):
        await images.look(f"{source.domain}/test/image")
