"""HTTP towards registries: one pool of connections, time limits, redirects without leaks, proxies.  Async.

Not for authentication (`auth`) or for what the answers mean (`client`).  Failures of the network become
`Interrupted`, which is worth another try.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from yarl import URL

from insula.errors import CorruptData, RegistryFailed
from insula.images.registry.certificates import DIRECTORY, find_directory, make_context

Body = Callable[[], AsyncIterator[bytes]]  # called once per attempt

_REDIRECTS = 10
_REDIRECT_STATUS = frozenset((301, 302, 303, 307, 308))
_CONNECT_S = 20.0
STALL_S = 60.0  # no byte either way for so long: the server is gone
_AGENT = "insula"


class Interrupted(RegistryFailed):
    """The network or the server failed in a way that another try may mend."""


class Unreachable(Interrupted):
    """No such host, or nobody listens there: the next try would say the same."""


class NotTls(RegistryFailed):
    """The server does not speak TLS, or its certificate does not verify."""


def _find_proxy(url: URL) -> str | None:
    """From HTTPS_PROXY, HTTP_PROXY and NO_PROXY.  (aiohttp's trust_env would also read ~/.netrc.)"""
    host = url.host or ""
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(url.scheme)
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    return None if proxy is None or bypass(host, proxies) else proxy


def _same_origin(one: URL, other: URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def show(url: URL | str) -> str:
    """Without the query, which may hold a signature that grants access."""
    return str(URL(str(url), encoded=True).with_query(None).with_user(None))


class Transport:
    def __init__(self, *, stall_s: float = STALL_S, certificates: str = DIRECTORY) -> None:
        self.stall_s = stall_s
        self._certificates = certificates
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None
        self._users = 0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connections are kept while somebody is inside; the last one out closes them."""
        if self._session is None:
            limits = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=self.stall_s, connect=None
            )
            self._session = aiohttp.ClientSession(
                timeout=limits,
                auto_decompress=False,  # the digest is that of the bytes as sent
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
                connector=aiohttp.TCPConnector(limit_per_host=16),
            )
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                session, self._session = self._session, None
                self._contexts.clear()  # a certificate that changes on the disk is read next time
                await session.close()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        verify: bool,
        body: Body | None = None,
        data: bytes | Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, GET and HEAD redirected as the server says; `Authorization` goes to its origin only.

        The limit for silence also holds while `body` is sent.  Raises Interrupted, NotTls.
        """
        target = URL(url, encoded=True)
        sent = dict(headers)
        for _ in range(_REDIRECTS):
            async with AsyncExitStack() as stack:
                async with _network_errors(method, target), asyncio.timeout(None) as silence:
                    response = await stack.enter_async_context(
                        self._connected().request(
                            method,
                            target,
                            headers=sent,
                            data=self._watched(body, silence) if body is not None else data,
                            allow_redirects=False,
                            ssl=await self._context(target, verify),
                            proxy=_find_proxy(target),
                        )
                    )
                location = response.headers.get("Location")
                if response.status not in _REDIRECT_STATUS or not location or method not in ("GET", "HEAD"):
                    yield response
                    return
                target, sent = _follow(target, location, sent)
        raise RegistryFailed(f"{method} {show(url)}: more than {_REDIRECTS} redirects")

    async def _watched(self, body: Body, silence: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The body; each piece that the server takes puts off the time limit."""
        now = asyncio.get_running_loop().time
        async for piece in body():
            with contextlib.suppress(RuntimeError):  # the server answered early: nobody waits any more
                silence.reschedule(now() + self.stall_s)
            yield piece
        with contextlib.suppress(RuntimeError):
            silence.reschedule(None)  # from here on sock_read holds

    async def _context(self, target: URL, verify: bool) -> ssl.SSLContext | bool:
        if target.scheme != "https":
            return True
        directory = find_directory(target.host or "", target.port, self._certificates)
        if (directory, verify) not in self._contexts:  # reading the system's authorities takes 60 ms
            context = await asyncio.to_thread(make_context, directory, verify=verify)
            self._contexts[directory, verify] = context
        return self._contexts[directory, verify]

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Transport.send outside of Transport.opened")
        return self._session

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body as it comes.  Raises Interrupted when it breaks or stalls."""
        async with _network_errors("reading", response.url):
            async for piece in response.content.iter_chunked(1 << 18):
                yield piece

    async def read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """A whole small body.  Raises CorruptData when it is larger than `limit` bytes, Interrupted."""
        parts: list[bytes] = []
        size = 0
        async for piece in self.pieces(response):
            size += len(piece)
            if size > limit:
                raise CorruptData(f"{show(response.url)}: the answer is larger than {limit} bytes")
            parts.append(piece)
        return b"".join(parts)


def _follow(source: URL, location: str, headers: Mapping[str, str]) -> tuple[URL, dict[str, str]]:
    try:
        target = source.join(URL(location, encoded=True))
    except ValueError:
        raise RegistryFailed(f"{show(source)}: redirected to something that is no URL") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise RegistryFailed(f"{show(source)}: redirected to {show(target)}, which is not http")
    kept = dict(headers)
    if not _same_origin(source, target):
        kept.pop("Authorization", None)
    return target, kept


@asynccontextmanager
async def _network_errors(what: str, url: URL) -> AsyncIterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        reason = getattr(error, "certificate_error", error)
        raise NotTls(f"{what} {show(url)}: TLS failed: {reason}") from error
    except aiohttp.ClientConnectorError as error:
        cause = error.os_error
        number = cause.errno or 0  # the resolver's are negative, several addresses at once have none
        why = os.strerror(number) if number > 0 else cause.strerror or error
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            raise Unreachable(
                f"{what} {show(url)}: lookup {url.host}: {why}",
                hint="is this host on a network, and is the name right? `insula bootstrap` needs no registry",
            ) from error
        if isinstance(cause, ConnectionRefusedError):
            raise Unreachable(f"{what} {show(url)}: {why}") from error
        raise Interrupted(f"{what} {show(url)}: {why}") from error
    except TimeoutError as error:
        raise Interrupted(f"{what} {show(url)}: the server stopped answering") from error
    except aiohttp.ClientPayloadError as error:
        raise Interrupted(f"{what} {show(url)}: the connection broke before the end") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Interrupted(f"{what} {show(url)}: {error or type(error).__name__}") from error
