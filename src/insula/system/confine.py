"""Confine the calling process to one directory, for children that handle data from outside.  Synchronous.

Called in a fresh, single-threaded child after its last import: namespaces of its own, chroot, only the
named capabilities, no new privileges, limits, and a seccomp filter that takes away every call that
could reach another process, the network, another program or the mount table.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable

from insula.errors import Unavailable

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP = 0, 1, 3, 4, 27, 31
FILE_CAPABILITIES = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP)

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    22,
    24,
    38,
)
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9

# Denied with EPERM.  Numbers per architecture; from 424 on they are the same everywhere.
_DENIED_COMMON = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 438, 440, 442, 443)
_DENIED_X86_64 = (
    *(
        41,
        42,
        43,
        49,
        53,
        56,
        57,
        58,
        59,
        62,
        101,
        103,
        129,
        153,
        155,
        161,
        163,
        164,
        165,
        166,
        167,
        168,
        169,
    ),
    *(
        170,
        171,
        172,
        173,
        175,
        176,
        179,
        200,
        206,
        227,
        234,
        246,
        248,
        249,
        250,
        272,
        279,
        297,
        298,
        300,
        303,
    ),
    *(304, 308, 310, 311, 312, 313, 320, 321, 322, 323),
)
_DENIED_AARCH64 = (
    *(
        0,
        39,
        40,
        41,
        51,
        58,
        60,
        89,
        97,
        104,
        105,
        106,
        112,
        116,
        117,
        129,
        130,
        131,
        138,
        142,
        161,
        162,
        170,
    ),
    *(
        198,
        199,
        200,
        203,
        217,
        218,
        219,
        220,
        221,
        224,
        225,
        240,
        241,
        262,
        264,
        265,
        268,
        270,
        271,
        272,
        273,
    ),
    *(280, 281, 282, 294),
)
_ARCHITECTURES = {"x86_64": (0xC000003E, _DENIED_X86_64), "aarch64": (0xC00000B7, _DENIED_AARCH64)}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise Unavailable(f"cannot confine a child process: {what}: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, argument: int, what: str, last: int = 0) -> None:
    _checked(
        _libc.prctl(
            option, ctypes.c_ulong(argument), ctypes.c_ulong(last), ctypes.c_ulong(0), ctypes.c_ulong(0)
        ),
        what,
    )


def die_with_parent() -> None:
    """Killed when the daemon is; call it first."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL, "PR_SET_PDEATHSIG")


def own_namespaces() -> None:
    """Mounts (made here, they are seen nowhere else), network, IPC and host name of its own."""
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS), "unshare")
    from insula.system.mounts import make_private

    make_private("/")


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def _keep_capabilities(keep: Iterable[int], last: int) -> None:
    mask = sum(1 << number for number in keep)
    for number in range(last + 1):
        if not mask >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number, "PR_CAPBSET_DROP")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, "PR_CAP_AMBIENT")
    low, high = mask & 0xFFFFFFFF, mask >> 32
    head = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(head, struct.pack("=6I", low, low, 0, high, high, 0)), "capset")


def _filter_calls() -> None:
    """A BPF program: wrong architecture → kill; denied number → EPERM; x32 → EPERM; else allow."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return  # namespaces, chroot and capabilities hold there too; this filter is the second wall
    architecture, denied = _ARCHITECTURES[machine]
    load, equal, greater, done = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    numbers = sorted({*denied, *_DENIED_COMMON})
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (done, 0, 0, kill), (load, 0, 0, 0)]
    program += [(greater, len(numbers) + 1, 0, 0x40000000)]
    program += [(equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    program += [(done, 0, 0, allow), (done, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    handle = _Program(len(program), ctypes.addressof(code))
    _prctl(_PR_SET_SECCOMP, 2, "PR_SET_SECCOMP", ctypes.addressof(handle))


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def confine(
    directory_fd: int,
    *,
    capabilities: Iterable[int] = FILE_CAPABILITIES,
    memory_bytes: int = 1 << 30,
    file_bytes: int | None = None,
) -> None:
    """The directory becomes this process's whole file system; nothing outside it can be reached any more.

    Import everything before: Python's own files are out of reach too.
    """
    last_capability = _last_capability()
    os.fchdir(directory_fd)
    os.chroot(".")
    os.close(directory_fd)
    os.umask(0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_AS, memory_bytes)
    if file_bytes is not None:
        _limit(resource.RLIMIT_FSIZE, file_bytes)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")
    _keep_capabilities(capabilities, last_capability)
    _filter_calls()
