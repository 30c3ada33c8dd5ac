"""A registry in this process that can lie, break off, stall and forget, for the tests of pull.  Async."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import ssl
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from insula.images.registry.manifests import DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST

LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@dataclass
class FakeRegistry:
    """`before` is asked first for every request; None lets the honest answer through."""

    port: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # by "path:tag" and "path@digest"
    requests: list[web.Request] = field(default_factory=list)
    before: Answer | None = None

    @property
    def domain(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put_blob(self, data: bytes) -> str:
        self.blobs[digest(data)] = data
        return digest(data)

    def put_manifest(self, path: str, tag: str, media_type: str, document: object) -> str:
        data = json.dumps(document).encode()
        for name in (f"{path}:{tag}", f"{path}@{digest(data)}"):
            self.manifests[name] = (media_type, data)
        return digest(data)

    def put_image(
        self,
        path: str = "test/image",
        tag: str = "latest",
        *,
        layers: list[dict[str, bytes]],
        architecture: str = "amd64",
        diff_ids: list[str] | None = None,
        sizes: list[int] | None = None,
        config: dict[str, object] | None = None,
    ) -> str:
        """Returns the manifest's digest.  `diff_ids` and `sizes` are for lies."""
        tars = [make_tar(files) for files in layers]
        packed = [gzip.compress(tar, mtime=0) for tar in tars]
        document = {
            "os": "linux",
            "architecture": architecture,
            "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["/bin/sh"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(tar) for tar in tars]},
            "history": [{"created_by": "test"} for _ in tars],
        }
        raw = json.dumps(document).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "size": len(raw), "digest": self.put_blob(raw)},
            "layers": [
                {"mediaType": LAYER, "size": size, "digest": self.put_blob(data)}
                for data, size in zip(packed, sizes or [len(data) for data in packed], strict=True)
            ],
        }
        return self.put_manifest(path, tag, DOCKER_MANIFEST, manifest)

    def put_index(self, path: str, tag: str, entries: dict[str, str]) -> str:
        """`entries`: `os/architecture` to the digest of a manifest that is there."""
        manifests = []
        for platform, of in entries.items():
            os_name, _, architecture = platform.partition("/")
            media_type, data = self.manifests[f"{path}@{of}"]
            manifests.append(
                {
                    "mediaType": media_type,
                    "size": len(data),
                    "digest": of,
                    "platform": {"os": os_name, "architecture": architecture},
                }
            )
        document = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests}
        return self.put_manifest(path, tag, DOCKER_LIST, document)

    def layer_digests(self, manifest: str, path: str = "test/image") -> list[str]:
        return [layer["digest"] for layer in json.loads(self.manifests[f"{path}@{manifest}"][1])["layers"]]

    def count(self, word: str) -> int:
        return sum(word in request.path for request in self.requests)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.before is not None and (answer := await self.before(request)) is not None:
            return answer
        parts = request.path.removeprefix("/v2/").rstrip("/").rsplit("/", 2)
        if len(parts) == 3 and parts[1] == "manifests":
            path, _, name = parts
            found = self.manifests.get(f"{path}@{name}" if ":" in name else f"{path}:{name}")
            if found is None:
                return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return web.Response(
                body=found[1],
                headers={"Content-Type": found[0], "Docker-Content-Digest": digest(found[1])},
            )
        if len(parts) == 3 and parts[1] == "blobs":
            data = self.blobs.get(parts[2])
            return error(404, "BLOB_UNKNOWN", "blob unknown") if data is None else ranged(request, data)
        if len(parts) == 3 and parts[1:] == ["tags", "list"]:
            tags = [name.partition(":")[2] for name in self.manifests if name.startswith(f"{parts[0]}:")]
            if not tags:
                return error(404, "NAME_UNKNOWN", "repository name not known to registry")
            return web.json_response({"name": parts[0], "tags": tags})
        return web.json_response({})


def error(status: int, code: str, message: str, **headers: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=headers)


def ranged(request: web.Request, data: bytes) -> web.Response:
    start = request.http_range.start or 0
    if start == 0:
        return web.Response(body=data)
    return web.Response(
        status=206,
        body=data[start:],
        headers={"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"},
    )


async def break_off(request: web.Request, data: bytes, length: int) -> web.StreamResponse:
    """Promise all of `data`, send `length` bytes of it, cut the connection."""
    answer = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await answer.prepare(request)
    await answer.write(data[:length])
    assert request.transport is not None
    request.transport.close()
    return answer


async def stall(request: web.Request, data: bytes, length: int) -> web.StreamResponse:
    """Send `length` bytes, then nothing until the client leaves."""
    answer = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await answer.prepare(request)
    await answer.write(data[:length])
    gone = asyncio.Event()
    await gone.wait()
    return answer


@asynccontextmanager
async def start_fake_registry(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
    registry = FakeRegistry()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry._handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    registry.port = runner.addresses[0][1]
    try:
        yield registry
    finally:
        await runner.cleanup()
