"""A host with cgroup version 2 only, as a QEMU machine (TCG): Debian, its cloud kernel, and this checkout.

Users' machines are such hosts, but build machines are often not.  The Debian root is made once per machine
(mmdebstrap, from the host's own apt sources) and kept in CACHE.  Synchronous.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import insula
from insula.images.apt_sources import format_deb822, read_host_sources, translate
from insula.isolation.vm import initramfs, modules
from insula.isolation.vm.initramfs import Entry

CACHE = Path(os.environ.get("INSULA_TEST_CACHE", "/var/cache/insula-tests"))
CHECKOUT = Path(insula.__file__).parents[2]
PACKAGES = (
    *("python3", "crun", "runc", "conmon", "nftables", "iproute2", "procps", "kmod", "util-linux", "tini"),
    *("busybox-static", "golang-github-containers-common"),
)
_KERNEL = "linux-image-cloud-amd64"
_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_END = re.compile(r"^insula-host: (\d+)\s*$", re.M)
# the first program: modules, then the root: Debian below, memory above, the checkout at /work, a disk /data
_FIRST = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
while read -r module; do $b insmod /$module; done < /modules.load
$b mkdir -p /lower /upper /new
$b mount -t erofs -o ro /dev/vda /lower
$b mount -t tmpfs tmpfs /upper
$b mkdir /upper/up /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work overlay /new
$b mkdir -p /new/work /new/data
$b mount -t erofs -o ro /dev/vdb /new/work
$b mount -t ext4 /dev/vdc /new/data
$b umount /dev
exec $b switch_root /new /bin/sh /work/init
"""
# the second: what an init system does for a host, then the command
_SECOND = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup
mount --make-rshared /
ip link set lo up
hostname cgroup2
site=$(python3 -ISc 'import site; print(site.getsitepackages()[0])')
mkdir -p $site /data/tmp && mount --bind /work/site $site
export PYTHONPATH=/work/src:/work/tests PYTHONDONTWRITEBYTECODE=1 TMPDIR=/data/tmp
cd /work
setsid -w /bin/sh /work/command </dev/null; code=$?
sync
echo "insula-host: $code"
echo o > /proc/sysrq-trigger
while :; do sleep 1; done
"""


@dataclass(frozen=True, slots=True)
class Host:
    """What it boots from: `root` is an erofs image."""

    kernel: str
    initramfs: str
    root: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """`code` is the command's, None when it never ended."""

    code: int | None
    console: str


def make_host() -> Host:
    """The one in the cache, or a new one: a minute, and 60 MB from the distribution's archive."""
    theirs = _run("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    ours = "{}.{}".format(*sys.version_info)
    assert ours == theirs, f"Python {ours} runs the tests, but its packages must suit Debian's {theirs} too"
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    recipe = "\n".join((suite, *PACKAGES, *_LEFT_OUT, _FIRST))
    place = CACHE / f"host-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp-host-", dir=CACHE) as scratch:
            _build(Path(scratch), suite)
            with contextlib.suppress(OSError):  # another test run was faster
                os.rename(f"{scratch}/made", place)
            assert place.exists()
    return Host(str(place / "vmlinuz"), str(place / "initramfs"), str(place / "root.erofs"))


