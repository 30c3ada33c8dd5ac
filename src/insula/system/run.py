"""Running programs: one way to do it.

Fixed environment, argv logged, a missing program becomes a sentence, and a failure shows a command
that the reader can paste.  `run` is synchronous, `arun` is its asyncio twin.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from insula.errors import ProgramFailed, ProgramMissing

log = logging.getLogger(__name__)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Debian's names; for the hint of ProgramMissing
PACKAGES: Mapping[str, str] = {
    "conmon": "conmon",
    "crun": "crun",
    "runc": "runc",
    "nft": "nftables",
    "mkfs.erofs": "erofs-utils",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "virtiofsd": "qemu-system-common",
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "tini": "tini",
    "ssh-keygen": "openssh-client",
    "git": "git",
}


def fixed_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(extra or {})}


def find_program(name: str, *further: str) -> str | None:
    """Absolute path of a program, or None.  `further` are absolute paths outside PATH to try after it."""
    if found := shutil.which(name, path=PATH):
        return found
    return next((path for path in further if shutil.which(path)), None)


def need_program(name: str, *further: str) -> str:
    """As find_program, but raises ProgramMissing with the package to install."""
    found = find_program(name, *further)
    if found is None:
        raise ProgramMissing(name, package=PACKAGES.get(name))
    return found


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout_s: float | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end and return its output.  Raises ProgramMissing; ProgramFailed if `check`."""
    log.debug("run: %s", shlex.join(argv))
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=fixed_environment(env),
            cwd=cwd,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise ProgramMissing(argv[0], package=PACKAGES.get(argv[0].rpartition("/")[2])) from None
    except subprocess.TimeoutExpired:
        raise ProgramFailed(shlex.join(argv), 124, f"still running after {timeout_s} s") from None
    if check and done.returncode != 0:
        raise ProgramFailed(shlex.join(argv), done.returncode, done.stderr.decode(errors="replace"))
    return done


async def arun(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
    timeout_s: float | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """As `run`, without blocking the event loop.  Killed when the caller is cancelled.  Raises
    ProgramFailed, ProgramMissing."""
    log.debug("run: %s", shlex.join(argv))
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=fixed_environment(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError:
        raise ProgramMissing(argv[0], package=PACKAGES.get(argv[0].rpartition("/")[2])) from None
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(stdin)
    except TimeoutError:
        raise ProgramFailed(shlex.join(argv), 124, f"still running after {timeout_s} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode is not None
    if check and child.returncode != 0:
        raise ProgramFailed(shlex.join(argv), child.returncode, err.decode(errors="replace"))
    return subprocess.CompletedProcess(list(argv), child.returncode, out, err)
