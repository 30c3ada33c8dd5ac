"""The VM backend's pure parts: records, tables, refusals, accelerator memory, kernel and initramfs."""

from __future__ import annotations

import dataclasses
import lzma
import os
import shutil
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import Conflict, CorruptData, InsulaError, RuntimeFailed, UnsupportedField
from insula.isolation.plan import Device
from insula.isolation.vm import accel, cgroup, guest, initramfs, kernel, messages, modules, stats
from insula.isolation.vm.check import check_plan, check_update, parse_cpus
from insula.isolation.vm.files import parse_changes
from insula.isolation.vm.initramfs import Entry
from insula.isolation.vm.machine import Accelerator
from insula.isolation.vm.modules import Module
from insula.isolation.vm.order import order_for
from insula.isolation.vm.prepare import kernel_version, machine_id_of
from insula.isolation.vm.record import finalize_status, find_panic, parse_exit
from insula.isolation.vm.vm import Vm
from insula.isolation.vm.wire import ProtocolViolation
from insula.model.files import Change, ChangeKind
from insula.model.go_mode import go_mode, unix_mode
from insula.model.instance import ExitStatus
from insula.model.limits import Limits
from insula.model.mounts import Mount, MountKind
from insula.system.interfaces import Traffic
from unit.isolation.test_vm_golden import PLAN

# -- how it ended -----------------------------------------------------------------------------


def test_an_exit_record_is_read() -> None:
    told = parse_exit(b'{"code":3,"oom":true,"time_ns":150}\n', not_before_ns=100, not_after_ns=200)
    assert ExitStatus(code=3, oom_killed=True, finished_at_ns=150) == told


@pytest.mark.parametrize("when", ["1", "99999", "-5", '"x"', "true", "1e300"])
def test_a_time_outside_the_life_of_the_vm_is_its_end(when: str) -> None:
    told = parse_exit(
        f'{{"code":0,"oom":false,"time_ns":{when}}}\n'.encode(), not_before_ns=100, not_after_ns=200
    )
    assert told is not None
    assert 200 == told.finished_at_ns


@given(st.binary(max_size=300))
def test_any_bytes_in_the_exit_file_are_a_record_or_none(untrusted: bytes) -> None:
    told = parse_exit(untrusted + b"\n", not_before_ns=0, not_after_ns=9)
    assert told is None or 0 <= told.code <= 255


@pytest.mark.parametrize(
    "untrusted",
    [b"", b'{"code":0,"oom":false}', b'{"code":256,"oom":false}\n', b'{"code":true,"oom":false}\n',
     b'{"code":1,"oom":1}\n', b"[]\n", b"[" * 4000 + b"\n"],
)  # fmt: skip
def test_what_is_no_exit_record_is_none(untrusted: bytes) -> None:
    assert parse_exit(untrusted, not_before_ns=0, not_after_ns=9) is None


def test_a_panic_on_the_console_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"x\r\n[1.0] Kernel panic - not syncing: Out of memory\x1b: y\r\n")
    status = finalize_status(str(tmp_path), 0, killed=False, host_oom=False)
    assert (137, True, "the guest kernel panicked: Out of memory?: y") == (
        status.code, status.oom_killed, status.error,
    )  # fmt: skip
    assert find_panic(b"all is well") == ""


def test_without_a_word_the_end_is_still_an_end(tmp_path: Path) -> None:
    assert "" == finalize_status(str(tmp_path), 0, killed=True, host_oom=False).error
    said = ExitStatus(code=3, finished_at_ns=9)
    assert said == finalize_status(str(tmp_path), 0, killed=False, host_oom=False, exited=said)
    assert finalize_status(str(tmp_path), 0, killed=False, host_oom=True).oom_killed
    assert "without saying" in finalize_status(str(tmp_path), 0, killed=False, host_oom=False).error
    (tmp_path / "exit").write_bytes(b'{"code":0,"oom":false,"time_ns":1}\n')
    assert 0 == finalize_status(str(tmp_path), 0, killed=True, host_oom=False).code


# -- on a macvlan network ---------------------------------------------------------------------

