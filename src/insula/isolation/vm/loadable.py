"""Whether this host's QEMU can go on from a copy that another version of it has made.  Async.

QEMU keeps the machines of its earlier versions, for some years, and loads what those have saved; what a later
version has saved is of a machine that it does not know.
"""

from __future__ import annotations

from insula.errors import RuntimeFailed, Unavailable
from insula.isolation.vm.captured import Captured
from insula.system.run import arun


def parse_machines(text: str) -> frozenset[str]:
    """Their names, out of what `-machine help` prints."""
    lines = text.splitlines()[1:]  # the first is a heading
    return frozenset(line.split()[0] for line in lines if line.strip())


async def check_loadable(captured: Captured, program: str, version: str) -> None:
    """`program` is this host's QEMU, of `version`.  Raises Unavailable with both versions."""
    if captured.qemu == version:
        return
    shown = await arun([program, "-machine", "help"], timeout_s=30)
    if captured.type not in parse_machines(shown.stdout.decode(errors="replace")):
        made_by = f"QEMU {captured.qemu}" if captured.qemu else "another version of QEMU"
        raise Unavailable(
            f"the copy is of a machine {captured.type}, made by {made_by}, which QEMU {version} of this host "
            "does not have",
            hint=f"go on from it where QEMU is {captured.qemu or 'of that version'}, or a later version that "
            "has this machine",
        )


def explain(error: RuntimeFailed, captured: Captured, version: str) -> RuntimeFailed:
    """The same, and which versions did not understand each other."""
    if captured.qemu in ("", version):
        return error
    return RuntimeFailed(
        f"{error.message} (the copy was made by QEMU {captured.qemu}, and this host has {version})",
        hint=f"go on from it on a host with QEMU {captured.qemu}",
    )
