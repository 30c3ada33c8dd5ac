"""TLS towards registries: verified where it must be, with authorities of one's own."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from insula.errors import Failure
from insula.images.images import Images
from insula.images.registry.certificates import find_directory, make_context
from insula.images.registry.transport import NotTls, Transport
from integration.images.fake_registry import start_fake_registry

pytestmark = pytest.mark.integration


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody signed, and its key beside it."""
    path = tmp_path / "server.crt"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", str(path.with_suffix(".key")),
            "-out", str(path),
            "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1",
            "-days", "2",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


async def test_loopback_registry_with_any_certificate(images: Images, tls: ssl.SSLContext) -> None:
    async with start_fake_registry(tls) as registry:
        registry.put_image(layers=[{"a": b"1"}])
        image = await images.pull(f"{registry.domain}/test/image")
        assert image.tags == (f"{registry.domain}/test/image:latest",)


async def test_certificate_that_nobody_signed_is_refused(tls: ssl.SSLContext, tmp_path: Path) -> None:
    transport = Transport(certificates=str(tmp_path / "none"))
    async with start_fake_registry(tls) as registry, transport.opened():
        with pytest.raises(NotTls, match=r"TLS failed.*certificate verify failed"):
            async with transport.send("GET", f"https://{registry.domain}/v2/", headers={}, verify=True):
                pass
        assert registry.requests == []


async def test_authority_of_ones_own_is_trusted(
    tls: ssl.SSLContext, certificate: Path, tmp_path: Path
) -> None:
    async with start_fake_registry(tls) as registry:
        directory = tmp_path / "certs.d" / registry.domain
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes(certificate.read_bytes())
        transport = Transport(certificates=str(tmp_path / "certs.d"))
        async with transport.opened():
            url = f"https://{registry.domain}/v2/"
            async with transport.send("GET", url, headers={}, verify=True) as answer:
                assert answer.status == 200


def test_where_certificates_are() -> None:
    assert find_directory("a.io", 443, "/c") == "/c/a.io"
    assert find_directory("a.io", 5000, "/c") == "/c/a.io:5000"
    assert find_directory("registry-1.docker.io", 443, "/c") == "/c/docker.io"


def test_bad_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(Failure, match=r"ca\.crt: cannot be used for TLS"):
        make_context(str(tmp_path), verify=True)
