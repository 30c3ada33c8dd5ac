"""The guest's own parts on the host: kernel, modules, initramfs.  Async; heavy work in threads.

`<data_root>/guest/<kernel release>/` holds `vmlinuz`, `vmlinux` (for TCG, where it has a PVH entry),
`lib/modules` and `initramfs-<key>.cpio`; it is filled once, replaced only as a whole.  Kernels come from the
distribution's package (unpacked, not installed), else from the host's own /boot.  Not for booting.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import insula
from insula.errors import (
    CorruptData,
    Failure,
    InsulaError,
    ProgramMissing,
    RuntimeFailed,
    Unavailable,
)
from insula.isolation.vm import initramfs, modules, rehearsal
from insula.isolation.vm.kernel import extract_vmlinux, has_pvh_entry, make_stub
from insula.isolation.vm.machine import Accelerator
from insula.model.progress import Progress, no_progress
from insula.model.root import IMAGE_DISK_BYTES
from insula.system.files import disk_errors, remove_tree, write_atomic
from insula.system.run import arun, find_program, need_program, run

AGENT = os.path.join(os.path.dirname(insula.__file__), "_guest", "agent-x86_64")
_STUB = ".stub"
_CONFIG = "config"
_PACKAGE = "linux-image-cloud-amd64"
_KEEP_S = 7 * 86400
_RELEASE = re.compile(r"[0-9][0-9A-Za-z.+~_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """`vmlinux` is "" where the kernel has no PVH entry.  `rehearsal` is the image disk of rehearsals.
    `directory` holds all of them."""

    release: str
    directory: str
    vmlinuz: str
    vmlinux: str
    initramfs: str
    rehearsal: str = ""

    def kernel_for(self, accelerator: Accelerator) -> str:
        return self.vmlinux if accelerator is Accelerator.TCG and self.vmlinux else self.vmlinuz

    def stub_for(self, accelerator: Accelerator) -> str:
        """In the place of the kernel, for clones."""
        return f"{self.kernel_for(accelerator)}{_STUB}"


@functools.lru_cache(maxsize=8)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(guest: Guest, accelerator: Accelerator) -> str:
    """Of the bytes that a VM boots: kernel and initramfs.  Reads them once."""
    found = []
    for path in (guest.kernel_for(accelerator), guest.initramfs):
        stat = os.stat(path)
        found.append(_digest(path, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(" ".join(found).encode()).hexdigest()


def version_key(release: str) -> tuple[tuple[int, str], ...]:
    """Order of kernel releases: runs of digits by value."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", release) if part
    )


