"""A registry that lies, breaks off, stalls or redirects: refused in words, and nothing half stored."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from aiohttp import web

from insula.errors import CorruptData, InvalidRequest, NotFound, RegistryFailed
from insula.events import EventBus
from insula.images.images import Images
from insula.images.registry.manifests import host_platform
from insula.model.credentials import Credentials
from insula.store.store import Store
from integration.images.fake_registry import (
    FakeRegistry,
    break_off,
    digest,
    error,
    ranged,
    stall,
    start_fake_registry,
)

pytestmark = pytest.mark.integration

_BIG = os.urandom(5 << 20)


def stored(images: Images) -> list[str]:
    """Everything that is a file or directory of content, wherever it is."""
    found = []
    for directory, names, files in os.walk(images.content.root):
        inside = directory.removeprefix(images.content.root)
        if inside.count("/") == 1:
            found += [f"{inside}/{name}" for name in (*names, *files) if name not in ("sha256", "empty")]
        elif inside == "/blobs/sha256":
            found += files
    return found


async def refused(images: Images, source: FakeRegistry, kind: type[Exception], words: str) -> None:
    before = stored(images)
    with pytest.raises(kind, match=words):
        await images.pull(f"{source.domain}/test/image")
    assert stored(images) == before
    assert images.list() == ()


async def test_layer_with_another_content_than_its_digest(images: Images, source: FakeRegistry) -> None:
    # one layer: of others that are under way then, what has come stays, for the next attempt
    manifest = source.put_image(layers=[{"b": b"2"}])
    (layer,) = source.layer_digests(manifest)
    honest = source.blobs[layer]
    source.blobs[layer] = bytes([*honest[:-1], honest[-1] ^ 1])
    await refused(images, source, CorruptData, "what came has digest")


async def test_layer_that_is_not_what_the_configuration_says(images: Images, source: FakeRegistry) -> None:
    source.put_image(layers=[{"a": b"1"}], diff_ids=[digest(b"something else")])
    await refused(images, source, CorruptData, "unpacked it has digest")


async def test_layer_of_another_size_than_the_manifest_says(images: Images, source: FakeRegistry) -> None:
    source.put_image(layers=[{"a": b"1"}], sizes=[17])
    await refused(images, source, CorruptData, "more than the 17 bytes")


async def test_body_that_does_not_end(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"a": b"1"}])
    (layer,) = source.layer_digests(manifest)

    async def endless(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith(layer):
            return None
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(bytes(1 << 16))

    source.before = endless
    await refused(images, source, CorruptData, "more than the")


async def test_body_that_ends_early_and_says_so(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"a": b"1"}])
    (layer,) = source.layer_digests(manifest)
    source.blobs[layer] = source.blobs[layer][:-5]
    await refused(images, source, CorruptData, "bytes came, it should have")


async def test_manifest_that_is_not_the_digest_asked_for(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"a": b"1"}])
    other = source.put_image(tag="other", layers=[{"a": b"2"}])
    source.manifests[f"test/image@{manifest}"] = source.manifests[f"test/image@{other}"]
    with pytest.raises(CorruptData, match="does not match its digest"):
        await images.pull(f"{source.domain}/test/image@{manifest}")
    assert stored(images) == []


async def test_manifest_without_end(images: Images, source: FakeRegistry) -> None:
    async def huge(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=b" " * (5 << 20)) if "/manifests/" in request.path else None

    source.before = huge
    await refused(images, source, CorruptData, "larger than 4194304 bytes")


async def test_configuration_of_gigabytes_is_not_fetched(images: Images, source: FakeRegistry) -> None:
    config = {"mediaType": "", "size": 1 << 40, "digest": digest(b"x")}
    document = {"schemaVersion": 2, "config": config, "layers": []}
    source.put_manifest("test/image", "latest", "application/vnd.oci.image.manifest.v1+json", document)
    await refused(images, source, CorruptData, "image configuration: .* more than 4194304")
    assert source.count("/blobs/") == 0


async def test_broken_download_goes_on_where_it_broke(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    (layer,) = source.layer_digests(manifest)
    ranges: list[str] = []

    async def breaks_twice(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith(layer):
            return None
        ranges.append(request.headers.get("Range", ""))
        data, start = source.blobs[layer], request.http_range.start or 0
        if len(ranges) == 1:
            return await break_off(request, data, 2 << 20)
        assert start > 0
        return ranged(request, data)

    source.before = breaks_twice
    image = await images.pull(f"{source.domain}/test/image")
    assert ranges[0] == ""
    assert ranges[1].startswith("bytes=")
    assert Path(images.layers.path(image.diff_ids[0]), "big").read_bytes() == _BIG


async def test_broken_download_starts_over_where_ranges_are_not_served(
    images: Images, source: FakeRegistry
) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    (layer,) = source.layer_digests(manifest)
    asked = 0

    async def no_ranges(request: web.Request) -> web.StreamResponse | None:
        nonlocal asked
        if not request.path.endswith(layer):
            return None
        asked += 1
        if asked == 1:
            return await break_off(request, source.blobs[layer], 2 << 20)
        return web.Response(body=source.blobs[layer])

    source.before = no_ranges
    image = await images.pull(f"{source.domain}/test/image")
    assert asked == 2
    assert images.layers.has(image.diff_ids[0])


async def test_resumed_download_with_a_bad_beginning_starts_over(
    images: Images, source: FakeRegistry
) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    (layer,) = source.layer_digests(manifest)
    Path(images.content.partial_path(layer)).write_bytes(b"\0" * (1 << 20))
    image = await images.pull(f"{source.domain}/test/image")
    assert images.layers.has(image.diff_ids[0])


async def test_pull_that_broke_for_good_is_taken_up_by_the_next(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    (layer,) = source.layer_digests(manifest)

    async def dies(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith(layer):
            return None
        if "Range" in request.headers:
            return error(503, "UNAVAILABLE", "down for lunch")
        return await break_off(request, source.blobs[layer], 2 << 20)

    source.before = dies
    with pytest.raises(RegistryFailed, match="down for lunch"):
        await images.pull(f"{source.domain}/test/image")
    assert images.list() == ()
    assert images.content.partial_size(layer) > 0
    source.before = None
    source.requests.clear()
    await images.pull(f"{source.domain}/test/image")
    assert [r.headers["Range"] for r in source.requests if r.path.endswith(layer)]


async def test_prune_gives_up_on_broken_downloads(images: Images) -> None:
    Path(images.content.partial_path(digest(b"x"))).write_bytes(b"half")
    report = await images.prune(in_use=lambda _: None)
    assert report.reclaimed_bytes == 4
    assert stored(images) == []


async def test_server_that_falls_silent(images: Images, source: FakeRegistry, tmp_path: Path) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    (layer,) = source.layer_digests(manifest)
    store = Store(str(tmp_path / "other.db"))
    room = Images(str(tmp_path / "other"), store, EventBus(), retry_s=0.01, stall_s=0.1)

    async def silent(request: web.Request) -> web.StreamResponse | None:
        return await stall(request, _BIG, 0) if request.path.endswith(layer) else None

    source.before = silent
    with pytest.raises(RegistryFailed, match="stopped answering"):
        await room.pull(f"{source.domain}/test/image")
    store.close()


async def test_cancelled_pull_leaves_no_request_behind(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    (layer,) = source.layer_digests(manifest)
    reached = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith(layer):
            return None
        reached.set()
        return await stall(request, _BIG, 1 << 20)

    source.before = waits
    pull = asyncio.create_task(images.pull(f"{source.domain}/test/image"))
    await reached.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert len(asyncio.all_tasks()) - len([t for t in asyncio.all_tasks() if "aiohttp" in repr(t)]) == 1
    source.before = None
    assert (await images.pull(f"{source.domain}/test/image")).size_bytes >= len(_BIG)


async def test_platform_is_picked_from_a_list(images: Images, source: FakeRegistry) -> None:
    here = host_platform().architecture
    mine = source.put_image(tag="mine", layers=[{"a": b"mine"}], architecture=here)
    other = source.put_image(tag="other", layers=[{"a": b"other"}], architecture="s390x")
    top = source.put_index("test/image", "latest", {"linux/s390x": other, f"linux/{here}": mine})
    image = await images.pull(f"{source.domain}/test/image")
    assert image.platform.architecture == here
    assert image.digests == (f"{source.domain}/test/image@{top}",)
    foreign = await images.pull(f"{source.domain}/test/image", platform="linux/s390x")
    assert foreign.platform.architecture == "s390x"
    with pytest.raises(NotFound, match=f"no matching manifest for linux/386.*linux/{here}, linux/s390x"):
        await images.pull(f"{source.domain}/test/image", platform="linux/386")
    with pytest.raises(NotFound, match=r"does not match the specified platform: wanted linux/386, actual"):
        await images.pull(f"{source.domain}/test/image:mine", platform="linux/386")


async def test_bearer_token_per_scope_is_kept(images: Images, source: FakeRegistry) -> None:
    source.put_image(layers=[{"a": b"1"}, {"b": b"2"}])
    tokens: list[str] = []

    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            tokens.append(f"{request.query['scope']} {request.headers.get('Authorization', '')}")
            return web.json_response({"token": "good", "expires_in": 300})
        if request.path == "/v2/" or request.headers.get("Authorization") == "Bearer good":
            return None
        challenge = f'Bearer realm="http://{source.domain}/token",service="here",scope="x"'
        return error(401, "UNAUTHORIZED", "authentication required", **{"WWW-Authenticate": challenge})

    source.before = guarded
    await images.pull(f"{source.domain}/test/image")
    assert tokens == ["repository:test/image:pull "]
    await images.pull(f"{source.domain}/test/image", auth=Credentials(username="ali", password="x"))
    assert tokens[1:] == ["repository:test/image:pull Basic YWxpOng="]


async def test_refused_token_says_docker_login(images: Images, source: FakeRegistry) -> None:
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": "useless"})
        challenge = f'Bearer realm="http://{source.domain}/token",service="here"'
        if request.path == "/v2/":
            return None
        return error(
            401, "DENIED", "requested access to the resource is denied", **{"WWW-Authenticate": challenge}
        )

    source.before = guarded
    with pytest.raises(
        NotFound, match=r"pull access denied for .*, repository does not exist or may require 'docker login'"
    ):
        await images.pull(f"{source.domain}/test/image")


async def test_wrong_password_at_the_token_service(images: Images, source: FakeRegistry) -> None:
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        challenge = f'Bearer realm="http://{source.domain}/token",service="here"'
        return (
            None
            if request.path == "/v2/"
            else error(401, "UNAUTHORIZED", "no", **{"WWW-Authenticate": challenge})
        )

    source.before = guarded
    with pytest.raises(RegistryFailed, match="incorrect username or password"):
        await images.pull(f"{source.domain}/test/image", auth=Credentials(username="a", password="b"))


async def test_redirect_elsewhere_carries_no_credentials(images: Images, source: FakeRegistry) -> None:
    source.put_image(layers=[{"a": b"1"}])
    async with start_fake_registry() as storage:
        storage.blobs = source.blobs

        async def redirects(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" not in request.headers and request.path != "/v2/":
                return error(401, "UNAUTHORIZED", "no", **{"WWW-Authenticate": 'Basic realm="x"'})
            if "/blobs/" in request.path:
                target = f"http://localhost:{storage.port}{request.path}?signature=a%2Fb"
                return web.Response(status=307, headers={"Location": target})
            return None

        source.before = redirects
        user = Credentials(username="ali", password="sesame")
        await images.pull(f"{source.domain}/test/image", auth=user)
        assert storage.requests
        assert all("Authorization" not in request.headers for request in storage.requests)
        assert all("signature=a%2Fb" in request.raw_path for request in storage.requests)


async def test_redirect_in_a_circle(images: Images, source: FakeRegistry) -> None:
    async def circle(request: web.Request) -> web.StreamResponse | None:
        return (
            web.Response(status=302, headers={"Location": request.path}) if "manif" in request.path else None
        )

    source.before = circle
    await refused(images, source, RegistryFailed, "more than 10 redirects")


async def test_mirror_is_asked_first_and_survived(tmp_path: Path, source: FakeRegistry) -> None:
    source.put_image("library/busybox", layers=[{"a": b"1"}])
    store = Store(str(tmp_path / "m.db"))
    async with start_fake_registry() as broken:
        mirrors = (f"http://{broken.domain}", f"http://{source.domain}")
        room = Images(str(tmp_path / "m"), store, EventBus(), mirrors=mirrors, retry_s=0.01)
        image = await room.pull("busybox", auth=Credentials(username="hub", password="secret"))
        assert broken.count("/manifests/latest") == 1
        assert [image] == list(await room.pull_all("busybox"))
        assert "sha256:" in (await room.look("busybox")).descriptor.digest
        assert broken.count("/tags/list") == 1
    assert image.tags == ("busybox:latest",)
    assert all("Authorization" not in request.headers for request in source.requests)
    store.close()


async def test_two_pulls_fetch_a_layer_once(images: Images, source: FakeRegistry) -> None:
    manifest = source.put_image(layers=[{"big": _BIG}])
    source.put_image(tag="more", layers=[{"big": _BIG}, {"b": b"2"}])
    (layer,) = source.layer_digests(manifest)
    both = await asyncio.gather(
        images.pull(f"{source.domain}/test/image"), images.pull(f"{source.domain}/test/image:more")
    )
    assert source.count(layer) == 1
    assert len({image.id for image in both}) == 2


async def test_failing_pull_does_not_take_layers_of_another(images: Images, source: FakeRegistry) -> None:
    good = await images.pull(
        f"{source.domain}/{source.put_image('ok/image', layers=[{'a': b'1'}]) and 'ok/image'}"
    )
    source.put_image(layers=[{"a": b"1"}, {"b": b"2"}], diff_ids=[good.diff_ids[0], digest(b"lie")])
    with pytest.raises(CorruptData):
        await images.pull(f"{source.domain}/test/image")
    assert images.layers.diff_ids() == good.diff_ids
    assert images.list() == (good,)


async def test_layer_borrowed_by_a_lie_is_replaced_by_the_known_one(
    images: Images, source: FakeRegistry
) -> None:
    """A manifest that pairs somebody else's layer with a blob of its own never makes that pair known."""
    good = await images.pull(
        f"{source.domain}/{source.put_image('ok/image', layers=[{'a': b'1'}]) and 'ok/image'}"
    )
    source.put_image(layers=[{"evil": b"666"}], diff_ids=list(good.diff_ids), config={"User": "1"})
    lie = await images.pull(f"{source.domain}/test/image")
    assert lie.layers == good.layers
    assert lie.manifest == ""


async def test_not_an_image(images: Images, source: FakeRegistry) -> None:
    chart = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "size": 2, "digest": digest(b"{}")}
    document = {"schemaVersion": 2, "config": chart, "layers": []}
    source.put_manifest("test/image", "latest", "application/vnd.oci.image.manifest.v1+json", document)
    await refused(images, source, InvalidRequest, "helm.* this is not an image")


async def test_nobody_listens(images: Images) -> None:
    with pytest.raises(RegistryFailed, match=r"127\.0\.0\.1:1/v2/: Connection refused"):
        await images.pull("127.0.0.1:1/a/b")


async def test_start_removes_what_a_crash_left(images: Images, source: FakeRegistry, tmp_path: Path) -> None:
    source.put_image(layers=[{"a": b"1"}])
    image = await images.pull(f"{source.domain}/test/image")
    images.content.put(b"orphan")
    Path(images.content.ingest_path()).write_bytes(b"half")
    (Path(images.layers.path(digest(b"orphan layer")))).mkdir()
    whole = stored(images)
    await images.start()
    assert len(stored(images)) < len(whole)
    assert images.find(f"{source.domain}/test/image") == image
    assert images.layers.diff_ids() == image.diff_ids