TAP = PLAN.endpoints[0]
MACVTAP = dataclasses.replace(TAP, driver="macvlan")


def test_nothing_stands_in_for_a_macvtap() -> None:
    """A clone made ahead has a tap of its own, which leads to bridges only."""
    plans = (dataclasses.replace(PLAN, mounts=(), endpoints=(each,)) for each in (TAP, MACVTAP))
    assert [False, True] == [order_for(plan).fixed_taps for plan in plans]


def test_a_macvtap_counts_as_its_guest_does() -> None:
    counters = {TAP.link: (Traffic(bytes=1), Traffic(bytes=2))}
    samples = [stats.sample_network(endpoint, counters) for endpoint in (TAP, MACVTAP)]
    assert [(2, 1), (1, 2)] == [(sample.rx_bytes, sample.tx_bytes) for sample in samples]
    assert 0 == stats.sample_network(TAP, {}).rx_bytes  # its link is gone


# -- what is refused --------------------------------------------------------------------------


def test_the_golden_plan_is_honoured() -> None:
    check_plan(PLAN)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"host_network": True}, "HostConfig.NetworkMode"),
        ({"joins_network": True}, "HostConfig.NetworkMode"),
        ({"pid_mode": "host"}, "HostConfig.PidMode"),
        ({"pid_mode": "odd"}, "HostConfig.PidMode"),
        ({"ipc_mode": "none"}, "HostConfig.IpcMode"),
        ({"ipc_mode": "odd"}, "HostConfig.IpcMode"),
        ({"uts_mode": "shareable"}, "HostConfig.UTSMode"),
        ({"ipc_mode": "container:x"}, "HostConfig.IpcMode"),
        ({"uts_mode": "host"}, "HostConfig.UTSMode"),
        ({"cgroup_parent": "/x"}, "HostConfig.CgroupParent"),
        ({"limits": Limits(oom_kill_disable=True)}, "HostConfig.OomKillDisable"),
        ({"limits": Limits(cpuset_mems="0")}, "HostConfig.CpusetMems"),
        ({"limits": Limits(cpu_rt_runtime_us=1)}, "HostConfig.CpuRealtimeRuntime"),
        ({"limits": Limits(cpuset_cpus="9999")}, "HostConfig.CpusetCpus"),
        ({"limits": Limits(cpuset_cpus="a;b")}, "HostConfig.CpusetCpus"),
        (
            {"security": dataclasses.replace(PLAN.security, devices=(Device(host_path="/dev/x", path="/x", rules="r"),))},  # noqa: E501
            "HostConfig.Devices",
        ),
        (
            {"security": dataclasses.replace(PLAN.security, devices=(Device(host_path="/dev/fuse", path="/f", rules="r"),))},  # noqa: E501
            "HostConfig.Devices",
        ),
        (
            {"security": dataclasses.replace(PLAN.security, device_rules=("a *:* r",) * 65)},
            "HostConfig.DeviceCgroupRules",
        ),
        (
            {"mounts": (Mount(kind=MountKind.BIND, target="/a", source="/", tag="a", propagation="rshared"),)},  # noqa: E501
            "HostConfig.Mounts",
        ),
        ({"mounts": (Mount(kind=MountKind.BIND, target="/a", source="/dev/null", tag="a"),)}, "HostConfig.Binds"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        check_plan(dataclasses.replace(PLAN, **change))  # type: ignore[arg-type]
    assert field == caught.value.field


def test_a_socket_of_the_host_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        mount = Mount(kind=MountKind.BIND, target="/s", source=path, tag="s")
        with pytest.raises(UnsupportedField, match="socket"):
            check_plan(dataclasses.replace(PLAN, mounts=(mount,)))


def test_what_changes_live() -> None:
    check_update(
        Limits(), Limits(nano_cpus=5, cpu_shares=7, memory_bytes=1, pids=5, memory_reservation_bytes=3)
    )
    for change in ({"shm_size_bytes": 1}, {"cpuset_mems": "0"}):
        with pytest.raises(Conflict):
            check_update(Limits(), Limits(**change))  # type: ignore[arg-type]
    assert [] == messages.change(Limits(pids=3), Limits(pids=3, nano_cpus=1))
    assert [("cgroup", "memory.max=5"), ("cgroup", "pids.max=max")] == messages.change(
        Limits(pids=3), Limits(memory_bytes=5)
    )


def test_cpu_lists() -> None:
    assert (0, 1, 2, 5) == parse_cpus("0-2,5")
    assert () == parse_cpus("")


# -- limits and tables ------------------------------------------------------------------------


def test_cpu_limits_in_both_cgroup_versions() -> None:
    half = Limits(nano_cpus=500_000_000, cpu_shares=1024)
    assert {"cpu.max": "50000 100000", "cpu.weight": "39"} == cgroup.cpu_settings(half, 2)
    assert {
        "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "cpu.shares": "1024",
    } == cgroup.cpu_settings(Limits(), 1)  # fmt: skip
    assert {"memory.max": "7", "memory.low": "3"} == cgroup.memory_settings(7, 3, 2)


def test_modes_are_gos() -> None:
    assert 0o644 == go_mode(stat.S_IFREG | 0o644)
    assert (1 << 31) | 0o755 == go_mode(stat.S_IFDIR | 0o755)
    assert (1 << 27) | 0o777 == go_mode(stat.S_IFLNK | 0o777)
    assert (1 << 26) | (1 << 21) | 0o600 == go_mode(stat.S_IFCHR | 0o600)
    assert (1 << 23) | 0o755 == go_mode(stat.S_IFREG | 0o4755)
    assert (1 << 31) | (1 << 20) | 0o777 == go_mode(stat.S_IFDIR | 0o1777)
    for mode in (0o100644, 0o40755, 0o120777, 0o20600, 0o60600, 0o10644, 0o140777, 0o104755, 0o41777):
        assert mode == unix_mode(go_mode(mode))
    assert 0o644 == unix_mode((1 << 19) | 0o644)  # irregular: of no kind


def test_changes_are_sorted_and_checked() -> None:
    got = parse_changes(b"D /b\0A /a b\0C /\0")
    assert (
        Change("/", ChangeKind.MODIFIED), Change("/a b", ChangeKind.ADDED), Change("/b", ChangeKind.DELETED),
    ) == got  # fmt: skip
    for bad in (b"X /a\0", b"A a\0", b"A\0"):
        with pytest.raises(ProtocolViolation):
            parse_changes(bad)
    assert 3 == len(parse_changes(b"A /a\0" * 3, most=3))
    with pytest.raises(ProtocolViolation, match="more than 3"):
        parse_changes(b"A /a\0" * 4, most=3)


async def test_what_a_guest_can_write_without_end_is_cut(tmp_path: Path) -> None:
    """QEMU's own words, too: it complains of each message to a port that is not there."""
    vm = Vm(dataclasses.replace(PLAN, run_dir=str(tmp_path)), lambda _: None)
    for name, size in (("console.log", 5 << 20), ("qemu.log", 5 << 20), ("exit", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    vm.trim()
    assert [0, 0, 10] == [(tmp_path / name).stat().st_size for name in ("console.log", "qemu.log", "exit")]
    (tmp_path / "qemu.log").write_bytes(b"why it does not start")
    (tmp_path / "console.log").unlink()
    vm.trim()
    assert b"why it does not start" == (tmp_path / "qemu.log").read_bytes()


# -- accelerator ------------------------------------------------------------------------------


async def test_the_probe_boots_once_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "kvm_opens", lambda: "")
    assert accel.find_choice(str(tmp_path), "auto", "7.2") is None

    async def boots(limit_s: float) -> None:
        assert 10.0 == limit_s

    assert Accelerator.KVM is (await accel.probe(str(tmp_path), "7.2", boots)).accelerator
    found = accel.find_choice(str(tmp_path), "auto", "7.2")
    assert found is not None
    assert Accelerator.KVM is found.accelerator
    assert accel.find_choice(str(tmp_path), "auto", "8.0") is None


async def test_a_guest_that_hangs_means_emulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(limit_s: float) -> None:
        raise RuntimeFailed("no answer")

    choice = await accel.probe(str(tmp_path), "7.2", hangs, limit_s=0)
    assert Accelerator.TCG is choice.accelerator
    assert "did not boot within" in choice.why
    assert "could not be started" in (await accel.probe(str(tmp_path), "8.0", hangs)).why
    monkeypatch.setattr(accel, "kvm_opens", lambda: "")
    found = accel.find_choice(str(tmp_path), "auto", "7.2")
    assert found is not None
    assert Accelerator.TCG is found.accelerator
    assert accel.find_choice(str(tmp_path), "auto", "8.0") is None  # what has proved nothing is forgotten


def test_a_setting_and_a_missing_kvm_decide_without_booting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "kvm_opens", lambda: "/dev/kvm: No such file or directory")
    auto = accel.find_choice(str(tmp_path), "auto", "7.2")
    assert auto is not None
    assert (Accelerator.TCG, True) == (auto.accelerator, "No such file" in auto.why)
    forced = accel.find_choice(str(tmp_path), "kvm", "7.2")
    assert forced is not None
    assert Accelerator.KVM is forced.accelerator


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{", '{"k": {"accelerator": "warp"}}'])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(accel, "kvm_opens", lambda: "")
    monkeypatch.setattr(accel, "key_of", lambda _: "k")
    (tmp_path / "accel.json").write_text(text)
    assert accel.find_choice(str(tmp_path), "auto", "7.2") is None


# -- kernel, modules, initramfs ---------------------------------------------------------------


def make_module(directory: Path, name: str, depends: str) -> None:
    (directory / f"{name}.ko").write_bytes(
        b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    )


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    tree = tmp_path / "kernel" / "drivers"
    tree.mkdir(parents=True)
    make_module(tree, "virtio-rng", "virtio,rng-core")
    make_module(tree, "virtio", "virtio_ring")
    make_module(tree, "virtio_ring", "")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/rng-core.ko\nkernel/fs/ext4.ko\n")
    found = modules.find_modules(str(tmp_path))
    builtin = modules.find_builtin(str(tmp_path))
    order = modules.resolve(found, builtin, ("ext4", "virtio_rng"), ("vmgenid",))
    assert ["virtio_ring", "virtio", "virtio_rng"] == [m.name for m in order]
    with pytest.raises(RuntimeFailed, match="erofs"):
        modules.resolve(found, builtin, ("erofs",), ())


def test_compressed_modules_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    import lzma

    from backports import zstd

    plain = b"\x7fELF" + b"\0" * 100
    for name, data in (
        ("a.ko.xz", lzma.compress(plain)),
        ("a.ko.zst", zstd.compress(plain)),
        ("a.ko", plain),
    ):
        (tmp_path / name).write_bytes(data)
        assert plain == modules.read_module(str(tmp_path / name))
    for name, data in (("b.ko.xz", b"junk"), ("b.ko.zst", b"junk"), ("b.ko", b"junk")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptData):
            modules.read_module(str(tmp_path / name))


def test_a_signature_is_taken_off_a_module_whose_kernel_does_not_insist_on_it() -> None:
    plain = b"\x7fELF" + bytes(range(256))
    signed = plain + b"s" * 70 + struct.pack(">8xI", 70) + b"~Module signature appended~\n"
    assert plain == modules.without_signature(signed)
    assert plain == modules.without_signature(plain)
    for length in (0, len(signed), 0xFFFFFFFF):  # a length that cannot be
        odd = plain + struct.pack(">8xI", length) + b"~Module signature appended~\n"
        assert odd == modules.without_signature(odd)
    config = "CONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\n"
    assert modules.may_be_unsigned(config + "# CONFIG_MODULE_SIG_FORCE is not set\n")
    assert not modules.may_be_unsigned(config + "CONFIG_MODULE_SIG_FORCE=y\n")
    assert not modules.may_be_unsigned("")  # not known


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    entries = initramfs.finalize_entries(b"agent", [Module("erofs", "/x/erofs.ko", b"\x7fELFdata")])
    entries = [e for e in entries if not stat.S_ISCHR(e.mode)]
    done = subprocess.run(
        ["cpio", "-idm", "--quiet"], input=initramfs.make_cpio(entries), cwd=tmp_path, check=True
    )
    assert 0 == done.returncode
    assert b"agent" == (tmp_path / "init").read_bytes()
    assert os.access(tmp_path / "init", os.X_OK)
    assert b"\x7fELFdata" == (tmp_path / "modules" / "erofs.ko").read_bytes()
    assert "modules/erofs.ko\n" == (tmp_path / "modules.load").read_text()


def test_the_archive_is_reproducible_and_its_key_tells_inputs_apart() -> None:
    entries = [Entry("a", 0o100644, b"x")]
    assert initramfs.make_cpio(entries) == initramfs.make_cpio(entries)
    one, other = Module("a", "", b"1"), Module("a", "", b"2")
    keys = {initramfs.key_of(b"x", [one]), initramfs.key_of(b"y", [one]), initramfs.key_of(b"x", [other])}
    assert 3 == len(keys)


@pytest.mark.skipif(shutil.which("lz4") is None, reason="needs lz4")
@given(st.lists(st.sampled_from([b"abc", b"\0" * 50, b"xyzw" * 9, b"Q"]), max_size=60))
def test_lz4_as_kernels_have_it_is_read(parts: list[bytes]) -> None:
    plain = b"".join(parts) + b"end"
    packed = subprocess.run(["lz4", "-l", "-c"], input=plain, capture_output=True, check=True).stdout
    assert plain == kernel.decompress_lz4_legacy(packed)


def bz_image(payload: bytes) -> bytes:
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


def test_the_elf_file_is_found_in_a_kernel_image() -> None:
    import gzip
    import lzma

    elf = b"\x7fELF" + struct.pack("<III", 4, 8, 18) + b"Xen\0"
    for payload in (gzip.compress(elf) + b"size", lzma.compress(elf, check=lzma.CHECK_CRC32) + b"size"):
        assert elf == kernel.extract_vmlinux(bz_image(payload))
    assert kernel.has_pvh_entry(elf)
    assert not kernel.has_pvh_entry(b"\x7fELF")
    for bad in (
        b"",
        b"MZ" * 500,
        bz_image(b"junk" * 9),
        bz_image(gzip.compress(b"no elf")),
        bz_image(b"\x02\x21\x4c\x18\5\0\0\0\x0f"),
    ):
        with pytest.raises(CorruptData):
            kernel.extract_vmlinux(bad)


def test_releases_are_ordered_by_their_numbers() -> None:
    names = ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.1-amd64", "5.10.0-1"]
    assert ["5.10.0-1", "6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.1-amd64"] == sorted(
        names, key=guest.version_key
    )
    assert (6, 1) == kernel_version("6.1.0-56-cloud-amd64")
    assert (6, 12) == kernel_version("6.12+deb13-amd64")


def test_a_guest_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert guest.find_guest(str(tmp_path)) is None


def test_a_stub_is_small_and_of_its_kernels_kind() -> None:
    stub = kernel.make_stub(b"\x7fELF" + bytes(1 << 20))
    assert len(stub) < 4096
    assert kernel.has_pvh_entry(stub)
    assert stub.startswith(b"\x7fELF\x02\x01\x01")
    image = bz_image(lzma.compress(bytes(100_000)))
    short = kernel.make_stub(image + bytes(1 << 20))
    assert image.startswith(short[:0x250])
    assert len(short) < 64 * 512
    with pytest.raises(CorruptData):
        kernel.make_stub(b"no kernel")


async def test_a_kernel_without_a_release_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InsulaError, match="release"):
        await guest.make_guest(str(tmp_path), kernel="/boot/mykernel")


def test_machine_ids_differ_and_last() -> None:
    assert machine_id_of("a") == machine_id_of("a")
    assert machine_id_of("a") != machine_id_of("b")
    assert 32 == len(machine_id_of("a"))
