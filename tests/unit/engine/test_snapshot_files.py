"""The archive of a snapshot: what goes in comes out, and an archive that lies leaves nothing."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from insula.engine.snapshot_files import SnapshotRecord, check, give_image, pack, unpack, write_digests
from insula.errors import CorruptData
from insula.isolation.plan import Console, GuestMachine, LaunchPlan, Process, Security
from insula.model import codec
from insula.model.instance import Instance, InstanceSpec, State
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import Mount, MountKind, MountSpec
from insula.model.root import DiskRoot

RECORD = SnapshotRecord(
    format=1,
    name="one",
    created_ns=1,
    instance=Instance(
        id="a" * 64,
        name="web",
        spec=InstanceSpec(image="x", isolation=Isolation.VM),
        image_id="sha256:0",
        state=State.RUNNING,
        created_ns=1,
    ),
    plan=LaunchPlan(
        id="a" * 64,
        isolation=Isolation.VM,
        state_dir="/s",
        run_dir="/r",
        hostname="web",
        process=Process(args=("true",), env=()),
        console=Console(),
        limits=Limits(),
        security=Security(capabilities=(), seccomp=""),
        disk=DiskRoot(image_disk="/i", upper_disk="/u"),
        machine=GuestMachine(vcpus=1, memory_mib=1),
    ),
)
NAMES = ("machine.json", "ram", "state", "upper.ext4", "image.erofs")


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    directory = tmp_path / "snapshot"
    directory.mkdir()
    (directory / "snapshot.json").write_text(codec.encode(RECORD))
    for name in NAMES:
        (directory / name).write_bytes(name.encode())
        os.truncate(directory / name, 8 << 20)
    return directory


async def packed(directory: Path) -> bytes:
    write_digests(str(directory))
    return b"".join([piece async for piece in pack(str(directory))])


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 70_000):
        yield data[at : at + 70_000]


async def take(data: bytes, directory: Path) -> SnapshotRecord:
    await unpack(pieces(data), str(directory))
    return check(str(directory))


async def test_what_goes_in_comes_out(snapshot: Path, tmp_path: Path) -> None:
    data = await packed(snapshot)
    assert len(data) < 1 << 20  # holes are not in it
    target = tmp_path / "target"
    target.mkdir()
    assert RECORD == await take(data, target)
    for name in NAMES:
        assert (snapshot / name).read_bytes() == (target / name).read_bytes()
        assert os.stat(target / name).st_blocks * 512 < 1 << 20


Change = Callable[[tarfile.TarInfo, bytes], "tuple[tarfile.TarInfo, bytes] | None"]


def retar(
    data: bytes, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            content = file.read() if file else b""
            plain = tarfile.TarInfo(member.name)
            plain.size = len(content)
            if (changed := change(plain, content)) is not None:
                new.addfile(changed[0], io.BytesIO(changed[1]))
    return out.getvalue()


def as_link(kind: bytes, target: str) -> Change:
    def change(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if member.name != "ram":
            return member, content
        link = tarfile.TarInfo("ram")
        link.type, link.linkname = kind, target
        return link, b""

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m, c: None if m.name == "state" else (m, c), "state"),
        (lambda m, c: (m, c if m.name != "upper.ext4" else b"X" + c[1:]), "upper.ext4 is damaged"),
        (as_link(tarfile.SYMTYPE, "/etc/passwd"), "ram"),
        (as_link(tarfile.LNKTYPE, "state"), "ram|state"),
        (as_link(tarfile.FIFOTYPE, ""), "ram is no plain file"),
    ],
    ids=["missing", "damaged", "symlink", "hard link", "pipe"],
)
async def test_an_archive_that_lies_is_refused(
    change: Change,
    why: str,
    snapshot: Path,
    tmp_path: Path,
) -> None:
    data = retar(await packed(snapshot), change)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CorruptData, match=why):
        await take(data, target)


def of_plan(**changes: object) -> SnapshotRecord:
    return dataclasses.replace(RECORD, plan=dataclasses.replace(RECORD.plan, **changes))  # type: ignore[arg-type]


def of_instance(**changes: object) -> SnapshotRecord:
    return dataclasses.replace(RECORD, instance=dataclasses.replace(RECORD.instance, **changes))  # type: ignore[arg-type]


def of_spec(**changes: object) -> SnapshotRecord:
    return of_instance(spec=dataclasses.replace(RECORD.instance.spec, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (
            of_plan(mounts=(Mount(kind=MountKind.BIND, source="/", target="/x", tag="m0"),)),
            "asks for / of this",
        ),
        (of_spec(mounts=(MountSpec(kind=MountKind.BIND, source="/etc", target="/x"),)), "asks for /etc of"),
        (of_instance(mounts=(MountSpec(kind=MountKind.VOLUME, source="db", target="/x"),)), "asks for db of"),
        (of_spec(volumes_from=("web",)), "another instance's volumes"),
        (of_spec(isolation=Isolation.PROCESS), "no virtual machine"),
        (of_plan(isolation=Isolation.PROCESS), "no virtual machine"),
        (of_plan(machine=None), "no virtual machine"),
    ],
    ids=["plan's bind", "bind", "volume", "volumes from", "container", "container's plan", "no machine"],
)
async def test_a_record_that_asks_for_what_is_the_hosts_is_refused(
    record: SnapshotRecord, why: str, snapshot: Path, tmp_path: Path
) -> None:
    """Its digests are right: who made the archive has made them."""
    (snapshot / "snapshot.json").write_text(codec.encode(record))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CorruptData, match=why):
        await take(await packed(snapshot), target)


async def test_a_tmpfs_is_the_guests_own(snapshot: Path, tmp_path: Path) -> None:
    record = of_plan(mounts=(Mount(kind=MountKind.TMPFS, target="/x"),))
    (snapshot / "snapshot.json").write_text(codec.encode(record))
    target = tmp_path / "target"
    target.mkdir()
    assert record == await take(await packed(snapshot), target)


@pytest.mark.parametrize("data", [b"", b"junk", b"\0" * 20_000])
async def test_what_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptData):
        await take(data, tmp_path)


async def test_nothing_is_written_beside(snapshot: Path, tmp_path: Path) -> None:
    def change(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if member.name == "ram":
            member.name = "../escaped"
        return member, content

    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CorruptData):
        await unpack(pieces(retar(await packed(snapshot), change)), str(target))
    assert not (tmp_path / "escaped").exists()


def test_an_image_disk_that_was_built_anew_is_another(snapshot: Path, tmp_path: Path) -> None:
    usual, state = tmp_path / "usual.erofs", tmp_path / "state"
    state.mkdir()
    os.link(snapshot / "image.erofs", usual)
    assert str(usual) == give_image(str(snapshot), str(usual), str(state))
    usual.unlink()
    usual.write_bytes(b"another")
    for _ in range(2):
        given = give_image(str(snapshot), str(usual), str(state))
        assert str(state / "image.erofs") == given
        assert os.path.samefile(given, snapshot / "image.erofs")
