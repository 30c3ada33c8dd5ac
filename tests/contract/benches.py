"""Each backend on a bench: how to make plans for it, and what is left of it.  One class per implementation.

The workloads are a busybox (the fake has its own), so that every test is written once.
"""

from __future__ import annotations

import os
import secrets
import shutil
from typing import Protocol

from insula.config import Settings
from insula.isolation.backend import Backend
from insula.isolation.fake import FakeBackend
from insula.isolation.plan import Console, GuestMachine, LaunchPlan, Process, Security
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.root import DirectoryRoot, DiskRoot
from insula.security.capabilities import finalize_capabilities
from insula.security.seccomp import read_default_profile
from insula.system.disk_file import MKE2FS_ENVIRONMENT, finalize_mke2fs

APPLETS = "sh cat echo ls id uname sleep env hostname touch mkdir rm stty head wc ps true false pwd seq yes"
FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
    "etc/group": "root:x:0:\nann:x:1000:\n",
    "etc/greeting": "hello from the image\n",
}


class Bench(Protocol):
    """`backend` is started.  `restarted` is what the next daemon would have, knowing only the plans."""

    backend: Backend
    isolation: Isolation

    def make_root(self, state_dir: str, instance_id: str) -> dict[str, object]:
        """The root fields of a plan."""
        ...

    def restarted(self) -> Backend: ...

    def clean(self, plan: LaunchPlan) -> None:
        """After `discard`: what the test itself made."""
        ...


def make_plan(bench: Bench, base: str, *args: str, **fields: object) -> LaunchPlan:
    """A plan with directories of its own below `base`."""
    instance_id = secrets.token_hex(32)
    state_dir = os.path.join(base, "data", "instances", instance_id)
    run_dir = os.path.join(base, "run", "instances", instance_id)
    os.makedirs(state_dir)
    os.makedirs(run_dir)
    process = {key: fields.pop(key) for key in ("user", "cwd", "tty", "env") if key in fields}
    console = {key: fields.pop(key) for key in ("open_stdin", "stdin_once") if key in fields}
    settled: dict[str, object] = {
        "id": instance_id,
        "isolation": bench.isolation,
        "state_dir": state_dir,
        "run_dir": run_dir,
        "hostname": "isle",
        "process": Process(args=args, **{"env": ("PATH=/bin", "COLOUR=blue"), **process}),  # type: ignore[arg-type]
        "console": Console(log_path=os.path.join(state_dir, "output.log"), **console),  # type: ignore[arg-type]
        "limits": Limits(),
        "security": Security(capabilities=finalize_capabilities(), seccomp=read_default_profile()),
        **bench.make_root(state_dir, instance_id),
        **fields,
    }
    return LaunchPlan(**settled)  # type: ignore[arg-type]


def make_tree(root: str) -> str:
    """A root file system with a static busybox."""
    for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "home/ann"):
        os.makedirs(os.path.join(root, name))
    os.chmod(os.path.join(root, "tmp"), 0o1777)
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is not installed: make setup"
    shutil.copy(busybox, os.path.join(root, "bin/busybox"))
    for applet in APPLETS.split():
        os.symlink("busybox", os.path.join(root, "bin", applet))
    for name, text in FILES.items():
        with open(os.path.join(root, name), "w", encoding="ascii") as file:
            file.write(text)
    return root


class FakeBench:
    isolation = Isolation.PROCESS

    def __init__(self) -> None:
        self.backend: FakeBackend = FakeBackend()

    def make_root(self, state_dir: str, instance_id: str) -> dict[str, object]:
        return {"directory": DirectoryRoot(merged=f"{state_dir}/merged", lowers=(), upper="", work="")}

    def restarted(self) -> Backend:
        return self.backend  # its instances are in its own memory

    def clean(self, plan: LaunchPlan) -> None:
        self.backend.forget(plan.id)


class ProcessBench:
    isolation = Isolation.PROCESS

    def __init__(self, base: str, tree: str) -> None:
        self._settings = Settings(data_root=f"{base}/data", exec_root=f"{base}/run")
        self._tree = tree
        self.backend = self.restarted()

    def make_root(self, state_dir: str, instance_id: str) -> dict[str, object]:
        from insula.system.mounts import mount_overlay

        merged = os.path.join(self._settings.exec_root, "roots", instance_id, "merged")
        upper, work = os.path.join(state_dir, "upper"), os.path.join(state_dir, "work")
        for path in (merged, upper, work):
            os.makedirs(path)
        mount_overlay(merged, [self._tree], upper=upper, work=work)
        return {"directory": DirectoryRoot(merged=merged, lowers=(self._tree,), upper=upper, work=work)}

    def restarted(self) -> Backend:
        from insula.isolation.process.backend import ProcessBackend

        return ProcessBackend(self._settings)

    def clean(self, plan: LaunchPlan) -> None:
        from insula.system.mounts import umount

        assert plan.directory is not None
        umount(plan.directory.merged)


class VmBench:
    isolation = Isolation.VM

    def __init__(self, base: str, image_disk: str) -> None:
        self._settings = Settings(
            data_root=f"{base}/data", exec_root=f"{base}/run", accel="tcg", vm_disk_gib=1, vm_pool=0
        )
        self._image_disk = image_disk
        self.backend = self.restarted()

    def make_root(self, state_dir: str, instance_id: str) -> dict[str, object]:
        import subprocess

        upper = os.path.join(state_dir, "upper.ext4")
        with open(upper, "wb") as file:
            file.truncate(1 << 30)
        subprocess.run(finalize_mke2fs(upper), check=True, capture_output=True, env=MKE2FS_ENVIRONMENT)
        return {
            "disk": DiskRoot(image_disk=self._image_disk, upper_disk=upper),
            "machine": GuestMachine(vcpus=1, memory_mib=128),
        }

    def restarted(self) -> Backend:
        from insula.isolation.vm.backend import VmBackend

        return VmBackend(self._settings)

    def clean(self, plan: LaunchPlan) -> None:
        pass
