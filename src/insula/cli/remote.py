"""A daemon elsewhere: docker's TLS options and variables, and docker's contexts.  Sync, reads files only.

The variables are DOCKER_TLS_VERIFY and DOCKER_CERT_PATH; DOCKER_CONFIG is where docker's client keeps the
contexts that `docker context create` makes, and the certificates that are meant without further words.
"""

from __future__ import annotations

import hashlib
import json
import os

from insula.errors import InvalidRequest
from insula.tls import ClientFiles, files_of


def choose(
    host: str | None,
    context: str | None,
    *,
    tls: bool = False,
    tlsverify: bool = False,
    tlscacert: str | None = None,
    tlscert: str | None = None,
    tlskey: str | None = None,
) -> tuple[str | None, ClientFiles | None]:
    """(address, how to speak TLS there or None).  A context outranks `host`; options its certificates.

    Raises InvalidRequest for a context that does not exist or has no address.
    """
    if context and context != "default":
        host, files = read_context(context)
        verify = tlsverify or (files is not None and files.verify)
        spoken = tls or tlsverify or files is not None
    else:
        verify = tlsverify or bool(os.environ.get("DOCKER_TLS_VERIFY"))
        spoken = tls or verify
        files = files_of(os.environ.get("DOCKER_CERT_PATH") or _config_directory(), verify=verify)
    if not spoken:
        if tlscacert or tlscert or tlskey:
            raise InvalidRequest("--tlscacert, --tlscert, --tlskey: no TLS is spoken", hint="add --tlsverify")
        return host, None
    own = files or ClientFiles(verify)
    return host, ClientFiles(verify, tlscacert or own.ca, tlscert or own.cert, tlskey or own.key)


def read_context(name: str) -> tuple[str, ClientFiles | None]:
    """Of docker's store; TLS is spoken where the context has certificates.  Raises InvalidRequest."""
    key = hashlib.sha256(name.encode()).hexdigest()
    store = os.path.join(_config_directory(), "contexts")
    try:
        with open(os.path.join(store, "meta", key, "meta.json"), "rb") as file:
            endpoint = json.load(file)["Endpoints"]["docker"]
            host, insecure = str(endpoint["Host"]), bool(endpoint.get("SkipTLSVerify"))
    except FileNotFoundError:
        raise InvalidRequest(f"--context: {name!r} does not exist", hint="docker context ls") from None
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest(f"--context: {name!r} names no daemon", hint="docker context inspect") from None
    files = files_of(os.path.join(store, "tls", key, "docker"), verify=not insecure)
    return host, files if insecure or files.ca or files.cert else None


def _config_directory() -> str:
    return os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
