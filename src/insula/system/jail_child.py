"""Confines itself, then becomes another program: `main`, with SPEC ARGV… as arguments.  Synchronous.

A stage of its own because this cannot be done between fork and exec of a program with threads and an
event loop.  It imports nothing of ours and little of Python's, as it starts with every VM: `json` alone would
double what that takes.  What it does is decided in `jail`; SPEC is a dict with the keys that `main` reads,
by `marshal`, in hexadecimal digits (`jail.Confinement.encode`).
"""

import ctypes
import marshal
import os
import sys

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x40000000
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
SYS_PIVOT_ROOT, SYS_MOUNT_SETATTR = 155, 442
AT_RECURSIVE, AT_FDCWD = 0x8000, -100
MOUNT_ATTR_RDONLY = 1


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    check(
        _libc.mount(
            source.encode() or None,
            target.encode(),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mounting {source or kind} at {target}",
    )


def make_read_only(target: str, recursive: bool) -> None:
    """Every mount below `target`, where the kernel can (5.12)."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    number = ctypes.c_long(SYS_MOUNT_SETATTR)
    done = _libc.syscall(
        number, AT_FDCWD, target.encode(), flags, ctypes.byref(attributes), ctypes.c_size_t(32)
    )
    if done != 0 and recursive:
        check(done, f"making {target} read-only with all that is mounted below")
    if done != 0:
        mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def bind(source: str, target: str, read_only: bool, recursive: bool = False) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab"):
            pass
    mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))
    if read_only:
        make_read_only(target, recursive)


def make_root(root: dict) -> None:  # type: ignore[type-arg]
    """A root that holds only what is listed.  `links` are symlinks, `binds` are [source, target, read-only],
    `nodes` are [path, device, owner]: made, because the host's /dev/kvm is for a group of the host's."""
    new = root["at"]
    mount("tmpfs", new, "tmpfs", MS_NOSUID, "size=1m,mode=0755")
    for target, text in root["links"]:
        os.makedirs(os.path.dirname(new + target), exist_ok=True)
        os.symlink(text, new + target)
    for source, target, read_only in root["binds"]:
        bind(source, new + target, read_only)
    for path, device, owner in root["nodes"]:
        os.makedirs(os.path.dirname(new + path), exist_ok=True)
        os.mknod(new + path, 0o020600, device)
        os.chown(new + path, owner, owner)
    os.chdir(new)
    check(_libc.syscall(ctypes.c_long(SYS_PIVOT_ROOT), b".", b"."), "changing the root")
    check(_libc.umount2(b".", MNT_DETACH), "leaving the old root")
    os.chdir("/")
    make_read_only("/", False)


def drop_capabilities() -> None:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)


def close_others(keep: list[int]) -> None:
    """What the daemon itself inherited without close-on-exec is not for a confined program."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor that listed the directory


def copy_memory(source: int, target: int) -> None:
    """What is no hole; `target` is as long, and all hole."""
    end = os.fstat(source).st_size
    at = 0
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            break  # only a hole is left
        stop = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < stop:
            at += os.sendfile(target, source, at, stop - at)
    os.close(source)


def main() -> None:
    try:
        _confine()
    except OSError as error:
        sys.stderr.write(f"insula: cannot confine {sys.argv[2]}: {error}\n")
        sys.exit(126)


def _confine() -> None:
    spec = marshal.loads(bytes.fromhex(sys.argv[1]))  # noqa: S302 - the daemon's, which has just made it
    argv = sys.argv[2:]
    close_others(spec["keep"])
    for path in spec.get("cgroups", ()):
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    for source, target in spec.get("copies", ()):
        copy_memory(source, target)
    if spec.get("cpus"):
        os.sched_setaffinity(0, spec["cpus"])
    flags = CLONE_NEWNS | (CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS if spec.get("private") else 0)
    check(_libc.unshare(flags), "making namespaces")
    mount("", "/", "", MS_REC | MS_PRIVATE)
    for share in spec.get("shares", ()):
        os.makedirs(share["at"], exist_ok=True)
        if share["file"]:
            mount("tmpfs", share["at"], "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,mode=0755")
            bind(share["source"], share["at"] + "/" + share["file"], share["read_only"])
        else:
            bind(share["source"], share["at"], share["read_only"], share["recursive"])
    if spec.get("uid"):
        drop_capabilities()
    if spec.get("root"):
        make_root(spec["root"])
    if spec.get("uid"):
        os.setgroups([])
        os.setresgid(*[spec["uid"]] * 3)
        os.setresuid(*[spec["uid"]] * 3)
        check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "giving up new privileges")
    os.umask(0o077)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    if spec.get("preload"):
        environment["LD_PRELOAD"] = spec["preload"]
    os.execve(argv[0], argv, environment)
