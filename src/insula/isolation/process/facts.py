"""What a configuration depends on, of this host: kernel, cgroups, capabilities, programs.  Synchronous."""

from __future__ import annotations

import os
import platform
import re

from insula.isolation.process.runtimes import Runtime
from insula.isolation.process.spec import HostFacts
from insula.security.capabilities import from_mask
from insula.system.cgroups import Layout
from insula.system.run import find_program, run


def find_facts(layout: Layout, runtime: Runtime) -> HostFacts:
    """What the config.json depends on, asked of the host once."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    with open("/proc/self/status", encoding="ascii") as file:
        bounding = re.search(r"^CapBnd:\s*(\w+)$", file.read(), re.M)
    assert release is not None
    assert bounding is not None
    memory = layout.path("memory", "")
    swap = layout.version == 2 or os.path.exists(f"{memory}/memory.memsw.limit_in_bytes")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return HostFacts(
        cgroup_version=layout.version,
        kernel=(int(release[1]), int(release[2])),
        capabilities=from_mask(int(bounding[1], 16)),
        swap_accounting=swap,
        init_path=find_program("docker-init", "/usr/libexec/docker/docker-init", "/usr/bin/tini-static")
        or "",
        raw_seccomp=runtime.raw_seccomp,
        arch=machine,
    )


def conmon_version(path: str) -> str:
    text = run([path, "--version"], timeout_s=20).stdout.decode(errors="replace")
    match = re.search(r"version (\S+)", text)
    return match[1] if match else "unknown"