def _read_agent() -> bytes:
    try:
        with open(AGENT, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise Unavailable(
            f"the guest agent is missing: {AGENT}",
            hint="build it: python guest/build.py, or install the wheel",
        ) from None


def _kernels(data_root: str) -> list[str]:
    base = os.path.join(data_root, "guest")
    with contextlib.suppress(FileNotFoundError):
        found = [name for name in os.listdir(base) if os.path.exists(os.path.join(base, name, "vmlinuz"))]
        return sorted((n for n in found if _RELEASE.fullmatch(n)), key=version_key)
    return []


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _complete(directory: str, release: str) -> Guest:
    """Build what a kernel directory lacks: vmlinux, and this agent's initramfs.  Seconds, once."""
    vmlinuz, vmlinux = os.path.join(directory, "vmlinuz"), os.path.join(directory, "vmlinux")
    tree = os.path.join(directory, "lib", "modules", release)
    if not os.path.exists(vmlinux):
        try:
            plain = extract_vmlinux(_read(vmlinuz))
        except CorruptData:
            plain = b""  # a compression we do not know: QEMU boots the bzImage
        write_atomic(vmlinux, plain if has_pvh_entry(plain) else b"", 0o644)
    for path in (vmlinuz, vmlinux):
        if os.path.getsize(path) and not os.path.exists(path + _STUB):
            write_atomic(path + _STUB, make_stub(_read(path)), 0o644)
    agent = _read_agent()
    order = modules.resolve(modules.find_modules(tree), modules.find_builtin(tree))
    if modules.may_be_unsigned(_read_config(directory)):
        order = [dataclasses.replace(one, data=modules.without_signature(one.data)) for one in order]
    archive = os.path.join(directory, f"initramfs-{initramfs.key_of(agent, order)}.cpio")
    if not os.path.exists(archive):
        _forget_old(directory)
        write_atomic(archive, initramfs.make_cpio(initramfs.finalize_entries(agent, order)), 0o644)
    rehearsal_disk = os.path.join(directory, f"rehearsal-{hashlib.sha256(agent).hexdigest()[:16]}.erofs")
    if not os.path.exists(rehearsal_disk):
        _make_rehearsal_disk(rehearsal_disk, agent)
    return Guest(
        release=release,
        directory=directory,
        vmlinuz=vmlinuz,
        vmlinux=vmlinux if os.path.getsize(vmlinux) else "",
        initramfs=archive,
        rehearsal=rehearsal_disk,
    )


def _read_config(directory: str) -> str:
    """The kernel's; empty when it came without."""
    with contextlib.suppress(FileNotFoundError):
        return _read(os.path.join(directory, _CONFIG)).decode(errors="replace")
    return ""


def _make_rehearsal_disk(path: str, agent: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=os.path.dirname(path)) as scratch:
        root, disk = os.path.join(scratch, "root"), os.path.join(scratch, "disk")
        os.mkdir(root, 0o755)
        rehearsal.make_root(root, agent)
        run([need_program("mkfs.erofs"), "--quiet", "-T0", disk, root])
        os.truncate(disk, IMAGE_DISK_BYTES)
        os.chmod(disk, 0o444)
        os.rename(disk, path)


def _forget_old(directory: str) -> None:
    """Archives of other agents that nothing has used for a week; QEMU has read its own when it starts."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if name.startswith(("initramfs-", "rehearsal-")) and time.time() - os.stat(path).st_mtime > _KEEP_S:
            os.unlink(path)


def find_guest(data_root: str, kernel: str = "") -> Guest | None:
    """The newest guest that is there, completed for the present agent; None if there is no kernel yet.

    `kernel` (settings.vm_kernel) asks for one made from that file.  Synchronous, 20 ms when complete.
    """
    names = [_release_of(kernel)] if kernel else _kernels(data_root)
    for release in reversed(names):
        directory = os.path.join(data_root, "guest", release)
        if os.path.exists(os.path.join(directory, "vmlinuz")):
            return _complete(directory, release)
    return None


def _release_of(vmlinuz: str) -> str:
    """From the file's name, `vmlinuz-<release>`.  Raises Unavailable when it has none."""
    release = os.path.basename(os.path.realpath(vmlinuz)).partition("-")[2]
    if not _RELEASE.fullmatch(release):
        raise Unavailable(
            f"vm-kernel: the name of {vmlinuz} does not say its release", hint="name it vmlinuz-<release>"
        )
    return release


async def make_guest(data_root: str, progress: Progress = no_progress, *, kernel: str = "") -> Guest:
    """find_guest, or get a kernel first: `kernel`, else the distribution's package, else the host's.

    Raises Unavailable when there is none to be had, with the reasons.
    """
    with contextlib.suppress(RuntimeFailed):  # it lacks a module that this version loads: make it anew
        found = await asyncio.to_thread(find_guest, data_root, kernel)
        if found is not None:
            return found
    base = os.path.join(data_root, "guest")
    os.makedirs(base, mode=0o755, exist_ok=True)
    reasons: list[str] = []
    steps: list[Callable[[str], object]] = []
    with (
        disk_errors("unpacking the guest kernel"),
        tempfile.TemporaryDirectory(prefix="tmp-", dir=base) as temporary,
    ):
        os.chmod(temporary, 0o755)
        if not kernel:
            try:
                await _download(temporary, progress)
                steps.append(lambda d: d)
            except InsulaError as error:
                reasons.append(str(error))
        tree = os.path.join(temporary, "root")
        source, modules_root = _newest(tree) if steps else (kernel or _host_kernel(), "")
        if not source:
            raise Unavailable(
                f"no guest kernel: {'; '.join(reasons) or 'none on this host'}",
                hint=f"apt-get update, for {_PACKAGE}; or set vm-kernel to a vmlinuz-<release>",
            )
        release = _release_of(source)
        where = modules_root or _host_modules(source, release)
        progress("Preparing the guest kernel", id=release)
        await asyncio.to_thread(_place, source, where, release, temporary, base)
    made = await asyncio.to_thread(find_guest, data_root, kernel)
    if made is None:
        raise Failure(f"the guest kernel in {base} vanished while it was being prepared")
    progress("Guest ready", id=made.release)
    return made


def _place(source: str, module_tree: str, release: str, temporary: str, base: str) -> None:
    """Copy kernel and modules beside each other, complete them, and move the whole to its name."""
    fresh = os.path.join(temporary, "fresh")
    os.makedirs(os.path.join(fresh, "lib", "modules"), mode=0o755)
    shutil.copyfile(source, os.path.join(fresh, "vmlinuz"))
    os.chmod(os.path.join(fresh, "vmlinuz"), 0o644)  # /boot's are 0600, and QEMU is not root
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(
            os.path.join(os.path.dirname(source), f"config-{release}"), os.path.join(fresh, _CONFIG)
        )
    _copy_modules(module_tree, os.path.join(fresh, "lib", "modules", release))
    _complete(fresh, release)
    target = os.path.join(base, release)
    remove_tree(target)
    os.rename(fresh, target)


def _copy_modules(tree: str, target: str) -> None:
    """Only the modules that a guest loads, not the whole distribution's."""
    os.makedirs(target, mode=0o755)
    builtin = os.path.join(tree, "modules.builtin")
    if os.path.exists(builtin):
        shutil.copyfile(builtin, os.path.join(target, "modules.builtin"))
    for module in modules.resolve(modules.find_modules(tree), modules.find_builtin(tree)):
        copy = os.path.join(target, os.path.relpath(module.path, tree))
        os.makedirs(os.path.dirname(copy), mode=0o755, exist_ok=True)
        shutil.copyfile(module.path, copy)


async def _download(temporary: str, progress: Progress) -> None:
    """Get and unpack the package that the metapackage stands for.  Raises ProgramMissing, ProgramFailed."""
    if find_program("apt-cache") is None:
        raise ProgramMissing("apt-cache", package="apt")
    progress("Looking for a kernel", id=_PACKAGE)
    shown = await arun([need_program("apt-cache"), "depends", "--important", _PACKAGE])
    names = re.findall(r"Depends: (linux-image-[0-9][^\s<>]*)", shown.stdout.decode(errors="replace"))
    if not names:
        raise Unavailable(f"apt knows no kernel for {_PACKAGE}", hint="apt-get update")
    progress("Downloading", id=names[0])
    # the sandbox user _apt may not write below the data root
    await arun(
        [need_program("apt-get"), "-q", "-o", "APT::Sandbox::User=root", "download", names[0]], cwd=temporary
    )
    package = next((n for n in os.listdir(temporary) if n.endswith(".deb")), None)
    if package is None:
        raise Failure(f"apt-get download {names[0]} left no package")
    progress("Extracting", id=names[0])
    tree = os.path.join(temporary, "root")
    await arun([need_program("dpkg-deb"), "-x", os.path.join(temporary, package), tree])


def _newest(tree: str) -> tuple[str, str]:
    """Kernel and module directory in an unpacked package; Debian 13 keeps modules below usr/."""
    boot = os.path.join(tree, "boot")
    kernels = [n for n in os.listdir(boot) if n.startswith("vmlinuz-")] if os.path.isdir(boot) else []
    if not kernels:
        return "", ""
    name = max(kernels, key=version_key)
    source = os.path.join(boot, name)
    release = _release_of(source)
    for library in ("lib", "usr/lib"):
        candidate = os.path.join(tree, library, "modules", release)
        if os.path.isdir(candidate):
            return source, candidate
    return "", ""


def _host_kernel() -> str:
    kernels = [n for n in os.listdir("/boot") if n.startswith("vmlinuz-")] if os.path.isdir("/boot") else []
    have = [n for n in kernels if os.path.isdir(f"/lib/modules/{n.partition('-')[2]}")]
    return f"/boot/{max(have, key=version_key)}" if have else ""


def _host_modules(source: str, release: str) -> str:
    """The module tree beside a kernel: …/boot/vmlinuz-R goes with …/lib/modules/R."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(source)))
    for candidate in (os.path.join(prefix, "lib/modules", release), f"/lib/modules/{release}"):
        if os.path.isdir(candidate):
            return candidate
    raise Unavailable(f"there are no modules for {source}", hint=f"install them in /lib/modules/{release}")
