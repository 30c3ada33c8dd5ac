"""Credentials that `docker login` left: Docker's config file, `credsStore`, `credHelpers`.

Synchronous.  The client's: the daemon gets those of a request with it, and asks the registry.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from insula.errors import Failure, ProgramMissing
from insula.model.credentials import Credentials
from insula.model.reference import DEFAULT_DOMAIN

HUB_SERVER = "https://index.docker.io/v1/"
_HELPER_TIMEOUT_S = 30
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"


def find_config_file(environment: Mapping[str, str] = os.environ) -> str:
    """`$DOCKER_CONFIG/config.json`, else the one in the home directory."""
    directory = environment.get("DOCKER_CONFIG") or os.path.join(
        environment.get("HOME") or os.path.expanduser("~"), ".docker"
    )
    return os.path.join(directory, "config.json")


def server_of(domain: str) -> str:
    """The name under which Docker files a registry's credentials."""
    return HUB_SERVER if domain == DEFAULT_DOMAIN else domain


def _host_of(server: str) -> str:
    """`https://index.docker.io/v1/` → `index.docker.io`: old entries are URLs, new ones hosts."""
    bare = server if "://" in server else f"//{server}"
    return urlsplit(bare).netloc


def _read_config(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: cannot be read: {error}", hint="mend or remove the file") from None
    if not isinstance(document, dict):
        raise Failure(f"{path}: is not a JSON object", hint="mend or remove the file")
    return document


def _from_entry(entry: Mapping[str, Any], server: str, path: str) -> Credentials | None:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        try:
            text = base64.b64decode(str(auth), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise Failure(f"{path}: auth of {server} is not base64", hint=f"docker login {server}") from None
        username, colon, password = text.partition(":")
        if not colon:
            raise Failure(f"{path}: auth of {server} is not user:password", hint=f"docker login {server}")
        password = password.rstrip("\0")
    found = Credentials(
        username=username,
        password=password,
        identity_token=str(entry.get("identitytoken") or ""),
        registry_token=str(entry.get("registrytoken") or ""),
        server=server,
    )
    return found if username or found.identity_token or found.registry_token else None


def _ask_helper(name: str, server: str) -> Credentials | None:
    """`docker-credential-NAME get`: the server's name on stdin, JSON on stdout."""
    program = f"docker-credential-{name}"
    if "/" in name:
        raise Failure(f"credential helper {name!r}: not a plain name")
    try:
        answer = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise ProgramMissing(program) from None
    except (subprocess.TimeoutExpired, OSError) as error:
        raise Failure(f"{program} get {server}: {error}") from None
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).decode(errors="replace").strip()
        if _NOT_FOUND in said:
            return None
        raise Failure(f"{program} get {server}: exit status {answer.returncode}: {said[-500:]}")
    try:
        document = json.loads(answer.stdout)
        username, secret = str(document["Username"]), str(document["Secret"])
    except (ValueError, KeyError, TypeError):
        raise Failure(f"{program} get {server}: the answer is not credentials") from None
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret, server=server)
    return Credentials(username=username, password=secret, server=server)


def known_servers(path: str | None = None) -> tuple[str, ...]:
    """The registries that the file names, by itself or with a helper."""
    document = _read_config(path or find_config_file())
    servers: dict[str, None] = {}
    for key in ("auths", "credHelpers"):
        entries = document.get(key)
        servers.update(dict.fromkeys(entries if isinstance(entries, dict) else ()))
    return tuple(servers)


def find_credentials(domain: str, path: str | None = None) -> Credentials | None:
    """What is known for a registry, by the helper for it, else the store for all, else the file itself.

    Raises Failure if the file or a helper cannot be read or run (never silently anonymous).
    """
    config = path or find_config_file()
    document = _read_config(config)
    server = server_of(domain)
    helpers = document.get("credHelpers")
    if isinstance(helpers, dict):
        for key in (server, domain, _host_of(server)):
            if helper := helpers.get(key):
                return _ask_helper(str(helper), server)
    if (store := document.get("credsStore")) and (found := _ask_helper(str(store), server)):
        return found
    entries = document.get("auths")
    if not isinstance(entries, dict):
        return None
    candidates = [server, *(key for key in entries if _host_of(str(key)) == _host_of(server))]
    for key in candidates:
        entry = entries.get(key)
        if isinstance(entry, dict) and (found := _from_entry(entry, server, config)):
            return found
    return None
