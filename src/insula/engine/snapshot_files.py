"""The files of a snapshot, and the archive that is made of them.  Synchronous, but for what moves archives.

GNU tar packs and unpacks: it knows holes, and disks are mostly those.  What comes out of an archive is
believed only when every file has the digest that the archive's own list says; that is against damage.
Against malice there is that a snapshot is a virtual machine: nothing in it is run, mounted or trusted outside
of one, and one whose record asks for something of the host's is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass

from insula.engine.types import SnapshotView
from insula.errors import CorruptData, Failure
from insula.isolation.plan import LaunchPlan
from insula.model import codec
from insula.model.instance import Instance
from insula.model.isolation import Isolation
from insula.model.mounts import Mount, MountKind, MountSpec
from insula.system import memory_file
from insula.system.files import disk_errors, write_atomic
from insula.system.run import fixed_environment, need_program

FORMAT = 1
RECORD, UPPER, IMAGE = "snapshot.json", "upper.ext4", "image.erofs"
_DIGESTS = "digests.json"
_MACHINE = ("machine.json", "ram", "state")
_CONTENT = (RECORD, *_MACHINE, UPPER, IMAGE)
_PIECE = 1 << 20
_MOST_RECORD = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """What is written down of one: its instance as it was."""

    format: int
    name: str
    created_ns: int
    instance: Instance
    plan: LaunchPlan


def finish(directory: str, record: SnapshotRecord) -> None:
    """What the backend and the disk's copy do not bring: the image's disk and the record.  Raises
    DiskFull."""
    assert record.plan.disk is not None
    with disk_errors(f"keeping snapshot {record.name}"):
        os.link(record.plan.disk.image_disk, os.path.join(directory, IMAGE))
        fd = os.open(os.path.join(directory, UPPER), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        write_atomic(os.path.join(directory, RECORD), codec.encode(record))


def read_record(directory: str) -> SnapshotRecord:
    """Raises CorruptData."""
    try:
        with open(os.path.join(directory, RECORD), "rb") as file:
            record = codec.decode(file.read(_MOST_RECORD), SnapshotRecord)
    except FileNotFoundError:
        raise CorruptData(f"{directory}: it has no {RECORD}") from None
    if record.format != FORMAT:
        raise CorruptData(
            f"snapshot {record.name[:64]} has format {record.format}; this insula reads {FORMAT}"
        )
    return record


def view_of(instance: Instance, record: SnapshotRecord, directory: str) -> SnapshotView:
    sizes = [os.stat(os.path.join(directory, name)).st_blocks * 512 for name in (*_MACHINE, UPPER)]
    return SnapshotView(
        name=record.name,
        instance_id=instance.id,
        instance_name=instance.name,
        image=record.instance.spec.image,
        memory_mib=record.plan.machine.memory_mib if record.plan.machine else 0,
        created_ns=record.created_ns,
        size_bytes=sum(sizes),
    )


def give_image(directory: str, image_disk: str, state_dir: str) -> str:
    """The image's disk for who goes on from a snapshot: the usual one if that is the same file, else a link
    to the snapshot's in the instance's own directory.  A guest that has read the one cannot go on with
    another, if only because one was built anew."""
    kept = os.path.join(directory, IMAGE)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samefile(kept, image_disk):
            return image_disk
    own = os.path.join(state_dir, IMAGE)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samefile(kept, own):
            return own
        os.unlink(own)
    os.link(kept, own)
    return own


def with_image(plan: LaunchPlan, image_disk: str) -> LaunchPlan:
    """Pure."""
    assert plan.disk is not None
    return dataclasses.replace(plan, disk=dataclasses.replace(plan.disk, image_disk=image_disk))


# as an archive


def write_digests(directory: str) -> None:
    """Of every file; seconds for large disks.  Raises DiskFull."""
    path = os.path.join(directory, _DIGESTS)
    if not os.path.exists(path):  # nothing of a snapshot ever changes
        with disk_errors("exporting a snapshot"):
            write_atomic(path, codec.encode(_digests(directory)))


def _digests(directory: str) -> dict[str, str]:
    found = {}
    for name in _CONTENT:
        with memory_file.start_file(os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW) as fd:
            found[name] = memory_file.digest_sparse(fd)[0]
    return found


async def pack(directory: str) -> AsyncIterator[bytes]:
    """The archive, in pieces.  Raises Failure when it cannot be completed."""
    tar = [need_program("tar"), "--create", "--sparse", "--format=posix", "--owner=0", "--group=0"]
    child = await asyncio.create_subprocess_exec(
        *tar, f"--directory={directory}", "--file=-", _DIGESTS, *_CONTENT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=fixed_environment(),
    )  # fmt: skip
    assert child.stdout is not None
    try:
        while piece := await child.stdout.read(_PIECE):
            yield piece
        if status := await child.wait():
            raise Failure(f"tar ended with {status} while it packed a snapshot")
    finally:
        await _end(child)


async def unpack(archive: AsyncIterator[bytes], directory: str) -> None:
    """Into an empty directory.  Raises CorruptData, DiskFull."""
    tar = [need_program("tar"), "--extract", "--no-same-owner", "--no-same-permissions", "--no-xattrs"]
    child = await asyncio.create_subprocess_exec(
        *tar, f"--directory={directory}", "--file=-", _DIGESTS, *_CONTENT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env=fixed_environment(),
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stderr is not None
    try:
        said = asyncio.create_task(child.stderr.read())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it says why
            async for piece in archive:
                child.stdin.write(piece)
                await child.stdin.drain()
            child.stdin.close()
        status = await child.wait()
        text = (await said).decode(errors="replace").strip()
    finally:
        await _end(child)
    if status:
        with disk_errors("importing a snapshot"):
            if "No space left" in text:
                raise OSError(28, text)
        raise CorruptData(
            f"this is no archive of a snapshot: {text.splitlines()[0][:300] if text else status}"
        )


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.kill()
        await child.wait()


def check(directory: str) -> SnapshotRecord:
    """Of what `unpack` has written.  Raises CorruptData."""
    for name in (_DIGESTS, *_CONTENT):
        try:
            found = os.lstat(os.path.join(directory, name))
        except FileNotFoundError:
            raise CorruptData(f"the archive has no {name}") from None
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise CorruptData(f"the archive's {name} is no plain file")
    with open(os.path.join(directory, _DIGESTS), "rb") as file:
        wanted = codec.decode(file.read(_MOST_RECORD), dict[str, str])
    for name, digest in _digests(directory).items():
        if wanted.get(name) != digest:
            raise CorruptData(f"the archive's {name} is damaged: it does not match its digest")
    record = read_record(directory)
    _check_record(record)
    os.chmod(os.path.join(directory, IMAGE), 0o444)
    return record


def _check_record(record: SnapshotRecord) -> None:
    """It says what its maker wants it to.  What goes on from it must reach nothing of the host that nobody
    here has given it.  Raises CorruptData."""
    spec, plan = record.instance.spec, record.plan
    vm = Isolation.VM
    if plan.disk is None or plan.machine is None or (spec.isolation, plan.isolation) != (vm, vm):
        raise CorruptData("the archive is of an instance that was no virtual machine")
    # no machine with shares can be captured, so nobody who is honest has written such a record
    mounts: list[Mount | MountSpec] = [*plan.mounts, *spec.mounts, *record.instance.mounts]
    for mount in mounts:
        if mount.kind is not MountKind.TMPFS:
            raise CorruptData(
                f"the archive asks for {mount.source[:200] or 'a volume'} of this host "
                f"at {mount.target[:200]}: refused"
            )
    if spec.volumes_from:
        raise CorruptData("the archive asks for another instance's volumes: refused")
