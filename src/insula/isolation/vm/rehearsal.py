"""A rehearsal: one workload of our own in a guest that has none yet, and everything put back.  Async.

Why: what a guest does for the first time is slow.  Its kernel sets things up at the first mount and the first
interface, which a template can have behind it; and a QEMU that emulates translates every piece of code
when it first runs, which a clone that waits for its instance can have behind it.  It takes the very path of a
real start (the same messages, the same disks but for what is on them), so nothing has to be kept in step.
No instance's data is in it: the disk holds the agent's own program and a few empty files.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence

from insula.errors import GuestFailed
from insula.isolation.plan import Console, ExecPlan, GuestMachine, LaunchPlan, Process, Security
from insula.isolation.vm import messages
from insula.isolation.vm.channel import AgentError, Channel
from insula.isolation.vm.prepare import prepare_workload
from insula.isolation.vm.wire import Type
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import EtcFile
from insula.model.network import Endpoint, LinkKind
from insula.model.root import DiskRoot
from insula.security.capabilities import finalize_capabilities
from insula.security.paths import finalize_paths
from insula.security.seccomp import read_default_profile

PROGRAM = "/rehearse"
MAC = "02:00:00:00:00:01"
_LIMIT_S = 120.0
_PROCESS = Process(args=(PROGRAM,), env=("PATH=/",))


def rehearsal_plan() -> LaunchPlan:
    """An instance's, as far as its guest sees one."""
    masked, read_only = finalize_paths((), privileged=False)
    names = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    return LaunchPlan(
        id="0" * 64,
        isolation=Isolation.VM,
        state_dir="/",
        run_dir="/",
        hostname="rehearsal",
        process=_PROCESS,
        console=Console(open_stdin=True, stdin_once=True),
        limits=Limits(),
        security=Security(
            capabilities=finalize_capabilities((), (), privileged=False),
            seccomp=read_default_profile(),
            masked_paths=masked,
            readonly_paths=read_only,
        ),
        disk=DiskRoot(image_disk="/", upper_disk="/"),
        machine=GuestMachine(vcpus=1, memory_mib=0),
        etc_files=tuple(EtcFile(target=name, text="192.0.2.2\n", host_path="/") for name in names),
        endpoints=(
            Endpoint(
                network_id="",
                network_name="",
                kind=LinkKind.TAP,
                link="",
                interface="eth0",
                mac=MAC,
                address="192.0.2.2",
                prefix_len=24,
                gateway="192.0.2.1",
            ),
        ),
    )


async def rehearse(channel: Channel, release: str, *, settle: bool = False) -> None:
    """`settle`: what the kernel still does afterwards is awaited, of a guest that is about to be frozen.

    Raises GuestFailed, AgentError; the guest is of no use then.
    """
    plan = rehearsal_plan()
    try:
        async with asyncio.timeout(_LIMIT_S):
            generation = str(uuid.uuid4())
            await prepare_workload(channel, plan, generation, {}, release, rescan=False, rehearsal=True)
            main = channel.open_stream(Type.ATTACH)
            await main.answer
            await channel.request(Type.START)
            await main.read()
            execute = channel.open_stream(
                Type.EXEC, messages.further(plan, ExecPlan(id="", process=_PROCESS, open_stdin=True), ())
            )
            await execute.answer
            for stream in (execute, main):
                await stream.write(b"again\n")
                await stream.close_stdin()
                while await stream.read():
                    pass
            await channel.request(Type.RESET, ("settle", "1" if settle else "0"))
    except TimeoutError:
        raise GuestFailed(f"the guest did not finish its rehearsal within {_LIMIT_S:.0f} s") from None
    except AgentError as error:
        raise GuestFailed(f"the guest's rehearsal failed: {error}") from error


async def premount(channel: Channel) -> None:
    """The empty upper disk, of a guest that is about to be frozen.  Raises GuestFailed."""
    await _premount(channel, ("upper_serial", "upper"))


async def premount_root(channel: Channel, files: Sequence[str]) -> None:
    """The whole root, of a clone that is about to be frozen, with `files` on it.  Raises GuestFailed."""
    empty = [("file", messages.etc_file(EtcFile(target=target, text="", host_path=""))) for target in files]
    await _premount(channel, ("image_serial", "image"), ("upper_serial", "upper"), *empty)


async def _premount(channel: Channel, *pairs: tuple[str, str]) -> None:
    try:
        async with asyncio.timeout(_LIMIT_S):
            await channel.request(Type.PREMOUNT, *pairs)
    except TimeoutError:
        raise GuestFailed(f"the guest did not mount its disk within {_LIMIT_S:.0f} s") from None
    except AgentError as error:
        raise GuestFailed(f"the guest could not mount its disk ahead: {error}") from error


def make_root(directory: str, agent: bytes) -> None:
    """The root that the rehearsal's image disk is made of."""
    for name in ("dev", "etc", "proc", "root", "sys", "tmp"):
        os.mkdir(os.path.join(directory, name), 0o755)
    texts = {
        "etc/passwd": "root:x:0:0:root:/root:/rehearse\n",
        "etc/group": "root:x:0:\n",
        "etc/machine-id": "",
        "etc/hosts": "",
        "etc/hostname": "",
        "etc/resolv.conf": "",
    }
    for name, text in texts.items():
        with open(os.path.join(directory, name), "w", encoding="ascii") as file:
            file.write(text)
    path = directory + PROGRAM
    with open(path, "wb") as program:
        program.write(agent)
    os.chmod(path, 0o755)
