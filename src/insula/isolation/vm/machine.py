"""QEMU's command line from a decided machine.  Pure: values in, argv out; golden files hold the results.

Everything that belongs to the host (disks, sockets, taps, files for output) arrives as an open
descriptor, because QEMU runs as a user of its own in a root of its own and may open nothing.
Nothing on the kernel's command line says which instance this is, so that a template serves all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

FDS = "/fds"
"""Where QEMU sees its own descriptors as files: for memory, which it opens by a path and nothing else."""

# Slots on the root bus.  A template has one of each, used in its rehearsal and put back, so a clone's
# guest finds its
# own disks and interface where it knows them: of the same size, with the same features, not the same
# contents.
_SLOTS = {"ports": 1, "image": 2, "upper": 3, "nic": 4, "entropy": 5, "balloon": 6, "pvpanic": 7, "more": 8}
# Shares and further interfaces are behind a bridge, where a clone's guest looks anew, and where devices come
# and go while it runs.
_BRIDGE = "more"
_FIRST_SHARE = 8  # interfaces are before, each at its number
MOST_NICS = _FIRST_SHARE
MOST_SHARES = 32 - _FIRST_SHARE
"""Of a clone: a conventional PCI bus has 32 slots, the first of which is the bridge's own."""

DEFAULT_TYPE = "q35"

# What a guest costs beyond its memory: QEMU itself, device rings, and TCG's translations
OVERHEAD_MIB = 160
FIRST_DISK_SET = 16  # 1 to 3 are the files of the ports
TCG_BUFFER_MIB = 96  # 32 are flushed in the middle of booting, which doubles its time


