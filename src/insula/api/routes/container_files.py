"""Files of containers: archive (`docker cp`), changes (`docker diff`), export, commit."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

from aiohttp import web

from insula.api.bodies import archive_of_client, stream_bytes
from insula.api.call import Call, answer, empty
from insula.api.inflate import plain_tar
from insula.api.routing import Route
from insula.api.times import format_time
from insula.api.translate_image import parse_image_config, repository_tag
from insula.api.wire.codec import decode
from insula.api.wire.container import FilesystemChange, IDResponse
from insula.api.wire.container_config import ContainerConfig
from insula.engine.types import CommitSpec
from insula.errors import InvalidRequest
from insula.model.files import PathStat


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise InvalidRequest("bad parameter: path cannot be empty")
    if "\0" in path:
        raise InvalidRequest("bad parameter: path contains a zero byte")
    return path


def _stat_header(stat: PathStat) -> dict[str, str]:
    document = {
        "name": stat.name,
        "size": stat.size,
        "mode": stat.mode,
        "mtime": format_time(stat.mtime_ns),
        "linkTarget": stat.link_target,
    }
    return {"X-Docker-Container-Path-Stat": base64.b64encode(json.dumps(document).encode()).decode()}


async def stat(call: Call) -> web.StreamResponse:
    found = await call.engine.stat_path(call.names["id"], _path(call))
    return web.Response(headers=_stat_header(found))


async def get(call: Call) -> web.StreamResponse:
    archive = await call.engine.get_archive(call.names["id"], _path(call))
    return await stream_bytes(call, archive.pieces, "application/x-tar", _stat_header(archive.stat))


async def put(call: Call) -> web.StreamResponse:
    with archive_of_client():
        await call.engine.put_archive(
            call.names["id"],
            _path(call),
            plain_tar(call.pieces()),
            no_overwrite_dir=call.flag("noOverwriteDirNonDir"),
            copy_owner=call.flag("copyUIDGID"),
        )
    return empty(200)


async def changes(call: Call) -> web.StreamResponse:
    found = await call.engine.changes(call.names["id"])
    return answer([FilesystemChange(Path=c.path, Kind=int(c.kind)) for c in found] or None)


async def export(call: Call) -> web.StreamResponse:
    pieces: AsyncIterator[bytes] = await call.engine.export(call.names["id"])
    return await stream_bytes(call, pieces, "application/octet-stream")


async def commit(call: Call) -> web.StreamResponse:
    container = call.text("container")
    raw = b"" if call.is_form else await call.json_body()
    given = decode(raw, ContainerConfig) if raw.strip() not in (b"", b"null", b"{}") else None
    if not container:
        raise InvalidRequest("commit: the request names no container")
    changes_ = tuple(line for text in call.texts("changes") for line in text.splitlines() if line.strip())
    image = await call.engine.commit(
        container,
        CommitSpec(
            ref=repository_tag(call.text("repo"), call.text("tag")),
            author=call.text("author"),
            comment=call.text("comment"),
            pause=call.flag("pause", True),
            changes=changes_,
            config=parse_image_config(given) if given is not None else None,
        ),
    )
    return answer(IDResponse(Id=image.id), 201)


ROUTES = (
    Route("HEAD", "/containers/{id}/archive", stat),
    Route("GET", "/containers/{id}/archive", get),
    Route("PUT", "/containers/{id}/archive", put, archive=True),
    Route("GET", "/containers/{id}/changes", changes),
    Route("GET", "/containers/{id}/export", export),
    Route("POST", "/commit", commit),
)
