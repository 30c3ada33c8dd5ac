"""TLS for a registry of one's own: `/etc/docker/certs.d/HOST[:PORT]/` as docker reads it.  Synchronous.

`*.crt` are authorities to trust beside the system's, `*.cert` with `*.key` of the same name are what
we show.  Source: https://docs.docker.com/engine/security/certificates/
"""

from __future__ import annotations

import os
import ssl

from insula.errors import Failure

DIRECTORY = "/etc/docker/certs.d"


def make_context(directory: str, *, verify: bool) -> ssl.SSLContext:
    """A context with what is in `directory`, which need not exist.  Raises Failure naming a bad file."""
    if verify:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return context
    for name in names:
        path = os.path.join(directory, name)
        try:
            if name.endswith(".crt"):
                context.load_verify_locations(cafile=path)
            elif name.endswith(".cert"):
                context.load_cert_chain(path, f"{path.removesuffix('.cert')}.key")
        except (OSError, ssl.SSLError) as error:
            raise Failure(f"{path}: cannot be used for TLS: {error}") from None
    return context


def find_directory(host: str, port: int | None, root: str = DIRECTORY) -> str:
    """Where docker looks for a registry's certificates: with the port if the name has one."""
    name = "docker.io" if host == "registry-1.docker.io" else host
    return os.path.join(root, name if port in (None, 443) else f"{name}:{port}")
