"""`X-Registry-Auth`: credentials as clients send them.  Pure."""

from __future__ import annotations

import base64
import binascii
import json

from insula.api.wire.registry import AuthConfig
from insula.model.credentials import Credentials

_MOST = 64 * 1024


def parse_auth_header(untrusted_text: str) -> Credentials | None:
    """Base64 (URL alphabet) of JSON; None when nothing was sent, or what is no such thing.

    moby ignores what it cannot read: clients that have no credentials send any word, since a push must
    have the header (`postImagesPush`).  The registry then says whether it wants some.
    """
    if not untrusted_text:
        return None
    try:
        if len(untrusted_text) > _MOST:
            raise ValueError("too long")
        padded = untrusted_text.rstrip("=") + "=" * (-len(untrusted_text.rstrip("=")) % 4)
        document = json.loads(base64.b64decode(padded.replace("+", "-").replace("/", "_"), altchars=b"-_"))
        if document is None:
            return None
        known = AuthConfig(**{k: v for k, v in document.items() if k in AuthConfig.__struct_fields__ and v})
        return credentials_of(known)
    except (ValueError, TypeError, AttributeError, binascii.Error, RecursionError):
        return None


def credentials_of(given: AuthConfig) -> Credentials | None:
    """`auth` is base64 of user:password.  None when there is nothing in it (docker sends `{}` always)."""
    if not all(isinstance(getattr(given, name), str) for name in given.__struct_fields__):
        raise ValueError("expected strings")
    username, password = given.username, given.password
    if given.auth and not username:
        username, _, password = base64.b64decode(given.auth).decode().partition(":")
    if not (username or given.identitytoken or given.registrytoken):
        return None
    return Credentials(
        username=username,
        password=password,
        identity_token=given.identitytoken,
        registry_token=given.registrytoken,
        server=given.serveraddress,
    )
