"""Authentication with registries: challenges read, bearer tokens fetched and kept per scope.  Async.

Source: https://distribution.github.io/distribution/spec/auth/token/ and RFC 7235 for the challenge.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from insula.errors import RegistryFailed, Unauthorized
from insula.images.registry.endpoints import Endpoint, is_loopback
from insula.images.registry.transport import Transport, show
from insula.model.credentials import Credentials

_MAX_ANSWER = 1 << 20
_SHORTEST_S = 60.0  # the specification's default life of a token
_MARGIN_S = 5.0
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,*\s*({_TOKEN})(?=[\s,]|$)\s*")
_PARAMETER = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way that a server offers: `scheme` in lower case, parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Sequence[str]) -> tuple[Challenge, ...]:
    """`WWW-Authenticate` headers, each of which may hold several challenges.  What cannot be read ends that
    header: it comes from outside."""
    found: list[Challenge] = []
    for header in headers:
        position = 0
        while match := _SCHEME.match(header, position):
            position = match.end()
            parameters: dict[str, str] = {}
            while pair := _PARAMETER.match(header, position):
                position = pair.end()
                value = pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2])
                parameters[pair[1].lower()] = value
            found.append(Challenge(match[1].lower(), parameters))
    return tuple(found)


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    expires: float  # time.monotonic()


class Authenticator:
    """Remembers how each endpoint wants to be asked, and the tokens it gave."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._challenges: dict[str, Challenge] = {}
        self._tokens: dict[tuple[str, str, Credentials | None], _Token] = {}

    def known(self, endpoint: Endpoint) -> Challenge | None:
        return self._challenges.get(endpoint.key)

    def learn(self, endpoint: Endpoint, headers: Sequence[str]) -> None:
        """After a 401.  Forgets the tokens of this endpoint: they were not good enough."""
        offered = {challenge.scheme: challenge for challenge in reversed(parse_challenges(headers))}
        challenge = offered.get("bearer") or offered.get("basic")
        if challenge is None:
            names = ", ".join(sorted(offered)) or "none"
            raise RegistryFailed(
                f"{endpoint.key}: asks for a way of authentication that insula does not know ({names})"
            )
        self._challenges[endpoint.key] = challenge
        self._tokens = {key: token for key, token in self._tokens.items() if key[0] != endpoint.key}

    async def header(
        self, endpoint: Endpoint, scopes: Sequence[str], credentials: Credentials | None
    ) -> str | None:
        """The value of `Authorization`, None if nothing is asked for or nothing is known.

        Raises Unauthorized when a token is refused, RegistryFailed when the answer is nonsense.
        """
        if credentials is not None and credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        challenge = self.known(endpoint)
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            if credentials is None or not credentials.username:
                return None
            return basic(credentials.username, credentials.password)
        key = (endpoint.key, " ".join(scopes), credentials)
        token = self._tokens.get(key)
        if token is None or token.expires <= time.monotonic():
            token = await self._fetch(endpoint, challenge, scopes, credentials)
            self._tokens[key] = token
        return f"Bearer {token.value}"

    async def _fetch(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        scopes: Sequence[str],
        credentials: Credentials | None,
    ) -> _Token:
        realm = challenge.parameters.get("realm", "")
        _check_realm(endpoint, realm, credentials)
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        headers = {"Accept": "application/json"}
        form: dict[str, str] | None = None
        if credentials is not None and credentials.identity_token:
            form = {
                **dict(query),
                "grant_type": "refresh_token",
                "client_id": "insula",
                "refresh_token": credentials.identity_token,
                "scope": " ".join(scopes),
            }
            url, method = realm, "POST"
        else:
            query += [("scope", scope) for scope in scopes]
            if credentials is not None and credentials.username:
                query.append(("account", credentials.username))
                headers["Authorization"] = basic(credentials.username, credentials.password)
            url, method = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}", "GET"
        async with self._transport.send(
            method, url, headers=headers, data=form, verify=endpoint.verify
        ) as answer:
            body = await self._transport.read(answer, _MAX_ANSWER)
            if answer.status in (400, 401, 403) and credentials is not None:
                raise Unauthorized("unauthorized: incorrect username or password", hint="docker login")
            if answer.status in (401, 403):
                raise Unauthorized("unauthorized: authentication required", hint="docker login")
            if answer.status != 200:
                raise RegistryFailed(f"{show(realm)}: gave no token: status {answer.status}")
        return _read_token(body, realm)


def _check_realm(endpoint: Endpoint, realm: str, credentials: Credentials | None) -> None:
    """A password goes over plain http only where the registry itself may be plain http."""
    try:
        parts = urlsplit(realm)
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise RegistryFailed(f"{endpoint.key}: the token service {realm!r} is not a URL")
    if parts.scheme == "http" and credentials is not None and endpoint.verify and not is_loopback(host):
        raise RegistryFailed(
            f"{endpoint.key}: wants the password sent in the clear to {show(realm)}; not done",
            hint="name the registry in insecure-registry if that is meant",
        )


def _read_token(body: bytes, realm: str) -> _Token:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RegistryFailed(f"{show(realm)}: the token service's answer is not a JSON object")
    value = document.get("token") or document.get("access_token")
    if not isinstance(value, str) or not value.isprintable():
        raise RegistryFailed(f"{show(realm)}: no token in the token service's answer")
    life = document.get("expires_in")
    seconds = float(life) if isinstance(life, int | float) and life > 0 else _SHORTEST_S
    return _Token(value, time.monotonic() + max(seconds - _MARGIN_S, 1.0))
