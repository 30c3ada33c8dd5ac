"""Docker's config file and credential helpers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from insula.cli.credentials import find_config_file, find_credentials
from insula.errors import Failure, ProgramMissing
from insula.model.credentials import Credentials


def _config(tmp_path: Path, document: object) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    return str(path)


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def _helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_where_the_file_is() -> None:
    assert find_config_file({"DOCKER_CONFIG": "/x"}) == "/x/config.json"
    assert find_config_file({"HOME": "/home/a"}) == "/home/a/.docker/config.json"


def test_no_file_is_no_credentials(tmp_path: Path) -> None:
    assert find_credentials("quay.io", str(tmp_path / "none")) is None


@pytest.mark.parametrize("key", ["quay.io", "https://quay.io", "https://quay.io/v1/"])
def test_entry_by_host_or_by_url(tmp_path: Path, key: str) -> None:
    path = _config(tmp_path, {"auths": {key: _auth("ali:open:sesame")}})
    expected = Credentials(username="ali", password="open:sesame", server="quay.io")
    assert find_credentials("quay.io", path) == expected
    assert find_credentials("quay.io:5000", path) is None


def test_docker_hub_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = _config(tmp_path, {"auths": {"https://index.docker.io/v1/": _auth("ali:x")}})
    found = find_credentials("docker.io", path)
    assert found is not None
    assert (found.username, found.server) == ("ali", "https://index.docker.io/v1/")


def test_identity_token(tmp_path: Path) -> None:
    path = _config(tmp_path, {"auths": {"a.io": {**_auth("<token>:"), "identitytoken": "secret"}}})
    found = find_credentials("a.io", path)
    assert found is not None
    assert found.identity_token == "secret"


def test_empty_entry_is_none(tmp_path: Path) -> None:
    assert find_credentials("a.io", _config(tmp_path, {"auths": {"a.io": {}}})) is None


@pytest.mark.parametrize(
    "document", ["[]", "{", '{"auths": {"a.io": {"auth": "!"}}}', '{"auths": {"a.io": {"auth": "YQ=="}}}']
)
def test_broken_file_is_said(tmp_path: Path, document: str) -> None:
    (tmp_path / "config.json").write_text(document)
    with pytest.raises(Failure, match=r"config\.json"):
        find_credentials("a.io", str(tmp_path / "config.json"))


@pytest.mark.parametrize("document", [{"credHelpers": {"a.io": "test"}}, {"credsStore": "test"}])
def test_helper_gets_the_server_on_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: object
) -> None:
    answer = json.dumps({"Username": "ali", "Secret": "sesame"})
    _helper(tmp_path, monkeypatch, f'test "$1" = get && test "$(cat)" = a.io && echo \'{answer}\'')
    expected = Credentials(username="ali", password="sesame", server="a.io")
    assert find_credentials("a.io", _config(tmp_path, document)) == expected


def test_helper_with_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _helper(tmp_path, monkeypatch, 'echo \'{"Username":"<token>","Secret":"t"}\'')
    path = _config(tmp_path, {"credsStore": "test"})
    assert find_credentials("a.io", path) == Credentials(identity_token="t", server="a.io")


def test_helper_that_knows_nothing_lets_the_file_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _helper(tmp_path, monkeypatch, 'echo "credentials not found in native keychain"; exit 1')
    path = _config(tmp_path, {"credsStore": "test", "auths": {"a.io": _auth("ali:x")}})
    found = find_credentials("a.io", path)
    assert found is not None
    assert found.username == "ali"


def test_helper_that_fails_is_not_anonymous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _helper(tmp_path, monkeypatch, "echo keychain is locked >&2; exit 1")
    path = _config(tmp_path, {"credsStore": "test"})
    with pytest.raises(Failure, match="keychain is locked"):
        find_credentials("a.io", path)


def test_helper_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissing):
        find_credentials("a.io", _config(tmp_path, {"credsStore": "nosuchhelper"}))


def test_helper_with_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="not a plain name"):
        find_credentials("a.io", _config(tmp_path, {"credsStore": "../../bin/sh"}))
