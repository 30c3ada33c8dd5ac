"""login and logout, and the credentials that pull and push send along: Docker's own file, shared with it."""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

import click

from insula.cli.connect import pass_client
from insula.cli.credentials import find_config_file, find_credentials, known_servers, server_of
from insula.errors import InvalidRequest
from insula.model.reference import DEFAULT_DOMAIN
from insula.system.files import write_atomic


def auth_header(domain: str) -> dict[str, str]:
    """`X-Registry-Auth` for a registry, empty when nothing is known for it."""
    found = find_credentials(domain)
    if found is None:
        return {}
    document = {
        "username": found.username,
        "password": found.password,
        "identitytoken": found.identity_token,
        "registrytoken": found.registry_token,
        "serveraddress": found.server,
    }
    raw = json.dumps({key: value for key, value in document.items() if value}).encode()
    return {"X-Registry-Auth": base64.urlsafe_b64encode(raw).decode()}


def all_auth_header() -> dict[str, str]:
    """`X-Registry-Config`: what is known for every registry that Docker's file names, as `build` sends it."""
    found = {}
    for server in known_servers():
        domain = DEFAULT_DOMAIN if server == server_of(DEFAULT_DOMAIN) else server
        if (credentials := find_credentials(domain)) is not None:
            found[server] = {
                "username": credentials.username,
                "password": credentials.password,
                "identitytoken": credentials.identity_token,
                "serveraddress": server,
            }
    if not found:
        return {}
    return {"X-Registry-Config": base64.urlsafe_b64encode(json.dumps(found).encode()).decode()}


def _change_auths(change: Any) -> None:
    """Edit `auths` of Docker's file; all else in it stays.  Raises InvalidRequest if it is not JSON."""
    path = find_config_file()
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except FileNotFoundError:
        document = {}
    except ValueError as error:
        raise InvalidRequest(f"{path}: {error}", hint="mend or remove the file") from None
    change(document.setdefault("auths", {}))
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_atomic(path, json.dumps(document, indent="\t") + "\n", 0o600)


@click.command()
@click.option("-u", "--username", metavar="NAME", help="User name.")
@click.option(
    "-p", "--password", metavar="TEXT", help="Password (visible to other users: better from stdin)."
)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.argument("server", default=DEFAULT_DOMAIN)
@click.pass_context
def login(
    ctx: click.Context, server: str, username: str | None, password: str | None, password_stdin: bool
) -> None:
    """Check credentials with a registry and remember them."""
    if password_stdin:
        if username is None:
            raise InvalidRequest("--password-stdin: must be used with --username")
        password = sys.stdin.read().rstrip("\r\n")
    username = username or click.prompt("Username", err=True)
    password = password or click.prompt("Password", hide_input=True, err=True)
    filed = server_of(server)
    answer = pass_client(ctx).post(
        "/auth", {"username": username, "password": password, "serveraddress": filed}
    )
    token = (answer or {}).get("IdentityToken")
    pair = f"{username}:" if token else f"{username}:{password}"
    entry = {"auth": base64.b64encode(pair.encode()).decode(), **({"identitytoken": token} if token else {})}
    _change_auths(lambda auths: auths.update({filed: entry}))
    print("Login Succeeded")


@click.command()
@click.argument("server", default=DEFAULT_DOMAIN)
def logout(server: str) -> None:
    """Forget the credentials for a registry."""
    _change_auths(lambda auths: auths.pop(server_of(server), None))
    print(f"Removing login credentials for {server_of(server)}")
