"""Which hosts may be spoken to in the clear, and in what order endpoints are tried."""

from __future__ import annotations

import pytest

from insula.errors import InvalidRequest
from insula.images.registry.endpoints import Endpoint, find_endpoints, is_insecure
from insula.model.reference import parse_reference


@pytest.mark.parametrize(
    ("domain", "insecure", "expected"),
    [
        ("localhost:5000", (), True),
        ("localhost", (), True),
        ("127.0.0.1:5000", (), True),
        ("127.9.9.9", (), True),
        ("[::1]:5000", (), True),
        ("registry.example", (), False),
        ("localhost.example", (), False),
        ("10.0.0.1", (), False),
        ("10.0.0.1:5000", ("10.0.0.0/8",), True),
        ("registry.example", ("10.0.0.0/8",), False),
        ("registry.example:5000", ("registry.example:5000",), True),
        ("registry.example:5000", ("registry.example",), True),
        ("registry.example:5001", ("registry.example:5000",), False),
    ],
)
def test_insecure(domain: str, insecure: tuple[str, ...], expected: bool) -> None:
    assert is_insecure(domain, insecure) is expected


def test_https_only_unless_insecure() -> None:
    assert find_endpoints(parse_reference("quay.io/a")) == (Endpoint(urls=("https://quay.io",)),)
    assert find_endpoints(parse_reference("localhost:5000/a")) == (
        Endpoint(urls=("https://localhost:5000", "http://localhost:5000"), verify=False),
    )


def test_mirrors_stand_before_docker_io_only() -> None:
    mirrors = ("https://mirror.example/", "http://127.0.0.1:5001")
    assert [e.urls for e in find_endpoints(parse_reference("debian"), mirrors=mirrors)] == [
        ("https://mirror.example",),
        ("http://127.0.0.1:5001",),
        ("https://registry-1.docker.io",),
    ]
    assert len(find_endpoints(parse_reference("quay.io/a"), mirrors=mirrors)) == 1


@pytest.mark.parametrize("mirror", ["http://mirror.example", "ftp://x", "https://", "https://m/?q"])
def test_mirror_that_is_refused(mirror: str) -> None:
    with pytest.raises(InvalidRequest, match="registry-mirror"):
        find_endpoints(parse_reference("debian"), mirrors=(mirror,))


def test_plain_http_mirror_by_configuration() -> None:
    found = find_endpoints(
        parse_reference("debian"), mirrors=("http://mirror.example",), insecure=("mirror.example",)
    )
    assert found[0] == Endpoint(urls=("http://mirror.example",), verify=False, is_mirror=True)
