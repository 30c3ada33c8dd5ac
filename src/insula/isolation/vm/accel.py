"""Which accelerator to use.  Async.

`/dev/kvm` existing proves nothing: there are hosts where it opens and a 64-bit guest hangs (nested under a
hypervisor that does not nest).  `auto` therefore boots the real guest once with KVM, within a limit, and
remembers the result per host kernel, QEMU and CPU in <data root>/accel.json.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from insula.errors import InsulaError
from insula.isolation.vm.machine import Accelerator
from insula.system.files import write_atomic

log = logging.getLogger(__name__)

PROBE_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Choice:
    """`why` is a sentence for `info`."""

    accelerator: Accelerator
    why: str


def cpu_word(name: str) -> str:
    """A line of /proc/cpuinfo: `model name`, `vendor_id`; "" when it is not there."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        found = re.search(rf"^{name}\s*:\s*(.+)$", file.read(), re.MULTILINE)
    return found[1].strip() if found else ""


def key_of(qemu_version: str) -> str:
    return f"{platform.release()} | {qemu_version} | {cpu_word('model name') or platform.machine()}"


def kvm_opens() -> str:
    """ "" when it does, else the reason."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return ""


def _path(data_root: str) -> str:
    return os.path.join(data_root, "accel.json")


def _read(data_root: str) -> dict[str, dict[str, str]]:
    try:
        with open(_path(data_root), encoding="utf-8") as file:
            value = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def find_choice(data_root: str, setting: str, qemu_version: str) -> Choice | None:
    """What is known without booting anything; None: `probe` has to find out."""
    if setting != "auto":
        return Choice(Accelerator(setting), "set by accel")
    if problem := kvm_opens():
        return Choice(Accelerator.TCG, f"{problem}; software emulation, many times slower")
    entry = _read(data_root).get(key_of(qemu_version))
    if isinstance(entry, dict) and entry.get("accelerator") in tuple(Accelerator):
        return Choice(Accelerator(entry["accelerator"]), str(entry.get("why", "")))
    return None


async def probe(
    data_root: str,
    qemu_version: str,
    boot_with_kvm: Callable[[float], Awaitable[None]],
    limit_s: float = PROBE_LIMIT_S,
) -> Choice:
    """Boot once with KVM.  Remembered is what that proved: that a guest boots, or does not within the limit.
    A QEMU that could not be started (no memory, a full disk) is tried again by the next daemon."""
    before = time.monotonic()
    try:
        await boot_with_kvm(limit_s)
    except InsulaError as error:
        took_s = time.monotonic() - before
        proved = took_s >= limit_s
        what = f"did not boot within {limit_s:.0f} s" if proved else "could not be started"
        why = f"/dev/kvm is there, but a guest {what} with it; software emulation, many times slower"
        if not proved:
            log.warning("KVM is not used by this daemon: %s", error)
            return Choice(Accelerator.TCG, why)
        choice, detail = Choice(Accelerator.TCG, why), str(error)[:1000]
    else:
        took_ms = (time.monotonic() - before) * 1000
        choice, detail = Choice(Accelerator.KVM, f"a guest booted with it in {took_ms:.0f} ms"), ""
    known = _read(data_root) | {
        key_of(qemu_version): {
            "accelerator": choice.accelerator.value,
            "why": choice.why,
            "detail": detail,
            "probed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    }
    write_atomic(_path(data_root), json.dumps(known, indent=1) + "\n", 0o644)
    return choice
