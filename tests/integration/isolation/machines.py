"""A small image as an erofs disk, and plans that run it, for the VM tests.  Synchronous; needs busybox."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass

from insula.isolation.plan import Console, GuestMachine, LaunchPlan, Process, Security
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.root import IMAGE_DISK_BYTES, DiskRoot
from insula.security import capabilities
from insula.security.seccomp import read_default_profile
from insula.system.disk_file import MKE2FS_ENVIRONMENT, finalize_mke2fs

_APPLETS = (
    *(
        "sh",
        "cat",
        "echo",
        "ls",
        "id",
        "uname",
        "sleep",
        "env",
        "hostname",
        "mount",
        "touch",
        "mkdir",
        "rm",
        "dd",
    ),
    *("stty", "head", "tail", "wc", "true", "false", "pwd"),
)


def make_image(directory: str) -> str:
    """An erofs disk with busybox; its path."""
    root = os.path.join(directory, "rootfs")
    for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "home/ann"):
        os.makedirs(os.path.join(root, name))
    os.chmod(os.path.join(root, "tmp"), 0o1777)
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is needed"
    shutil.copy(busybox, os.path.join(root, "bin/busybox"))
    for applet in _APPLETS:
        os.symlink("busybox", os.path.join(root, "bin", applet))
    files = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
        "etc/group": "root:x:0:\nann:x:1000:\nfriends:x:2000:ann\n",
        "etc/greeting": "hello from the image\n",
        "etc/machine-id": "",
    }
    for name, text in files.items():
        with open(os.path.join(root, name), "w", encoding="ascii") as file:
            file.write(text)
    image = os.path.join(directory, "image.erofs")
    subprocess.run(["mkfs.erofs", "-zlz4", image, root], check=True, capture_output=True)
    os.truncate(image, IMAGE_DISK_BYTES)
    return image


@dataclass
class Workshop:
    """Makes plans with fresh upper disks below `base`."""

    base: str
    image: str

    def plan(
        self,
        *args: str,
        tty: bool = False,
        open_stdin: bool = False,
        stdin_once: bool = False,
        user: str = "",
        limits: Limits | None = None,
        memory_mib: int = 128,
        **more: object,
    ) -> LaunchPlan:
        instance = secrets.token_hex(32)
        state = os.path.join(self.base, "instances", instance)
        run = os.path.join(self.base, "run", "instances", instance)
        os.makedirs(state)
        os.makedirs(run)
        upper = os.path.join(state, "upper.ext4")
        with open(upper, "wb") as file:
            file.truncate(1 << 30)
        subprocess.run(finalize_mke2fs(upper), check=True, capture_output=True, env=MKE2FS_ENVIRONMENT)
        fields: dict[str, object] = {
            "id": instance,
            "isolation": Isolation.VM,
            "state_dir": state,
            "run_dir": run,
            "hostname": "isle",
            "process": Process(args=args, env=("PATH=/bin", "COLOUR=blue"), cwd="/", user=user, tty=tty),
            "console": Console(
                open_stdin=open_stdin, stdin_once=stdin_once, log_path=os.path.join(state, "log")
            ),
            "limits": limits or Limits(),
            "security": Security(
                capabilities=tuple(sorted(capabilities.DEFAULT)), seccomp=read_default_profile()
            ),
            "disk": DiskRoot(image_disk=self.image, upper_disk=upper),
            "machine": GuestMachine(vcpus=1, memory_mib=memory_mib),
        } | more
        return LaunchPlan(**fields)  # type: ignore[arg-type]
