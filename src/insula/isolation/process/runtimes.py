"""The OCI runtime of this host: crun, or runc where crun does not work.  Probed by creating a container.

Synchronous; called in the thread that starts programs (crun must not see a hybrid host's cgroup2 mount).
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import os
import platform
import re
import subprocess
import tempfile
from dataclasses import dataclass

from insula.errors import Failure, InsulaError, ProgramMissing
from insula.isolation.process.spec import OCI_VERSION, to_text
from insula.security import bpf
from insula.system.files import remove_tree
from insula.system.run import find_program, fixed_environment, run
from insula.system.sealed import seal_program, sealed_path

log = logging.getLogger(__name__)

CANDIDATES = ("crun", "runc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """`state_root` is where it keeps a directory per container.  `raw_seccomp`: see `spec.HostFacts`.

    `program` is what is executed: `path`, or a sealed copy of it (`system.sealed`).
    """

    name: str
    path: str
    version: str
    state_root: str
    raw_seccomp: bool = False
    sealed_fd: int = -1

    @property
    def program(self) -> str:
        return sealed_path(self.sealed_fd) if self.sealed_fd >= 0 else self.path

    def options(self) -> list[str]:
        options = [f"--root={self.state_root}"]
        return [*options, "--cgroup-manager=cgroupfs"] if self.name == "crun" else options

    def argv(self, *words: str) -> list[str]:
        return [self.program, *self.options(), *words]

    def close(self) -> None:
        if self.sealed_fd >= 0:
            os.close(self.sealed_fd)

    def fifo(self, instance_id: str) -> str:
        return f"{self.state_root}/{instance_id}/exec.fifo"

    def let_go(self, instance_id: str) -> bool:
        """Start a created container the way `crun start` does, without the 4 ms of running it: write a byte
        to the FIFO that its init reads (crun: src/libcrun/status.c, libcrun_status_write_exec_fifo).
        False when this is not crun, or it does it otherwise by now."""
        if self.name != "crun":
            return False
        path = self.fifo(instance_id)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.unlink(path)  # before the byte, as crun: a container without the FIFO counts as running
            return os.write(fd, b"0") == 1
        finally:
            os.close(fd)


def choose_runtime(wanted: str, state_root: str) -> Runtime:
    """The first of crun and runc that can create a container here, or `wanted` if that can.
    Raises Failure that says what each of them answered."""
    problems: list[str] = []
    for name in (wanted,) if wanted else CANDIDATES:
        try:
            runtime = _describe(name, state_root)
            runtime = _seal(dataclasses.replace(runtime, raw_seccomp=_probe_twice(runtime)))
        except InsulaError as error:
            log.info("runtime %s does not work here: %s", name, error)
            problems.append(f"{name}: {error}")
        else:
            return runtime
    raise Failure("no OCI runtime works on this host: " + "; ".join(problems), hint="apt-get install crun")


def _seal(runtime: Runtime) -> Runtime:
    """With a sealed copy where the host lets one be executed (sysctl vm.memfd_noexec may not)."""
    if runtime.name != "crun":
        return runtime
    fd = seal_program(runtime.path)
    try:
        run([sealed_path(fd), "--version"], timeout_s=20)
    except (InsulaError, OSError) as error:
        log.info("a sealed copy of %s cannot be executed: %s", runtime.path, error)
        os.close(fd)
        return runtime
    return dataclasses.replace(runtime, sealed_fd=fd)


def _describe(name: str, state_root: str) -> Runtime:
    path = find_program(name)
    if path is None:
        raise ProgramMissing(name, package=name)
    text = run([path, "--version"], timeout_s=20).stdout.decode(errors="replace")
    match = re.search(r"version (\S+)", text)
    base = "runc" if "runc" in os.path.basename(path) else "crun"
    os.makedirs(state_root, mode=0o700, exist_ok=True)
    return Runtime(name=base, path=path, version=match[1] if match else "unknown", state_root=state_root)


def _probe_twice(runtime: Runtime) -> bool:
    """What fails once may be chance, and would cost every container of this daemon its faster runtime."""
    try:
        return _probe(runtime)
    except InsulaError as error:
        log.info("runtime %s failed at first: %s", runtime.path, error)
        return _probe(runtime)


def _probe(runtime: Runtime) -> bool:
    """Create a container that is never started: namespaces, mounts and cgroups must all work for it.

    Whether it applied the filter that the annotation carries.
    """
    bundle = tempfile.mkdtemp(prefix="probe-", dir=runtime.state_root)
    name = f"insula-probe-{os.path.basename(bundle)[6:]}"
    try:
        for directory in ("proc", "dev"):
            os.makedirs(f"{bundle}/rootfs/{directory}")
        with open(f"{bundle}/rootfs/program", "wb") as file:
            os.fchmod(file.fileno(), 0o755)
        with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
            file.write(to_text(_probe_config(f"{bundle}/rootfs", name)))
        argv = runtime.argv("create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", name)
        # not through `run`: the container's init would hold the pipes that it reads to their end
        with open(f"{bundle}/out", "wb") as out:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=fixed_environment(),
                timeout=20,
                check=False,
            )
        with open(f"{bundle}/out", encoding="utf-8", errors="replace") as answer:
            said = answer.read().strip()[-400:]
        if done.returncode != 0:
            raise Failure(said or f"exit status {done.returncode}")
        with open(f"{bundle}/pid", encoding="ascii") as file:
            return _has_filter(int(file.read()))
    except subprocess.TimeoutExpired:
        raise Failure("no answer in 20 s") from None
    finally:
        run(runtime.argv("delete", "--force", name), timeout_s=20, check=False)
        remove_tree(bundle)


def _has_filter(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return platform.machine() == "x86_64" and re.search(r"^Seccomp:\s*2$", file.read(), re.M) is not None


def _probe_config(root: str, name: str) -> dict[str, object]:
    everything = bpf.assemble({}, bpf.ALLOW, i386={})
    return {
        "ociVersion": OCI_VERSION,
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/program"], "cwd": "/", "env": []},
        "root": {"path": root},
        "annotations": {"run.oci.seccomp_bpf_data": base64.b64encode(everything).decode("ascii")},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/insula/{name}",
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")],
            "resources": {"pids": {"limit": 16}},
        },
    }
