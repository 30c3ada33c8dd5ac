"""A repository on a registry: manifests and blobs, asked for with authentication.  Async.

Source: https://github.com/opencontainers/distribution-spec.  One `Registries` per daemon keeps
connections, tokens and what is known of each endpoint; a `Repository` is a cheap view of one name there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from insula.errors import Forbidden, InsulaError, NotFound, RegistryFailed, Unauthorized
from insula.images.records import MAX_DOCUMENT, read_json
from insula.images.registry.auth import Authenticator
from insula.images.registry.endpoints import Endpoint
from insula.images.registry.manifests import ACCEPT
from insula.images.registry.transport import STALL_S, Body, Interrupted, NotTls, Transport, show
from insula.model.credentials import Credentials
from insula.model.reference import Reference

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_MAX_ERROR = 64 << 10
_MAX_PAGES = 1000
_ATTEMPTS = 2  # with what is known (nothing, or a token that may be stale), then as the registry asks


class Registries:
    def __init__(self, *, stall_s: float = STALL_S) -> None:
        self.transport = Transport(stall_s=stall_s)
        self.auth = Authenticator(self.transport)
        self._bases: dict[str, str] = {}

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Everything below happens inside of this."""
        return self.transport.opened()

    def repository(
        self, endpoint: Endpoint, reference: Reference, credentials: Credentials | None
    ) -> Repository:
        return Repository(self, endpoint, reference, None if endpoint.is_mirror else credentials)

    async def base(self, endpoint: Endpoint) -> str:
        """The URL that speaks: for an endpoint with several, the first that answers at all."""
        if len(endpoint.urls) == 1:
            return endpoint.urls[0]
        if endpoint.key not in self._bases:
            self._bases[endpoint.key] = await self._probe(endpoint)
        return self._bases[endpoint.key]

    async def check(self, endpoint: Endpoint, credentials: Credentials) -> None:
        """Does the registry take these credentials?  Raises Unauthorized, Interrupted."""
        url = f"{await self.base(endpoint)}/v2/"
        for _ in range(_ATTEMPTS):
            header = await self.auth.header(endpoint, (), credentials)
            headers = {"Authorization": header} if header else {}
            async with self.transport.send("GET", url, headers=headers, verify=endpoint.verify) as answer:
                if answer.status == 200:
                    return
                asked = answer.headers.getall("WWW-Authenticate", [])
                if answer.status != 401:
                    raise RegistryFailed(f"{url}: status {answer.status}")
                if asked:
                    self.auth.learn(endpoint, asked)
        raise Unauthorized("unauthorized: incorrect username or password")

    def forget(self, endpoint: Endpoint) -> None:
        """After a failure: next time the registry may speak another way."""
        self._bases.pop(endpoint.key, None)

    async def _probe(self, endpoint: Endpoint) -> str:
        failures: list[InsulaError] = []
        for url in endpoint.urls:
            try:
                async with self.transport.send("GET", f"{url}/v2/", headers={}, verify=endpoint.verify):
                    return url
            except (Interrupted, NotTls) as error:
                failures.append(error)
        raise failures[-1]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as it came."""

    data: bytes
    media_type: str
    digest: str  # what the registry says it is; "" if it does not


class Repository:
    def __init__(
        self,
        registries: Registries,
        endpoint: Endpoint,
        reference: Reference,
        credentials: Credentials | None,
    ) -> None:
        self._registries = registries
        self._transport = registries.transport
        self.endpoint = endpoint
        self.reference = reference
        self._credentials = credentials

    async def manifest(self, identifier: str) -> Fetched:
        """By tag or digest; not checked here.  Raises NotFound, Unauthorized, Interrupted."""
        async with self._open("GET", f"manifests/{identifier}", headers={"Accept": ACCEPT}) as answer:
            if answer.status != 200:
                raise await self._error(answer, self._with(identifier))
            data = await self._transport.read(answer, MAX_DOCUMENT)
            headers = answer.headers
            return Fetched(data, headers.get("Content-Type", ""), headers.get("Docker-Content-Digest", ""))

    @asynccontextmanager
    async def blob(self, digest: str, offset: int = 0) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """(where it begins, its bytes).  It begins at 0 when the registry does not resume.  The bytes are
        not checked here."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._open("GET", f"blobs/{digest}", headers=headers) as answer:
            if answer.status == 206 and offset:
                start = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
                if start != str(offset):
                    raise RegistryFailed(f"{show(answer.url)}: asked for byte {offset} on, got {start!r}")
                yield offset, self._transport.pieces(answer)
            elif answer.status == 200:
                yield 0, self._transport.pieces(answer)
            elif answer.status == 416:
                raise Interrupted(f"{show(answer.url)}: the registry has no byte {offset}")
            else:
                raise await self._error(answer, self._with(digest), what="blob")

    async def tags(self) -> tuple[str, ...]:
        """Every tag of the repository, page by page.  Raises as `manifest` does."""
        found: list[str] = []
        path = "tags/list"
        for _ in range(_MAX_PAGES):
            async with self._open("GET", path) as answer:
                if answer.status != 200:
                    raise await self._error(answer, self.reference, what="tags")
                body = await self._transport.read(answer, MAX_DOCUMENT)
                names = read_json(body, "list of tags").get("tags") or []
                following = answer.links["next"].get("url") if "next" in answer.links else None
            found += [name for name in names if isinstance(name, str)]
            if following is None:
                return tuple(found)
            path = str(following)
        raise RegistryFailed(f"{self.endpoint.key}: the list of tags does not end")

    async def has_blob(self, digest: str) -> bool:
        async with self._open("HEAD", f"blobs/{digest}", actions="pull,push") as answer:
            if answer.status == 200:
                return True
            if answer.status == 404:
                return False
            raise await self._error(answer, self.reference, what="blob")

    async def start_upload(self, mount: str = "", source: str = "") -> str | None:
        """The URL to send a blob to; None if `mount` was mounted from the repository `source`."""
        query = f"?mount={mount}&from={source}" if mount else ""
        extra = (f"repository:{source}:pull",) if source else ()
        async with self._open(
            "POST",
            f"blobs/uploads/{query}",
            headers={"Content-Length": "0"},
            actions="pull,push",
            extra=extra,
        ) as answer:
            if answer.status == 201 and mount:
                return None
            if answer.status != 202:
                raise await self._error(answer, self.reference, what="upload")
            return self._location(answer)

    async def send_upload(self, location: str, digest: str, size: int, body: Body) -> None:
        """The bytes in one PATCH, then the digest in a PUT, as docker does: registries check it there."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        async with self._open("PATCH", location, headers=headers, body=body, actions="pull,push") as answer:
            if answer.status not in (202, 204):
                raise await self._error(answer, self.reference, what="upload")
            location = self._location(answer)
        joint = "&" if "?" in location else "?"
        async with self._open(
            "PUT", f"{location}{joint}digest={digest}", headers={"Content-Length": "0"}, actions="pull,push"
        ) as answer:
            if answer.status not in (201, 204):
                raise await self._error(answer, self.reference, what="upload")

    async def put_manifest(self, identifier: str, media_type: str, data: bytes) -> str:
        """Returns the digest that the registry gave it, "" if it does not say."""
        async with self._open(
            "PUT",
            f"manifests/{identifier}",
            headers={"Content-Type": media_type},
            data=data,
            actions="pull,push",
        ) as answer:
            if answer.status not in (200, 201, 202):
                raise await self._error(answer, self.reference, what="push")
            return str(answer.headers.get("Docker-Content-Digest", ""))

    def _with(self, identifier: str) -> Reference:
        if ":" in identifier:
            return replace(self.reference, tag="", digest=identifier)
        return replace(self.reference, tag=identifier, digest="")

    def _location(self, answer: ClientResponse) -> str:
        from yarl import URL

        location = answer.headers.get("Location")
        if not location:
            raise RegistryFailed(f"{show(answer.url)}: the registry does not say where to send the blob")
        return str(answer.url.join(URL(location, encoded=True)))

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        actions: str = "pull",
        extra: tuple[str, ...] = (),
        body: Body | None = None,
        data: bytes | None = None,
    ) -> AsyncIterator[ClientResponse]:
        """One request, repeated with authentication if the registry asks for it.  `path` may be a whole URL
        (where an upload goes); another origin than the registry's gets no credentials."""
        base = await self._registries.base(self.endpoint)
        url = path if "://" in path else f"{base}/v2/{self.reference.path}/{path}"
        at_home = url.startswith(f"{base}/")
        scopes = (f"repository:{self.reference.path}:{actions}", *extra)
        auth = self._registries.auth
        for attempt in range(_ATTEMPTS):
            sent = dict(headers or {})
            if at_home and (header := await auth.header(self.endpoint, scopes, self._credentials)):
                sent["Authorization"] = header
            async with self._transport.send(
                method, url, headers=sent, verify=self.endpoint.verify, body=body, data=data
            ) as answer:
                asked = answer.headers.getall("WWW-Authenticate", [])
                if answer.status == 401 and at_home and asked and attempt == 0:
                    auth.learn(self.endpoint, asked)
                    continue
                yield answer
                return

    async def _error(
        self, answer: ClientResponse, reference: Reference, *, what: str = "manifest"
    ) -> InsulaError:
        """What a registry answered, as the error that docker would give."""
        code, message = _read_error(await self._transport.read(answer, _MAX_ERROR), answer.status)
        said = f"{code.lower().replace('_', ' ')}: {message}" if code else message
        status = answer.status
        if what in ("upload", "push"):
            if status == 401:
                return Unauthorized(said or "unauthorized: authentication required", hint="docker login")
            if status == 403 or code == "DENIED":
                return Forbidden(said or "denied: requested access to the resource is denied")
        anonymous = self._credentials is None
        challenge = self._registries.auth.known(self.endpoint)
        by_token = challenge is not None and challenge.scheme == "bearer"
        if code == "DENIED" or status == 403 or (status == 401 and anonymous and by_token):
            return NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {said}"
            )
        if status == 401:
            return Unauthorized(said or "unauthorized: authentication required", hint="docker login")
        if status == 404 and what in ("manifest", "blob"):
            if code == "NAME_UNKNOWN":
                return NotFound(f"repository {reference.familiar_name} not found: {said}")
            if what == "manifest":
                return NotFound(f"manifest for {reference} not found: {said or 'manifest unknown'}")
        failure = f"{answer.method} {show(answer.url)}: status {status}: {said or answer.reason}"
        return Interrupted(failure) if status >= 500 or status in (408, 429) else RegistryFailed(failure)


def _read_error(body: bytes, status: int) -> tuple[str, str]:
    """Code and message of the first of the specification's errors; plain text where there are none."""
    try:
        document: Any = json.loads(body)
        first = document["errors"][0]
        code, message = str(first.get("code") or ""), str(first.get("message") or "")
        return code[:100], message[:1000]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        if status == 404:
            return "MANIFEST_UNKNOWN", "manifest unknown"
        if status == 401:
            return "UNAUTHORIZED", "authentication required"
        return "", body[:200].decode(errors="replace").strip()