class Accelerator(enum.StrEnum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A raw file, opened by us.  `serial` is how the agent finds it; upper disks are writable."""

    serial: str
    fd: int
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """`fd` is an open tap or macvtap device."""

    fd: int
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A directory of the host: `fd` is a socket connected to its virtiofsd."""

    tag: str
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VM, decided.  `log_fd` is /dev/null's where no log is kept: to a guest, QEMU's own chardev for
    nothing is a port where nobody ever listens, and what it writes there would wait.

    `ram_fd` is the memory file of a template (`ram_shared`: being made into one), or of one clone's own
    (`ram_shared`), or a template's that is mapped copy on write.  `state_fd`: resume from this device
    state; then `initramfs` is "", and `kernel` only a stub.  `type` is QEMU's name of the machine.
    """

    name: str
    accelerator: Accelerator
    kernel: str
    initramfs: str
    vcpus: int
    memory_mib: int
    generation: str
    control_fd: int
    qmp_fd: int
    console_fd: int
    exit_fd: int
    log_fd: int
    cpu: str
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    shares: tuple[Share, ...] = ()
    ram_fd: int = -1
    ram_shared: bool = False
    state_fd: int = -1
    type: str = DEFAULT_TYPE

    def fds(self) -> tuple[int, ...]:
        """All descriptors that QEMU must inherit."""
        own = (self.control_fd, self.qmp_fd, self.console_fd, self.exit_fd, self.log_fd)
        maybe = tuple(fd for fd in (self.ram_fd, self.state_fd) if fd >= 0)
        disks = tuple(disk.fd for disk in self.disks)
        nics = tuple(nic.fd for nic in self.nics)
        return own + maybe + disks + nics + tuple(share.fd for share in self.shares)


def finalize_kernel_arguments(accelerator: Accelerator) -> str:
    """Measured under TCG: the timer and 8042 probes, self-tests and code patching that a virtual machine
    can do without cost about a second of 3.5.

    Of the security modules those that a program uses by itself; the others would have policies only if
    somebody loaded them, and are asked about every file.  The watchdog of a CPU that hangs tells nobody.
    """
    common = (
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "cryptomgr.notests",
        "random.trust_cpu=on",
        "rcupdate.rcu_expedited=1",
        "i8042.noaux",
        "i8042.nomux",
        "i8042.nopnp",
        "i8042.dumbkbd",
        "8250.nr_uarts=1",
        "nowatchdog",
        "lsm=landlock,yama",
    )
    emulated = ("no_timer_check", "tsc=reliable", "noreplace-smp")
    return " ".join(common + (emulated if accelerator is Accelerator.TCG else ()))


def cpu_for(accelerator: Accelerator, vendor: str) -> str:
    """QEMU's CPU model.  `vendor` is the host's, as in /proc/cpuinfo."""
    if accelerator is Accelerator.TCG:
        # five-level page walks cost emulation time and give nothing; a kernel that sees ERMS clears and
        # copies memory by single bytes, which are emulated one by one: six times as slow (measured), and a
        # boot takes a tenth longer.  FSRM, which later QEMUs offer (10.0; 7.2 does not), builds on
        # ERMS: Linux 6.1 takes its memmove of long ranges for short ones, too, and hangs without the other
        return "max,la57=off,erms=off,fsrm=off"
    if vendor == "AuthenticAMD":
        # kernels offer the MSR on AMD since 6.17, and QEMU before 10.1 aborts when it cannot set it
        return "host,arch-capabilities=off"
    return "host"


def _accelerator(accelerator: Accelerator) -> list[str]:
    if accelerator is Accelerator.KVM:
        return ["-accel", "kvm"]
    return ["-accel", f"tcg,thread=multi,tb-size={TCG_BUFFER_MIB}"]


def _memory(machine: Machine) -> list[str]:
    size = f"size={machine.memory_mib}M"
    if machine.ram_fd >= 0:
        share = "on" if machine.ram_shared else "off"
        return ["-object", f"memory-backend-file,id=ram,{size},mem-path={FDS}/{machine.ram_fd},share={share}"]
    if machine.shares:  # virtiofsd maps the guest's memory
        return ["-object", f"memory-backend-memfd,id=ram,{size},share=on"]
    # not a private mapping of a memfd: every page that the guest writes would be there twice
    return ["-object", f"memory-backend-ram,id=ram,{size}"]


def _at(what: str) -> str:
    return f"addr={_SLOTS[what]}"


def _fdset(number: int, fd: int) -> list[str]:
    return ["-add-fd", f"set={number},fd={fd}"]


def _ports(machine: Machine) -> list[str]:
    """The console, QMP, and the agent's three ports.  Sets 1 to 3 are the files."""
    argv = [
        *_fdset(1, machine.console_fd),
        "-chardev", "file,id=console,path=/dev/fdset/1,append=on",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={machine.qmp_fd},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-device", "virtio-serial-pci,id=ports,disable-legacy=on,max_ports=4," + _at("ports"),
        "-chardev", f"socket,id=control,fd={machine.control_fd},server=on,wait=off",
        "-device", "virtserialport,bus=ports.0,nr=1,chardev=control,name=insula.control",
    ]  # fmt: skip
    argv += [
        *_fdset(2, machine.log_fd),
        "-chardev", "file,id=log,path=/dev/fdset/2,append=on",
        "-device", "virtserialport,bus=ports.0,nr=2,chardev=log,name=insula.log",
        *_fdset(3, machine.exit_fd),
        "-chardev", "file,id=exit,path=/dev/fdset/3,append=on",
        "-device", "virtserialport,bus=ports.0,nr=3,chardev=exit,name=insula.exit",
    ]  # fmt: skip
    return argv


def _disks(machine: Machine) -> list[str]:
    """Files below a node that stays, so that a clone which was made ahead can get others
    (`finalize_swap`)."""
    argv: list[str] = []
    for number, disk in enumerate(machine.disks):
        file_set = FIRST_DISK_SET + number
        argv += [
            *_fdset(file_set, disk.fd),
            "-blockdev", ",".join(f"{k}={_word(v)}" for k, v in file_node(disk, file_set).items()),
            "-blockdev", ",".join(f"{k}={_word(v)}" for k, v in disk_node(disk, file_set).items()),
            "-device",
            f"virtio-blk-pci,drive={disk.serial},serial={disk.serial},disable-legacy=on,{_at(disk.serial)}",
        ]  # fmt: skip
    return argv


def file_node(disk: Disk, file_set: int) -> dict[str, str | bool]:
    """As arguments of blockdev-add."""
    node: dict[str, str | bool] = {
        "driver": "file",
        "node-name": f"{disk.serial}-{file_set}",
        "filename": f"/dev/fdset/{file_set}",
        "read-only": disk.read_only,
    }
    return node if disk.read_only else node | {"discard": "unmap"}


def disk_node(disk: Disk, file_set: int) -> dict[str, str | bool]:
    """As arguments of blockdev-add and blockdev-reopen."""
    node: dict[str, str | bool] = {
        "driver": "raw",
        "node-name": disk.serial,
        "file": f"{disk.serial}-{file_set}",
        "read-only": disk.read_only,
    }
    return node if disk.read_only else node | {"discard": "unmap"}


def _word(value: str | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else value


def netdev(number: int) -> str:
    """QEMU's id of an interface's backend."""
    return f"net{number}"


def _nics(machine: Machine) -> list[str]:
    """Not announced after a state is loaded: a clone, copy or snapshot goes on under a MAC of its own."""
    argv: list[str] = []
    for number, nic in enumerate(machine.nics):
        where = _at("nic") if number == 0 else f"id=nic{number},bus={_BRIDGE},addr={number}"
        argv += [
            "-netdev", f"tap,id={netdev(number)},fd={nic.fd},vhost=off",
            "-device",
            f"virtio-net-pci,netdev={netdev(number)},mac={nic.mac},guest_announce=off,romfile=,"
            f"disable-legacy=on,{where}",
        ]  # fmt: skip
    return argv


def hot_nic(slot: int, mac: str) -> dict[str, str | bool]:
    """Arguments of device_add for one that is plugged in while the guest runs; 0 < slot < MOST_NICS.

    Of the types that QEMU gives them: 7.2 takes every one as a word, 10 does not.
    """
    return {
        "driver": "virtio-net-pci",
        "id": f"nic{slot}",
        "netdev": f"net{slot}",
        "mac": mac,
        "guest_announce": False,
        "romfile": "",
        "disable-legacy": "on",
        "bus": _BRIDGE,
        "addr": str(slot),
    }


def _shares(machine: Machine) -> list[str]:
    """Of a clone only the sockets: QEMU loads no state while it has a device that has none."""
    argv: list[str] = []
    for number, share in enumerate(machine.shares):
        argv += ["-chardev", f"socket,id=share{number},fd={share.fd}"]
        if machine.state_fd < 0:
            argv += ["-device", f"vhost-user-fs-pci,chardev=share{number},tag={share.tag}"]
    return argv


def late_devices(machine: Machine) -> list[dict[str, str]]:
    """Arguments of device_add for a clone's shares, once its state is loaded."""
    return [
        {
            "driver": "vhost-user-fs-pci",
            "id": f"fs{number}",
            "chardev": f"share{number}",
            "tag": share.tag,
            "bus": _BRIDGE,
            "addr": str(_FIRST_SHARE + number),
        }
        for number, share in enumerate(machine.shares)
    ]


def finalize_argv(machine: Machine, program: str) -> list[str]:
    """The whole command line; `program` is the path of qemu-system-x86_64."""
    return [
        program,
        "-name", f"guest={machine.name}",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", f"{machine.type},memory-backend=ram,hpet=off,smbus=off,sata=off,vmport=off,usb=off,"
                    "graphics=off,dump-guest-core=off,mem-merge=off",
        *_accelerator(machine.accelerator),
        "-cpu", machine.cpu,
        "-smp", f"{machine.vcpus},sockets=1,cores={machine.vcpus},threads=1",
        "-m", f"{machine.memory_mib}M",
        *_memory(machine),
        "-rtc", "base=utc,clock=host",
        "-kernel", machine.kernel,
        *(["-initrd", machine.initramfs] if machine.initramfs else []),
        "-append", finalize_kernel_arguments(machine.accelerator),
        *_ports(machine),
        "-device", f"pci-bridge,id={_BRIDGE},chassis_nr=1," + _at(_BRIDGE),
        *_disks(machine),
        *_nics(machine),
        "-object", "rng-random,id=entropy,filename=/dev/urandom",
        "-device", "virtio-rng-pci,rng=entropy,disable-legacy=on," + _at("entropy"),
        # the guest reports free pages, which QEMU gives back; where they are a template's, with `discard`
        "-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,disable-legacy=on," + _at("balloon"),
        "-device", f"vmgenid,guid={machine.generation}",
        "-device", "pvpanic-pci," + _at("pvpanic"),
        *_shares(machine),
        *(["-incoming", "defer"] if machine.state_fd >= 0 else []),
    ]  # fmt: skip
