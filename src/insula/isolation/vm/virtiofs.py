"""virtiofsd: one per bind mount, in the C version (Debian 12) or the Rust one (13).  Async to probe.

The daemon gets a listening socket and QEMU the connected end, both made here, so nothing waits for a path to
appear.  It runs as root, because the guest creates files of any owner, in a sandbox it makes itself.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from insula.errors import InvalidRequest, ProgramMissing, UnsupportedField
from insula.model.mounts import Mount, MountKind
from insula.system.jail import ShareSpec
from insula.system.run import arun, find_program

_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")


@dataclass(frozen=True, slots=True)
class Virtiofsd:
    """`rust`: options are words of their own (`--shared-dir`), not `-o`."""

    program: str
    rust: bool


async def find_virtiofsd() -> Virtiofsd | None:
    program = find_program("virtiofsd", *_PLACES)
    if program is None:
        return None
    shown = await arun([program, "--help"], check=False, timeout_s=10)
    return Virtiofsd(program, b"--shared-dir" in shown.stdout + shown.stderr)


def need(found: Virtiofsd | None) -> Virtiofsd:
    if found is None:
        raise ProgramMissing("virtiofsd", package="qemu-system-common (Debian 12) or virtiofsd (13)")
    return found


def finalize_argv(virtiofsd: Virtiofsd, source: str, fd: int) -> list[str]:
    if virtiofsd.rust:
        return [
            virtiofsd.program,
            "--fd", str(fd),
            "--shared-dir", source,
            "--sandbox", "namespace",
            "--rlimit-nofile", "0",
            "--announce-submounts",
            "--xattr",
            "--cache", "auto",
        ]  # fmt: skip
    return [
        virtiofsd.program,
        f"--fd={fd}",
        "-o", f"source={source}",
        "-o", "sandbox=namespace",
        "-o", "xattr",
        "-o", "cache=auto",
        "-o", "announce_submounts",
        "--rlimit-nofile=0",
    ]  # fmt: skip


def share_of(mount: Mount, run_dir: str) -> ShareSpec:
    """What to share for a bind: the directory, or a directory with only that file.

    Raises InvalidRequest when the source is not there, UnsupportedField when it cannot be shared.
    """
    try:
        mode = os.stat(mount.source).st_mode
    except OSError as error:
        raise InvalidRequest(
            f'invalid mount config for type "bind": bind source path {mount.source}: {error.strerror}'
        ) from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UnsupportedField(
            "HostConfig.Binds",
            f"{mount.source} is a socket, pipe or device of the host: out of a virtual machine's reach",
            hint="use --isolation process, or publish the service on a port",
        )
    return ShareSpec(
        source=mount.source,
        at=os.path.join(run_dir, "shares", mount.tag),
        read_only=mount.read_only,
        file="" if stat.S_ISDIR(mode) else (os.path.basename(mount.source.rstrip("/")) or "file"),
        recursive=mount.recursive,
    )


def binds(mounts: tuple[Mount, ...]) -> list[Mount]:
    return [mount for mount in mounts if mount.kind is not MountKind.TMPFS]
