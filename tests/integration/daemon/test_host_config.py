"""What few ask for in HostConfig, and what it comes to in either isolation."""

from __future__ import annotations

import pytest

from insula.system.cgroups import version_in_use
from rig import IMAGE, Daemon, isolated

pytestmark = pytest.mark.integration


def out(daemon: Daemon, isolation: str, *words: str, script: str) -> str:
    return daemon.ok(*isolated(isolation, "run", "--rm", *words, IMAGE, "sh", "-c", script))


def test_device_rules_are_the_cgroup_s(daemon: Daemon, name: str) -> None:
    """A node that the rule allows opens, and another does not."""
    made = "mknod /a c 1 5 && mknod /b c 10 229 && head -c 1 /a | wc -c; head -c 1 /b"
    done = daemon.docker("run", "--name", name, "--device-cgroup-rule", "c 10:229 m", IMAGE, "sh", "-c", made)
    assert b"1\n" == done.stdout
    assert b"Operation not permitted" in done.stderr
    assert ["c 10:229 m"] == daemon.inspect(name)["HostConfig"]["DeviceCgroupRules"]
    if version_in_use() == 1:
        rules = out(
            daemon, "process", "--device-cgroup-rule", "c 42:* rm",
            script="cat /proc/self/cgroup >/dev/null; cat /sys/fs/cgroup/devices/devices.list",
        )  # fmt: skip
        assert "c 42:* rm" in rules.splitlines()
    daemon.ok("rm", name)


@pytest.mark.vm
def test_devices_of_a_vm_are_its_kernel_s(daemon: Daemon) -> None:
    """Its disk can be read, and not be written, by who has asked for that."""
    script = (
        "exec 3<>/dev/sub/f && echo open; head -c 2 /dev/null | wc -c;"
        "mknod /disk b $(awk '/vda$/ {print $1, $2}' /proc/partitions);"
        "head -c 4 /disk | wc -c; echo x >/disk"
    )
    asked = ("--device", "/dev/fuse:/dev/sub/f:rw", "--device", "/dev/zero:/dev/null")
    done = daemon.docker(
        "run",
        "--rm",
        "--isolation",
        "vm",
        *asked,
        "--device-cgroup-rule",
        "b *:* r",
        IMAGE,
        "sh",
        "-c",
        script,
    )
    assert b"open\n2\n4\n" == done.stdout
    assert b"sh: can't create /disk: Operation not permitted\n" == done.stderr
    refused = daemon.docker("run", "--rm", "--isolation", "vm", "--device", "/dev/kvm", IMAGE, "true")
    assert b"HostConfig.Devices: /dev/kvm is the host kernel's" in refused.stderr


def test_cgroup_settings_reach_the_kernel(daemon: Daemon) -> None:
    if version_in_use() == 2:
        done = daemon.docker("run", "--rm", "--memory-swappiness", "33", IMAGE, "true")
        assert (0, True) == (done.returncode, b"Memory swappiness discarded" in done.stderr)
        return
    read = "cat /sys/fs/cgroup/memory/memory.swappiness; grep memory /proc/self/cgroup"
    swappiness, shown = out(daemon, "process", "--memory-swappiness", "33", script=read).splitlines()
    assert "33" == swappiness
    assert "/insula/" in shown  # the host's cgroup namespace, as Docker's with version 1
    alone = out(daemon, "process", "--cgroupns", "private", script="grep memory /proc/self/cgroup")
    assert alone.endswith(":/")


def test_paths_are_masked_as_asked(daemon: Daemon, isolation: str) -> None:
    """And there is no network; and a VM, whose disk is its own, has one of the size asked for."""
    script = (
        "wc -c </proc/version; wc -c </proc/keys; ls /sys/class/net; df -k / | tail -n 1 | awk '{print $2}'"
    )
    asked = {"MaskedPaths": ["/proc/version"], "ReadonlyPaths": [], "MemorySwappiness": 33}
    sized = {"StorageOpt": {"size": "1G"}} if isolation == "vm" else {}
    made = daemon.client.post(
        "/containers/create",
        {
            "Image": IMAGE,
            "Cmd": ["sh", "-c", script],
            "NetworkDisabled": True,
            "HostConfig": {"Isolation": isolation, **asked, **sized},
        },
    )["Id"]
    masked, keys, links, kib = daemon.ok("start", "-a", made).split()
    assert "0" == masked
    assert "0" != keys  # which Docker masks
    assert "lo" == links
    document = daemon.inspect(made)
    assert asked == {name: document["HostConfig"][name] for name in asked}
    assert document["Config"]["NetworkDisabled"]
    if sized:
        assert sized["StorageOpt"] == document["HostConfig"]["StorageOpt"]
        assert 900 << 10 < int(kib) <= 1 << 20
    daemon.ok("rm", made)


def test_namespaces_of_another(daemon: Daemon, name: str) -> None:
    """Its processes are seen, and its shared memory is one's own, too; what is left behind is put down."""
    daemon.ok("run", "-d", "--name", name, "--ipc", "shareable", IMAGE, "sleep", "4711")
    daemon.shell(name, "echo given >/dev/shm/it")
    joins = ("--pid", f"container:{name}", "--ipc", f"container:{name}")
    look = "ps | grep -c '[s]leep 4711'; cat /dev/shm/it; echo back >/dev/shm/it; sleep 4712 & exit 3"
    done = daemon.docker("run", "--rm", *joins, IMAGE, "sh", "-c", look)
    assert (3, b"1\ngiven\n") == (done.returncode, done.stdout)
    assert "back" == daemon.shell(name, "cat /dev/shm/it; ps | grep '[s]leep 4712' || true")
    refused = daemon.docker("create", "--isolation", "vm", *joins, IMAGE, "true")
    assert b"a virtual machine has a kernel of its own" in refused.stderr
    late = daemon.ok("create", *joins[:2], IMAGE, "true")
    daemon.ok("rm", "-f", name)
    assert b"failed to join PID namespace" in daemon.docker("start", late).stderr
    daemon.ok("rm", late)
