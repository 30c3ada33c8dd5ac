"""QEMU's command line from a decided machine.  Pure: values in, argv out; golden files hold the results.

Everything that belongs to the host (disks, sockets, taps, files for output) arrives as an open
descriptor, because QEMU runs as a user of its own in a root of its own and may open nothing.
Nothing on the kernel's command line says which instance this is, so that a template serves all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

# What a guest costs beyond its memory: QEMU itself, device rings, and TCG's translations
OVERHEAD_MIB = 160
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
    """`fd` is an open tap device."""

    fd: int
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A directory of the host: `fd` is a socket connected to its virtiofsd."""

    tag: str
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VM, decided.  `log_fd` -1: the log goes nowhere."""

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
    cpu: str
    log_fd: int = -1
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    shares: tuple[Share, ...] = ()

    def fds(self) -> tuple[int, ...]:
        """All descriptors that QEMU must inherit."""
        own = (self.control_fd, self.qmp_fd, self.console_fd, self.exit_fd)
        log = (self.log_fd,) if self.log_fd >= 0 else ()
        disks = tuple(disk.fd for disk in self.disks)
        nics = tuple(nic.fd for nic in self.nics)
        return own + log + disks + nics + tuple(share.fd for share in self.shares)


def finalize_kernel_arguments(accelerator: Accelerator) -> str:
    """Measured under TCG: the timer and 8042 probes, self-tests and code patching that a virtual machine
    can do without cost about a second of 3.5."""
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
    )
    emulated = ("no_timer_check", "tsc=reliable", "noreplace-smp")
    return " ".join(common + (emulated if accelerator is Accelerator.TCG else ()))


def cpu_for(accelerator: Accelerator, vendor: str) -> str:
    """QEMU's CPU model.  `vendor` is the host's, as in /proc/cpuinfo."""
    if accelerator is Accelerator.TCG:
        return "max,la57=off"  # five-level page walks cost emulation time and give nothing
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
    if machine.shares:  # virtiofsd maps the guest's memory
        return ["-object", f"memory-backend-memfd,id=ram,{size},share=on"]
    # not a private mapping of a memfd: every page that the guest writes would be there twice
    return ["-object", f"memory-backend-ram,id=ram,{size}"]


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
        "-device", "virtio-serial-pci,id=ports,disable-legacy=on,max_ports=4",
        "-chardev", f"socket,id=control,fd={machine.control_fd},server=on,wait=off",
        "-device", "virtserialport,bus=ports.0,nr=1,chardev=control,name=insula.control",
    ]  # fmt: skip
    if machine.log_fd >= 0:
        argv += [*_fdset(2, machine.log_fd), "-chardev", "file,id=log,path=/dev/fdset/2,append=on"]
    else:
        argv += ["-chardev", "null,id=log"]
    argv += [
        "-device", "virtserialport,bus=ports.0,nr=2,chardev=log,name=insula.log",
        *_fdset(3, machine.exit_fd),
        "-chardev", "file,id=exit,path=/dev/fdset/3,append=on",
        "-device", "virtserialport,bus=ports.0,nr=3,chardev=exit,name=insula.exit",
    ]  # fmt: skip
    return argv


def _disks(machine: Machine) -> list[str]:
    argv: list[str] = []
    for number, disk in enumerate(machine.disks, start=16):
        mode = "read-only=on" if disk.read_only else "read-only=off,discard=unmap"
        argv += [
            *_fdset(number, disk.fd),
            "-blockdev", f"driver=file,node-name={disk.serial},filename=/dev/fdset/{number},{mode}",
            "-device", f"virtio-blk-pci,drive={disk.serial},serial={disk.serial},disable-legacy=on",
        ]  # fmt: skip
    return argv


def _nics(machine: Machine) -> list[str]:
    argv: list[str] = []
    for number, nic in enumerate(machine.nics):
        argv += [
            "-netdev", f"tap,id=net{number},fd={nic.fd},vhost=off",
            "-device", f"virtio-net-pci,netdev=net{number},mac={nic.mac},romfile=,disable-legacy=on",
        ]  # fmt: skip
    return argv


def _shares(machine: Machine) -> list[str]:
    argv: list[str] = []
    for number, share in enumerate(machine.shares):
        argv += [
            "-chardev", f"socket,id=share{number},fd={share.fd}",
            "-device", f"vhost-user-fs-pci,chardev=share{number},tag={share.tag}",
        ]  # fmt: skip
    return argv


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
        "-machine", "q35,memory-backend=ram,hpet=off,smbus=off,sata=off,vmport=off,usb=off,graphics=off,"
                    "dump-guest-core=off,mem-merge=off",
        *_accelerator(machine.accelerator),
        "-cpu", machine.cpu,
        "-smp", f"{machine.vcpus},sockets=1,cores={machine.vcpus},threads=1",
        "-m", f"{machine.memory_mib}M",
        *_memory(machine),
        "-rtc", "base=utc,clock=host",
        "-kernel", machine.kernel,
        "-initrd", machine.initramfs,
        "-append", finalize_kernel_arguments(machine.accelerator),
        *_ports(machine),
        *_disks(machine),
        *_nics(machine),
        *_shares(machine),
        "-object", "rng-random,id=entropy,filename=/dev/urandom",
        "-device", "virtio-rng-pci,rng=entropy,disable-legacy=on",
        "-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,disable-legacy=on",
        "-device", f"vmgenid,guid={machine.generation}",
        "-device", "pvpanic-pci",
    ]  # fmt: skip
