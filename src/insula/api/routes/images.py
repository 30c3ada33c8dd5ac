"""Images: list, inspect, history, tag, remove, prune, and pull and push."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from aiohttp import web

from insula.api.auth import credentials_of, parse_auth_header
from insula.api.bodies import archive_of_client, stream_bytes
from insula.api.call import Call, answer, empty
from insula.api.progress import Teller, stream_progress
from insula.api.routing import Route
from insula.api.translate_image import (
    LIST_FILTERS,
    image_matches,
    names_that_match,
    parents_of,
    render_history,
    render_inspect,
    render_offer,
    render_summary,
    repository_tag,
)
from insula.api.wire.codec import decode
from insula.api.wire.image import ImageDeleteResponseItem, ImagePruneResponse, OCIPlatform
from insula.api.wire.registry import AuthConfig
from insula.errors import InvalidRequest, NotFound, NotImplementedYet
from insula.images.changes import apply_changes
from insula.model.image import ImageConfig


async def list_(call: Call) -> web.StreamResponse:
    images, now_ns = call.engine.images, time.time_ns()
    filters = call.filters()
    if call.version < (1, 41) and (name := call.text("filter")):
        filters = filters.adding("reference", name)
    filters.accept(*LIST_FILTERS)
    found = [i for i in images.list() if image_matches(i, filters, images.find, now_ns)]
    if not call.flag("all"):  # what was built upon and has no name of its own
        parents = {i.parent for i in images.list() if i.parent}
        found = [i for i in found if i.tags or i.digests or i.id not in parents]
    shared: dict[str, int] = {}
    if call.version >= (1, 42) and call.flag("shared-size"):
        shared = await call.engine.shared_sizes()
    call.flag("manifests")  # of an image that has several platforms only the one that was pulled is here
    return answer(
        [
            render_summary(names_that_match(i, filters), call.version, shared_size=shared.get(i.id, -1))
            for i in found
        ]
    )


async def inspect(call: Call) -> web.StreamResponse:
    return answer(render_inspect(call.engine.images.find(call.names["name"]), call.version))


async def history(call: Call) -> web.StreamResponse:
    images = call.engine.images
    image = images.find(call.names["name"])
    known = {one.id: one for one in images.list()}
    return answer(render_history(image, images.layers.size, parents_of(image, known.get)))


async def create(call: Call) -> web.StreamResponse:
    """`docker pull` (fromImage) and `docker import` (fromSrc)."""
    if call.text("fromSrc") != "-":
        await call.read_form()
    name, source, tag = call.text("fromImage"), call.text("fromSrc"), call.text("tag")
    platform = call.text("platform") or None
    images = call.engine.images
    if name:
        auth = parse_auth_header(call.http.headers.get("X-Registry-Auth", ""))
        has_tag = "@" in name or ":" in name.rpartition("/")[2]

        async def pull(tell: Teller) -> None:
            if not tag and not has_tag:
                await images.pull_all(name, platform=platform, auth=auth, progress=tell)
                return
            mark = "@" if tag.startswith("sha256:") else ":"
            ref = f"{name}{mark}{tag}" if tag else name
            await images.pull(ref, platform=platform, auth=auth, progress=tell)

        return await stream_progress(call, pull, held_lines=1)
    if not source:
        raise InvalidRequest("neither fromImage nor fromSrc is given: nothing to pull or import")
    ref = repository_tag(call.text("repo"), tag)
    changes = tuple(line for text in call.texts("changes") for line in text.splitlines() if line.strip())

    apply_changes(ImageConfig(), changes)  # what is wrong in them is said before anything is read

    async def import_(tell: Teller) -> None:
        message = call.text("message") or f"Imported from {source}"
        async with _to_import(call, source) as pieces:
            with archive_of_client():
                # its progress is not told: clients take the first line for the id, and the status for the end
                image = await images.import_(
                    pieces, ref=ref, message=message, changes=changes, platform=platform
                )
        tell(image.id)

    return await stream_progress(call, import_)


@contextlib.asynccontextmanager
async def _to_import(call: Call, source: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """What the request has in its body, or what is at an address, as Docker reads `fromSrc`."""
    if source == "-":
        yield call.pieces()
        return
    from insula.build.remote import is_address, pieces_of  # with the first that asks

    url = source if "://" in source else f"http://{source}"
    if not is_address(url):
        raise InvalidRequest(f"fromSrc: {source[:256]!r} is neither - nor an address over HTTP")
    async with pieces_of(url) as pieces:
        yield pieces


async def push(call: Call) -> web.StreamResponse:
    name, tag = call.names["name"], call.text("tag")
    auth = parse_auth_header(call.http.headers.get("X-Registry-Auth", ""))
    if (wanted := call.text("platform")) and call.version >= (1, 46):  # older clients sent one without effect
        platform = decode(wanted.encode(), OCIPlatform)
        have = call.engine.images.find(f"{name}:{tag}" if tag else name).platform
        if (platform.os, platform.architecture) != (have.os, have.architecture):
            raise NotFound(  # moby's
                f"image with reference {name} was found but does not provide the specified platform "
                f"({platform.os}/{platform.architecture})"
            )

    async def work(tell: Teller) -> None:
        ref = f"{name}:{tag}" if tag else name
        digest = await call.engine.images.push(ref, auth=auth, progress=tell, all_tags=not tag)
        if tag:
            tell.line({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": 0}})

    return await stream_progress(call, work)


async def tag(call: Call) -> web.StreamResponse:
    new = repository_tag(call.text("repo"), call.text("tag"))
    if new is None:
        raise InvalidRequest("repository name must have at least one component")
    await call.engine.images.tag(call.names["name"], new)
    return empty(201)


async def remove(call: Call) -> web.StreamResponse:
    name = call.names.get("name", "")
    if not name.strip():
        raise InvalidRequest("image name cannot be blank")
    removed = await call.engine.remove_image(
        name, force=call.flag("force"), prune_children=not call.flag("noprune")
    )
    return answer([ImageDeleteResponseItem(Untagged=r.untagged, Deleted=r.deleted) for r in removed])


async def prune(call: Call) -> web.StreamResponse:
    filters = call.filters()
    dangling = filters.flag("dangling")
    report = await call.engine.prune_images(
        filters.for_prune(time.time_ns(), "dangling"), dangling_only=dangling is not False
    )
    items = [
        ImageDeleteResponseItem(Deleted=one)
        if one.startswith("sha256:")
        else ImageDeleteResponseItem(Untagged=one)
        for one in report.deleted
    ]
    return answer(ImagePruneResponse(ImagesDeleted=items or None, SpaceReclaimed=report.reclaimed_bytes))


async def save(call: Call) -> web.StreamResponse:
    names = [call.names["name"]] if "name" in call.names else list(call.texts("names"))
    if not names:
        raise InvalidRequest("no image names given")
    return await stream_bytes(call, call.engine.images.save(names), "application/x-tar")


async def load(call: Call) -> web.StreamResponse:
    """To the end, as Docker does, if the archive has come whole: docker-py's `load_image` returns with the
    first bytes of the answer, and programs leave then (docker-squash).  So nothing is said before that."""
    quiet = call.flag("quiet")

    async def work(tell: Teller) -> None:
        def told(status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
            if not quiet and call.http.content.at_eof():
                tell(status, id=id, current=current, total=total)

        with archive_of_client():
            loaded = await call.engine.images.load(call.pieces(), told)
        for image in loaded:
            named = f"Loaded image: {image.tags[0]}" if image.tags else f"Loaded image ID: {image.id}"
            for text in [f"Loaded image: {t}" for t in image.tags] or [named]:
                tell.line({"stream": text + "\n"})

    # moby answers 200 whatever comes, and clients look for the error in the stream
    return await stream_progress(call, work, at_once=True, to_the_end=True)


async def search(call: Call) -> web.StreamResponse:
    """Checked as dockerd does; then it is a registry that has no search, as most have none."""
    filters, limit = call.filters().accept("is-automated", "is-official", "stars"), call.number("limit")
    for name in ("is-automated", "is-official"):
        filters.flag(name)
    filters.number("stars")
    if not call.text("term"):
        raise InvalidRequest("search: the request has no term")
    if limit is not None and not 0 <= limit <= 100:
        raise InvalidRequest(f"limit {limit} is outside the range of [1, 100]")
    raise NotImplementedYet("searching a registry is not supported", hint="search on the registry's own site")


async def distribution(call: Call) -> web.StreamResponse:
    auth = parse_auth_header(call.http.headers.get("X-Registry-Auth", ""))
    return answer(render_offer(await call.engine.images.look(call.names["name"], auth)))


async def auth(call: Call) -> web.StreamResponse:
    given = await call.json(AuthConfig)
    try:
        credentials = credentials_of(given)
    except ValueError as error:
        raise InvalidRequest(f"invalid credentials: {error}") from None
    if credentials is None:
        raise InvalidRequest("no credentials given: username and password, or a token")
    await call.engine.images.login(credentials)
    return answer({"Status": "Login Succeeded", "IdentityToken": ""})


ROUTES = (
    Route("GET", "/images/json", list_),
    Route("GET", "/images/search", search),
    Route("GET", "/images/get", save),
    Route("GET", "/images/{name*}/get", save),
    Route("GET", "/images/{name*}/json", inspect),
    Route("GET", "/images/{name*}/history", history),
    Route("POST", "/images/load", load, archive=True, completes=True),
    Route("POST", "/images/create", create, archive=True),
    Route("POST", "/images/prune", prune, completes=True),
    Route("POST", "/images/{name*}/push", push),
    Route("POST", "/images/{name*}/tag", tag, completes=True),
    Route("DELETE", "/images/{name*}", remove, completes=True),
    Route("DELETE", "/images/", remove),
    Route("GET", "/distribution/{name*}/json", distribution),
    Route("POST", "/auth", auth),
)
