"""Requests made up from Docker's published swagger (schemathesis), and one look at each answer.

By hand, against a daemon that may be broken: `python -m contract.fuzz SOCKET EXAMPLES [PAGE…]` in tests/.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import random
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase

from contract.schema import published
from insula.api.versions import NEWEST, text_of

_BASE = f"/v{text_of(NEWEST)}"
_ANSWER_S = 20.0
# 501 and 503 are documented answers (docs/compatibility.md): a page or an ability that is not there
_REFUSALS = (501, 503)
# nobody listens there: a registry that a request names is not to be somebody's
_NOWHERE = "localhost:1"

Fail = Callable[[str], None]


def make_schema() -> Any:
    """The swagger's requests and definitions as a document that schemathesis reads."""
    document = published()
    paths: dict[str, dict[str, Any]] = {}
    for path, page in document["requests"].items():
        for method, operation in page.items():
            consumes = operation.get("consumes", [])
            # schemathesis makes no archives: anything will do for those
            kinds = ["application/json"] if not consumes or "application/json" in consumes else ["text/plain"]
            made = {**operation, "consumes": kinds, "responses": {"default": {"description": ""}}}
            paths.setdefault(path, {})[method] = made
    whole = {
        "swagger": "2.0",
        "info": {"title": "Engine", "version": text_of(NEWEST)},
        "basePath": _BASE,
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "definitions": document["definitions"],
        "paths": paths,
    }
    return schemathesis.openapi.from_dict(whole)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: str, request: requests.PreparedRequest) -> tuple[int, bytes]:
    """Status and the beginning of the body.  What streams, and what was hijacked, is left at once.  Raises
    TimeoutError when no answer begins."""
    connection = UnixConnection(path)
    try:
        target = request.path_url.encode("utf-8", "surrogateescape").decode("latin-1")
        connection.request(
            str(request.method), target, body=request.body or b"", headers=dict(request.headers)
        )
        answer = connection.getresponse()
        length = answer.getheader("Content-Length")
        return answer.status, answer.read(min(int(length), 65536)) if length else b""
    finally:
        connection.close()


def finalize(case: Any, known: Mapping[str, str], dice: random.Random) -> requests.PreparedRequest:
    """With names of what exists in every other request, and no registry but one that is not there."""
    for prefix, name in known.items():
        wanted = case.path.startswith(prefix) and case.method.upper() != "DELETE"
        if wanted and case.path_parameters and dice.random() < 0.6:
            case.path_parameters = dict.fromkeys(case.path_parameters, name)
    if case.path.startswith("/distribution/"):
        case.path_parameters = {"name": f"{_NOWHERE}/x"}
    if isinstance(case.query, dict):
        for name in ("fromImage", "remote"):
            if case.query.get(name):
                case.query = {**case.query, name: f"{_NOWHERE}/x"}
        if "t" in case.query:  # seconds to wait for an end; below zero is for ever
            case.query = {**case.query, "t": dice.choice([0, 1, "x"])}
    if case.path == "/containers/create" and isinstance(case.body, dict) and "/images/" in known:
        case.body = {**case.body, "Image": known["/images/"]}
    if case.path == "/auth" and isinstance(case.body, dict):
        case.body = {**case.body, "serveraddress": _NOWHERE}
    kwargs = case.as_transport_kwargs(base_url=f"http://localhost{_BASE}")
    kwargs.pop("cookies", None)
    kwargs.pop("timeout", None)
    return requests.Request(**kwargs).prepare()


def check(page: str, request: requests.PreparedRequest, status: int, body: bytes) -> str:
    """What is wrong with an answer, "" for nothing."""
    shown = f"{page}: {request.path_url[:500]} {(request.body or b'')[:2000]!r}: {status} {body[:500]!r}"
    if status >= 500 and status not in _REFUSALS and _NOWHERE.encode() not in body:
        return shown
    if status >= 400 and request.method != "HEAD" and not json.loads(body).get("message"):
        return f"no message: {shown}"
    return ""


def _try(
    path: str, known: Mapping[str, str], dice: random.Random, page: str, found: list[str], *, case: Any
) -> None:
    try:
        request = finalize(case, known, dice)
    except (ValueError, requests.RequestException):  # a URL that no client can send
        return
    try:
        wrong = check(page, request, *ask(path, request))
    except (OSError, ValueError, http.client.HTTPException) as error:
        wrong = f"{page}: {request.path_url[:500]} {(request.body or b'')[:2000]!r}: {error!r}"
    found += [wrong] if wrong else []


def _as_test(attempt: Callable[..., None]) -> Callable[[Any], None]:
    """A function as hypothesis wants it: with a name, and without defaults."""

    def one(case: Any) -> None:
        attempt(case=case)

    return one


def fuzz(
    path: str, known: Mapping[str, str], examples: int, wanted: tuple[str, ...] = (), seed: int = 0
) -> Iterator[str]:
    """What was found wrong, of `examples` requests for each page."""
    dice = random.Random(seed)
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for result in make_schema().get_all_operations():
        operation = result.ok()
        page = f"{operation.method.upper()} {operation.path}"
        if not wanted or any(word in page for word in wanted):
            found: list[str] = []
            attempt = functools.partial(_try, path, known, dice, page, found)

            made = hypothesis.given(case=operation.as_strategy())(_as_test(attempt))
            hypothesis.seed(seed)(settings(made))()
            yield from found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("examples", type=int, help="of each page")
    parser.add_argument("pages", nargs="*", help="those with such a word in them only")
    parser.add_argument("--known", type=json.loads, default={}, help='what is there: {"/containers/": "ID"}')
    given = parser.parse_args()
    code = 0
    for complaint in fuzz(given.socket, given.known, given.examples, tuple(given.pages)):
        print(complaint, flush=True)
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