def _build(scratch: Path, suite: str) -> None:
    os.chmod(scratch, 0o755)
    root, made = scratch / "root", scratch / "made"
    made.mkdir()
    (scratch / "host.sources").write_text(format_deb822(translate(read_host_sources(), suite, suite)))
    proxies = [
        f'--aptopt=Acquire::{scheme}::Proxy "{value}"'
        for scheme in ("http", "https")
        if (value := _run("apt-config", "dump", "--format", "%v", f"Acquire::{scheme}::Proxy").strip())
    ]
    _run("unshare", "--mount",  # from 1.5 on it makes all mounts private
         "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
         *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
         *proxies, suite, str(root), str(scratch / "host.sources"))  # fmt: skip
    shown = _run("apt-cache", "depends", "--important", _KERNEL)
    name = re.findall(r"Depends: (linux-image-[0-9][^\s<>]*)", shown)[0]
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name, cwd=scratch)
    _run("dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), str(scratch / "kernel"))
    kernel = next((scratch / "kernel/boot").glob("vmlinuz-*"))
    release = kernel.name.partition("-")[2]
    tree = next(p for p in (scratch / "kernel").glob(f"**/lib/modules/{release}") if p.is_dir())
    shutil.copytree(tree, root / "usr/lib/modules" / release, symlinks=True)
    _run("depmod", "-b", str(root), release)
    shutil.copyfile(kernel, made / "vmlinuz")
    order = modules.resolve(
        modules.find_modules(str(tree)),
        modules.find_builtin(str(tree)),
        ("virtio_pci", "virtio_blk", "erofs", "overlay", "ext4", "virtio_rng"),
        (),
    )
    entries = initramfs.finalize_entries(_FIRST.encode(), order)
    entries += [Entry("bin", 0o040755), Entry("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes())]
    (made / "initramfs").write_bytes(initramfs.make_cpio(entries))
    _run("mkfs.erofs", str(made / "root.erofs"), str(root))


def run_on_host(host: Host, command: str, scratch: Path, *, limit_s: float) -> Outcome:
    """Boot it, run `command` (a shell script, in /work) in it, and switch it off."""
    outcome = _run_once(host, command, scratch, limit_s=limit_s)
    if outcome.code is None and "soft lockup" in outcome.console:
        # QEMU 7.2's two emulated CPUs wait for each other for ever, once in a while on a busy host
        outcome = _run_once(host, command, scratch, limit_s=limit_s)
    return outcome


def _run_once(host: Host, command: str, scratch: Path, *, limit_s: float) -> Outcome:
    _run("mkfs.erofs", str(scratch / "work.erofs"), str(_make_work(scratch / "work", command)))
    with open(scratch / "data.ext4", "wb") as disk:
        disk.truncate(4 << 30)
    _run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1", str(scratch / "data.ext4"))
    disks = ((host.root, "on"), (scratch / "work.erofs", "on"), (scratch / "data.ext4", "off"))
    console = scratch / "console"
    argv = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off,erms=off,fsrm=off",
        "-smp", "2", "-m", "1280", "-kernel", host.kernel, "-initrd", host.initramfs,
        "-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all no_timer_check tsc=reliable "
        "mitigations=off cryptomgr.notests random.trust_cpu=on watchdog_thresh=60 softlockup_panic=1",
        "-serial", f"file:{console}", "-device", "virtio-rng-pci",
        *(word for path, access in disks
          for word in ("-drive", f"file={path},format=raw,if=virtio,cache=unsafe,read-only={access}")),
    ]  # fmt: skip
    with open(scratch / "qemu.log", "wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        child.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        child.kill()
        child.wait()
        for path in (scratch / "work.erofs", scratch / "data.ext4"):
            path.unlink()
        shutil.rmtree(scratch / "work")
    said = console.read_text(errors="replace") if console.exists() else ""
    end = _END.search(said.replace("\r", ""))
    return Outcome(int(end[1]) if end else None, said + (scratch / "qemu.log").read_text(errors="replace"))


def _make_work(work: Path, command: str) -> Path:
    """What becomes /work: this checkout, and the Python packages that it needs to run its tests."""
    ignore = shutil.ignore_patterns(".*", "__pycache__")
    for name in ("src", "tests"):
        shutil.copytree(CHECKOUT / name, work / name, ignore=ignore)
    shutil.copyfile(CHECKOUT / "pyproject.toml", work / "pyproject.toml")
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    for distribution in _closure((*wanted, *_TOOLS)):
        for file in distribution.files or ():
            source, target = Path(str(distribution.locate_file(file))), work / "site" / file
            if ".." not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    # compiling is what takes longest in there; unchecked, for the host's Python is the same
    _run(sys.executable, "-m", "compileall", "-q", "-j2", "--invalidation-mode", "unchecked-hash",
         str(work / "src"), str(work / "site"))  # fmt: skip
    (work / "init").write_text(_SECOND)
    (work / "command").write_text(command)
    return work


def _closure(requirements: tuple[str, ...]) -> Iterator[importlib.metadata.Distribution]:
    """The distributions that meet them, and theirs; those of extras and other platforms are not installed."""
    waiting, seen = list(requirements), set[str]()
    while waiting:
        text = waiting.pop()
        match = re.match(r"[A-Za-z0-9._-]+", text)
        assert match is not None, text
        name = re.sub(r"[-_.]+", "-", match[0]).lower()
        if name in seen or "extra ==" in text:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += found.requires or []
        yield found


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr[-2000:]}"
    return done.stdout
