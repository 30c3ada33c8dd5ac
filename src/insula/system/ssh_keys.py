"""Host keys for the ssh servers of machines that must not share theirs.  Synchronous; runs ssh-keygen.

Here and not in the machine: under software emulation an RSA key takes half a minute there.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Sequence

from insula.system.run import need_program, run

DIRECTORY = "etc/ssh"
TYPES = ("rsa", "ecdsa", "ed25519")


def key_name(kind: str) -> str:
    """As sshd_config(5) names them by default."""
    return f"ssh_host_{kind}_key"


def make_host_key(kind: str, comment: str) -> tuple[bytes, bytes]:
    """(private, public) file.  10 ms, for RSA up to two seconds.  Raises ProgramMissing, ProgramFailed."""
    program = need_program("ssh-keygen")
    with tempfile.TemporaryDirectory(prefix="insula-ssh-") as scratch:
        path = os.path.join(scratch, "key")
        run([program, "-q", "-N", "", "-C", comment, "-t", kind, "-f", path])
        with open(path, "rb") as private, open(f"{path}.pub", "rb") as public:
            return private.read(), public.read()


def find_host_keys(directories: Sequence[str]) -> tuple[str, ...]:
    """The types that a root has keys of; `directories` are its layers, topmost first.  No link is followed: a
    layer is somebody else's."""
    return tuple(kind for kind in TYPES if _has(directories, key_name(kind)))


def _has(directories: Sequence[str], name: str) -> bool:
    for layer in directories:
        path = layer
        for part in (*DIRECTORY.split("/"), name):
            path = os.path.join(path, part)
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                break
            if part == name:
                return stat.S_ISREG(mode)  # else a whiteout: what is below is not seen
            if not stat.S_ISDIR(mode):
                break
    return False


def make_archive(kinds: Sequence[str], comment: str) -> bytes:
    """A tar of new keys, for DIRECTORY.  Raises as `make_host_key`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in kinds:
            private, public = make_host_key(kind, comment)
            for ending, mode, data in (("", 0o600, private), (".pub", 0o644, public)):
                member = tarfile.TarInfo(key_name(kind) + ending)
                member.size, member.mode = len(data), mode
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
