"""What a confinement does, step by step, before its program begins."""

from __future__ import annotations

import os

from insula.system.jail import PROGRAM, Confinement, ShareSpec, wrap


def test_steps_are_in_the_order_in_which_they_can_be_done() -> None:
    confinement = Confinement(
        uid=1_500_007,
        cgroups=("/sys/fs/cgroup/vm/cgroup.procs",),
        cpus=(0, 3),
        private=True,
        root_at="/run/vm/root",
        root_binds=(("/usr", "/usr", True), ("/proc/self/fd", "/fds", False)),
        root_links=(("/lib", "usr/lib"),),
        root_nodes=(("/dev/null", os.makedev(1, 3), 1_500_007),),
        copies=((7, 8),),
        preload="/discard.so",
    )
    # fmt: off
    assert wrap(confinement, ["/usr/bin/qemu", "-name", "a"], (4, 8)) == [
        PROGRAM,
        "keep", "4,8",
        "cgroup", "/sys/fs/cgroup/vm/cgroup.procs",
        "copy", "7", "8",
        "cpus", "0,3",
        "namespaces", "mount,net,ipc,uts",
        "private",
        "bound",
        "tmpfs", "/run/vm/root", "", "size=1m,mode=0755",
        "link", "/run/vm/root/lib", "usr/lib",
        "bind", "/usr", "/run/vm/root/usr", "ro",
        "bind", "/proc/self/fd", "/run/vm/root/fds", "",
        "node", "/run/vm/root/dev/null", "1:3", "1500007",
        "root", "/run/vm/root",
        "user", "1500007",
        "set", "LD_PRELOAD", "/discard.so",
        "--", "/usr/bin/qemu", "-name", "a",
    ]
    # fmt: on


def test_shares_are_mounted_and_nothing_else_changes() -> None:
    confinement = Confinement(
        shares=(
            ShareSpec(source="/srv", at="/run/vm/s0", read_only=True),
            ShareSpec(source="/srv", at="/run/vm/s1", read_only=False, recursive=False),
            ShareSpec(source="/etc/motd", at="/run/vm/s2", read_only=True, file="motd"),
        )
    )
    # fmt: off
    assert confinement.steps(()) == [
        "keep", "",
        "namespaces", "mount",
        "private",
        "bind", "/srv", "/run/vm/s0", "ro,rec",
        "bind", "/srv", "/run/vm/s1", "",
        "tmpfs", "/run/vm/s2", "nodev,noexec", "size=64k,mode=0755",
        "bind", "/etc/motd", "/run/vm/s2/motd", "ro",
    ]
    # fmt: on
