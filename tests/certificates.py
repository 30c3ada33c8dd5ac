"""An authority, and certificates of it for a server at 127.0.0.1 and for a client."""

from __future__ import annotations

import subprocess
from pathlib import Path

_EXTENSIONS = """\
subjectAltName=DNS:localhost,IP:127.0.0.1
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
extendedKeyUsage="""


def make_certificates(directory: Path) -> Path:
    """`ca.pem`, `server.pem`, `server-key.pem`; and docker's `ca.pem`, `cert.pem`, `key.pem` in `client/`;
    a stranger's in `stranger/`."""
    for name, subject in (("", "insula test"), ("other-", "somebody else")):
        _openssl(
            *(
                "req",
                "-x509",
                *_new_key(directory / f"{name}ca-key.pem"),
                "-days",
                "2",
                "-subj",
                f"/CN={subject}",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",  # Python 3.13 insists
            ),
            *("-out", str(directory / f"{name}ca.pem")),
        )
    _sign(directory, "ca", "serverAuth", directory / "server.pem", directory / "server-key.pem")
    for place, authority in (("client", "ca"), ("stranger", "other-ca")):
        (directory / place).mkdir()
        (directory / place / "ca.pem").write_bytes((directory / "ca.pem").read_bytes())
        cert, key = directory / place / "cert.pem", directory / place / "key.pem"
        _sign(directory, authority, "clientAuth", cert, key)
    return directory


def _sign(directory: Path, authority: str, usage: str, cert: Path, key: Path) -> None:
    request, extensions = cert.with_suffix(".csr"), cert.with_suffix(".ext")
    extensions.write_text(f"{_EXTENSIONS}{usage}\n")
    _openssl("req", *_new_key(key), "-subj", "/CN=somebody", "-out", str(request))
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", "2", "-extfile", str(extensions), "-out", str(cert)),
        *("-CA", str(directory / f"{authority}.pem"), "-CAkey", str(directory / f"{authority}-key.pem")),
        "-CAcreateserial",
    )


def _new_key(path: Path) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path))


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
