"""One machine, its command line, byte for byte; regenerate with INSULA_GOLDEN=write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from insula.isolation.plan import Console, Device, ExecPlan, GuestMachine, LaunchPlan, Process, Security
from insula.isolation.vm import confine, messages
from insula.isolation.vm.machine import (
    Accelerator,
    Disk,
    Machine,
    Nic,
    Share,
    cpu_for,
    finalize_argv,
    hot_nic,
    late_devices,
)
from insula.isolation.vm.virtiofs import Virtiofsd
from insula.isolation.vm.virtiofs import finalize_argv as share_argv
from insula.model.isolation import Isolation
from insula.model.limits import Limits, Ulimit
from insula.model.mounts import EtcFile, Mount, MountKind
from insula.model.network import Endpoint, LinkKind
from insula.model.root import DiskRoot

GOLDEN = Path(__file__).parent / "golden"

MACHINE = Machine(
    name="0123456789ab",
    accelerator=Accelerator.TCG,
    kernel="/guest/vmlinux",
    initramfs="/guest/initramfs-00.cpio",
    vcpus=2,
    memory_mib=256,
    generation="b5a0a1c4-0000-4000-8000-000000000000",
    control_fd=20,
    qmp_fd=21,
    console_fd=22,
    exit_fd=23,
    log_fd=24,
    cpu=cpu_for(Accelerator.TCG, "AuthenticAMD"),
    disks=(Disk(serial="image", fd=25, read_only=True), Disk(serial="upper", fd=26, read_only=False)),
    nics=(Nic(fd=27, mac="02:42:ac:1d:00:02"),),
)
KVM = Machine(
    name="0123456789ab",
    accelerator=Accelerator.KVM,
    kernel="/guest/vmlinuz",
    initramfs="/guest/initramfs-00.cpio",
    vcpus=1,
    memory_mib=512,
    generation="b5a0a1c4-0000-4000-8000-000000000000",
    control_fd=20,
    qmp_fd=21,
    console_fd=22,
    exit_fd=23,
    log_fd=24,
    cpu=cpu_for(Accelerator.KVM, "AuthenticAMD"),
    disks=(Disk(serial="image", fd=25, read_only=True), Disk(serial="upper", fd=26, read_only=False)),
    shares=(Share(tag="m0", fd=28), Share(tag="m1", fd=29)),
)
TEMPLATE = dataclasses.replace(MACHINE, ram_fd=30, ram_shared=True)
CLONE = dataclasses.replace(
    TEMPLATE, ram_fd=31, ram_shared=False, state_fd=32, kernel="/guest/vmlinux.stub", initramfs=""
)
CLONE_SHARES = dataclasses.replace(
    KVM,
    ram_fd=33,
    ram_shared=True,
    state_fd=32,
    kernel="/guest/vmlinuz.stub",
    initramfs="",
    nics=(MACHINE.nics[0], Nic(fd=34, mac="02:42:ac:1e:00:02")),
)
COPY = dataclasses.replace(
    KVM,
    ram_fd=33,
    ram_shared=True,
    state_fd=32,
    kernel="/guest/vmlinuz.stub",
    initramfs="",
    nics=MACHINE.nics,
    shares=(),
    type="pc-q35-7.2",
)
PLAN = LaunchPlan(
    id="0123456789ab" + "0" * 52,
    isolation=Isolation.VM,
    state_dir="/var/lib/insula/instances/x",
    run_dir="/run/insula/instances/x",
    hostname="isle",
    domainname="example.org",
    process=Process(args=("sh", "-c", "echo hi"), env=("PATH=/bin", "A=b\nc"), cwd="/srv", user="ann:2000",
                    groups=("wheel",), tty=True, console_rows=24, console_cols=80),
    console=Console(open_stdin=True, stdin_once=True, log_path="/var/lib/insula/instances/x/log"),
    limits=Limits(memory_bytes=100 << 20, pids=100, shm_size_bytes=1 << 20,
                  ulimits=(Ulimit(name="nofile", soft=1, hard=2),)),
    security=Security(capabilities=("CAP_CHOWN", "CAP_KILL"), seccomp="", masked_paths=("/proc/kcore",),
                      readonly_paths=("/proc/sys",), no_new_privileges=True, read_only_root=True,
                      devices=(Device(host_path="/dev//fuse", path="/dev/sub/../f", rules="rw"),),
                      device_rules=("b 8:* r",), sysctls=(("net.ipv4.ip_forward", "1"),)),
    disk=DiskRoot(image_disk="/i", upper_disk="/u"),
    machine=GuestMachine(vcpus=1, memory_mib=256),
    mounts=(
        Mount(kind=MountKind.BIND, target="/data", source="/srv/data", read_only=True, tag="m0"),
        Mount(kind=MountKind.BIND, target="/etc/x.conf", source="/srv/x.conf", tag="m1"),
        Mount(kind=MountKind.TMPFS, target="/scratch", options=("size=64m", "mode=1777")),
    ),
    etc_files=(EtcFile(target="/etc/hosts", text="127.0.0.1\tlocalhost\n", host_path="/h"),),
    endpoints=(
        Endpoint(network_id="n", network_name="bridge", kind=LinkKind.TAP, link="iv0123456789", interface="eth0",  # noqa: E501
                 mac="02:42:ac:1d:00:02", address="172.29.0.2", prefix_len=16, gateway="172.29.0.1"),
    ),
    init=True,
)  # fmt: skip


def lay_out(argv: list[str]) -> str:
    """An option and its value on one line."""
    lines: list[str] = []
    for word in argv:
        if word.startswith("-") or not lines or " " in lines[-1]:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1].startswith("-") else f"\n{word}"
    return "\n".join(lines) + "\n"


def pairs_text(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"{key} = {value!r}\n" for key, value in pairs)


CASES = {
    "vm-tcg.argv": lay_out(finalize_argv(MACHINE, "/usr/bin/qemu-system-x86_64")),
    "vm-kvm-shares.argv": lay_out(finalize_argv(KVM, "/usr/bin/qemu-system-x86_64")),
    "vm-template.argv": lay_out(finalize_argv(TEMPLATE, "/usr/bin/qemu-system-x86_64")),
    "vm-clone.argv": lay_out(finalize_argv(CLONE, "/usr/bin/qemu-system-x86_64")),
    "vm-clone-kvm-shares.argv": lay_out(finalize_argv(CLONE_SHARES, "/usr/bin/qemu-system-x86_64")),
    "vm-copy-kvm.argv": lay_out(finalize_argv(COPY, "/usr/bin/qemu-system-x86_64")),
    "vm-renew.fields": pairs_text(messages.renew(PLAN)),
    "vm-virtiofsd-c.argv": lay_out(share_argv(Virtiofsd("/usr/lib/qemu/virtiofsd", False), "/run/s/m0", 9)),
    "vm-virtiofsd-rust.argv": lay_out(share_argv(Virtiofsd("/usr/libexec/virtiofsd", True), "/run/s/m0", 9)),
    "vm-configure.fields": pairs_text(messages.configure(PLAN, {"m1": "x.conf"}, rescan=True)),
    "vm-workload.fields": pairs_text(messages.workload(PLAN)),
    "vm-exec.fields": pairs_text(
        messages.further(PLAN, ExecPlan(id="e", process=Process(args=("id",), env=())), ("CAP_SYS_ADMIN",))
    ),
    "vm-exec-privileged.fields": pairs_text(
        messages.further(
            PLAN, ExecPlan(id="e", process=Process(args=("id",), env=()), privileged=True), ("CAP_SYS_ADMIN",)
        )
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_decided_is_as_before(name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("INSULA_GOLDEN") == "write":
        path.write_text(CASES[name])
    assert path.read_text() == CASES[name]


def test_qemu_inherits_what_its_command_line_names_and_no_more() -> None:
    assert (20, 21, 22, 23, 24, 25, 26, 27) == MACHINE.fds()
    assert (20, 21, 22, 23, 24, 25, 26, 28, 29) == KVM.fds()
    assert (20, 21, 22, 23, 24, 30, 25, 26, 27) == TEMPLATE.fds()
    assert (20, 21, 22, 23, 24, 31, 32, 25, 26, 27) == CLONE.fds()


def on_the_root_bus(machine: Machine) -> list[str]:
    argv = finalize_argv(machine, "qemu")
    devices = [argv[i + 1] for i, word in enumerate(argv) if word == "-device"]
    return [
        device.replace(machine.generation, "")
        for device in devices
        if ",bus=more," not in device and device[:5] != "vhost"
    ]


def test_a_clones_root_bus_is_its_templates_and_the_rest_is_behind_the_bridge() -> None:
    assert on_the_root_bus(TEMPLATE) == on_the_root_bus(CLONE) == on_the_root_bus(CLONE_SHARES)
    assert len(on_the_root_bus(CLONE)) == finalize_argv(TEMPLATE, "qemu").count("-device")


def test_shares_come_to_a_clone_when_its_state_is_loaded() -> None:
    assert "vhost-user-fs-pci" in " ".join(finalize_argv(KVM, "qemu"))
    assert "vhost-user-fs-pci" not in " ".join(finalize_argv(CLONE_SHARES, "qemu"))
    assert [("m0", "share0", "8"), ("m1", "share1", "9")] == [
        (device["tag"], device["chardev"], device["addr"]) for device in late_devices(CLONE_SHARES)
    ]


def test_an_interface_that_comes_later_is_described_in_qemus_own_types() -> None:
    """QEMU 10 refuses words where a property is a boolean; the others are words in every version."""
    device = hot_nic(3, "02:00:00:00:00:09")
    assert ("nic3", "more", "3", False) == (
        device["id"], device["bus"], device["addr"], device["guest_announce"],
    )  # fmt: skip


def test_nothing_on_the_kernel_command_line_names_the_instance() -> None:
    argv = finalize_argv(MACHINE, "qemu")
    line = argv[argv.index("-append") + 1]
    assert MACHINE.name not in line
    assert MACHINE.generation not in line


def test_a_confined_qemu_is_a_user_without_privileges_in_a_root_of_its_own() -> None:
    done = confine.confine_qemu(
        uid=1_500_003, cgroups=("/c/cgroup.procs",), cpus=(1,), root_at="/run/x/root",
        guest_directory="/var/lib/insula/guest/6.1", kvm=False,
    )  # fmt: skip
    assert done.private
    assert ("/var/lib/insula/guest/6.1", "/guest", True) in done.root_binds
    assert all(read_only for _, _, read_only in done.root_binds)
    assert [("/dev/null", 1_500_003), ("/dev/urandom", 1_500_003)] == [(p, o) for p, _, o in done.root_nodes]


def test_the_cpu_is_the_hosts_where_it_can_be() -> None:
    assert "host" == cpu_for(Accelerator.KVM, "GenuineIntel")
    assert "host,arch-capabilities=off" == cpu_for(Accelerator.KVM, "AuthenticAMD")


def test_uids_are_the_lowest_free_ones() -> None:
    assert confine.FIRST_UID == confine.pick_uid(set())
    assert confine.FIRST_UID + 1 == confine.pick_uid({confine.FIRST_UID, confine.FIRST_UID + 2})
