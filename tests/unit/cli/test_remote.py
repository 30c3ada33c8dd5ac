"""Which daemon, and how TLS is spoken with it: options, docker's variables and docker's contexts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from insula.cli.remote import choose
from insula.errors import InvalidRequest
from insula.tls import ClientFiles

HOST = "tcp://server:2376"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def write(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / f"{name}.pem").touch()


def make_context(home: Path, name: str, endpoint: object, *files: str) -> str:
    """Returns where its certificates are."""
    key = hashlib.sha256(name.encode()).hexdigest()
    meta = home / "contexts" / "meta" / key
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": endpoint}}))
    place = home / "contexts" / "tls" / key / "docker"
    if files:
        write(place, *files)
    return str(place)


def test_without_words_no_tls_is_spoken() -> None:
    assert (HOST, None) == choose(HOST, None)


def test_the_certificates_are_dockers(home: Path) -> None:
    write(home, "ca", "cert", "key")
    expected = (f"{home}/ca.pem", f"{home}/cert.pem", f"{home}/key.pem")
    assert (HOST, ClientFiles(True, *expected)) == choose(HOST, None, tlsverify=True)
    assert (HOST, ClientFiles(False, *expected)) == choose(HOST, None, tls=True)
    assert (HOST, ClientFiles(True, "/x", *expected[1:])) == choose(
        HOST, None, tlsverify=True, tlscacert="/x"
    )


def test_dockers_variables_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "certs", "ca")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(home / "certs"))
    assert (HOST, ClientFiles(True, f"{home}/certs/ca.pem")) == choose(HOST, None)


def test_a_context_has_its_address_and_certificates(home: Path) -> None:
    place = make_context(home, "lab", {"Host": HOST, "SkipTLSVerify": False}, "ca", "cert", "key")
    files = ClientFiles(True, f"{place}/ca.pem", f"{place}/cert.pem", f"{place}/key.pem")
    assert (HOST, files) == choose("unix:///x", "lab")
    make_context(home, "lax", {"Host": HOST, "SkipTLSVerify": True})
    assert (HOST, ClientFiles(False)) == choose(None, "lax")
    make_context(home, "local", {"Host": "unix:///y"})
    assert ("unix:///y", None) == choose(None, "local")
    assert ("unix:///x", None) == choose("unix:///x", "default")


def test_what_cannot_be_meant_is_refused(home: Path) -> None:
    make_context(home, "odd", "text")
    with pytest.raises(InvalidRequest, match="'none' does not exist"):
        choose(None, "none")
    with pytest.raises(InvalidRequest, match="'odd' names no daemon"):
        choose(None, "odd")
    with pytest.raises(InvalidRequest, match="no TLS is spoken"):
        choose(HOST, None, tlscert="/x")
