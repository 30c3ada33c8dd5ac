"""From a greeted agent to a workload that waits for START.  Async; sends everything before it waits.

Fails closed: without the agent's word that its identity is new, no workload is ever started.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator

from insula.errors import (
    CannotEnter,
    CommandNotExecutable,
    CommandNotFound,
    GuestFailed,
    InsulaError,
    InvalidRequest,
    NoSuchPath,
)
from insula.isolation.plan import LaunchPlan, Process
from insula.isolation.vm import messages
from insula.isolation.vm.channel import AgentError, Channel, translate
from insula.isolation.vm.files import AgentFiles
from insula.isolation.vm.wire import Fields, Type
from insula.security.seccomp import compile_bpf
from insula.system import ssh_keys

_ENTROPY_BYTES = 64
_TIMEOUT_S = 120.0


@functools.lru_cache(maxsize=16)
def make_filter(profile: str, capabilities: tuple[str, ...], kernel: tuple[int, int]) -> bytes:
    return compile_bpf(profile, capabilities, kernel, i386=True) if profile else b""


def kernel_version(release: str) -> tuple[int, int]:
    """`6.1.0-56-cloud-amd64` → (6, 1).  (0, 0) for one that says nothing: rules for newer ones stay out."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def machine_id_of(instance_id: str) -> str:
    """The same for every start of an instance, different for every instance."""
    return hashlib.sha256(b"insula machine-id " + instance_id.encode()).hexdigest()[:32]


def command_error(error: AgentError, process: Process) -> InsulaError:
    """What kept `process` from running."""
    program = process.args[0] if process.args else ""
    if error.kind == "not-found":
        return CommandNotFound(program)
    if error.kind == "not-executable":
        if error.text.startswith("chdir") and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return CannotEnter(process.cwd, os.strerror(error.errno).lower())
        return CommandNotExecutable(program)
    return translate(error)


def _check_identity(answer: Fields, generation: str) -> None:
    if (answer.get("generation") or [""])[0] != generation:
        raise GuestFailed("the guest did not confirm its new identity; its workload was not started")


def submit_identity(channel: Channel, plan: LaunchPlan, generation: str) -> asyncio.Future[Fields]:
    pairs = messages.identity(
        plan,
        entropy=secrets.token_bytes(_ENTROPY_BYTES),
        time_ns=time.time_ns(),
        machine_id=machine_id_of(plan.id),
        generation=generation,
    )
    return channel.submit(Type.IDENTITY, pairs)


async def _all(answers: list[asyncio.Future[Fields]], process: Process) -> list[Fields]:
    """Every answer, or the first error in the order of sending (a later one only follows from it)."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return [await answer for answer in answers]
    except AgentError as error:
        raise command_error(error, process) from None
    except TimeoutError:
        raise GuestFailed(f"the guest did not get ready within {_TIMEOUT_S:.0f} s") from None
    finally:
        for answer in answers:
            answer.cancel()


async def prepare_workload(
    channel: Channel,
    plan: LaunchPlan,
    generation: str,
    share_files: dict[str, str],
    release: str,
    *,
    rescan: bool,
    rehearsal: bool = False,
    fresh: bool = False,
) -> None:
    """Identity, network, root and workload, up to the first instruction.  Raises as `command_error` when the
    agent refuses, GuestFailed when the identity is not confirmed."""
    filter_ = make_filter(plan.security.seccomp, plan.security.capabilities, kernel_version(release))
    answers = [
        submit_identity(channel, plan, generation),
        channel.submit(
            Type.CONFIGURE,
            messages.configure(plan, share_files, rescan=rescan, rehearsal=rehearsal, fresh=fresh),
        ),
    ]
    channel.send(Type.SECCOMP, 0, filter_)
    answers.append(channel.submit(Type.WORKLOAD, messages.workload(plan)))
    answered = await _all(answers, plan.process)
    _check_identity(answered[0], generation)


async def prepare_copy(channel: Channel, plan: LaunchPlan, generation: str) -> None:
    """A machine that goes on with another's workload becomes this plan's; the workload is frozen, before and
    after.  Raises GuestFailed."""
    if (channel.hello.get("state") or [""])[0] != "running":
        raise GuestFailed("the copy of the guest has no workload that runs")
    answers = [
        submit_identity(channel, plan, generation),
        channel.submit(Type.RENEW, messages.renew(plan)),
    ]
    answered = await _all(answers, plan.process)
    _check_identity(answered[0], generation)


async def renew_host_keys(channel: Channel, plan: LaunchPlan) -> None:
    """New ssh host keys of those types that the machine has any of.  Where a mount lies over them, they are
    somebody else's."""
    place = f"/{ssh_keys.DIRECTORY}"
    covered = any(place == m.target or place.startswith(m.target.rstrip("/") + "/") for m in plan.mounts)
    if not plan.host_keys or covered or plan.security.read_only_root:
        return
    files = AgentFiles(channel, plan.id)
    there = []
    for kind in plan.host_keys:
        with contextlib.suppress(NoSuchPath, InvalidRequest):  # not there; or not a directory
            await files.stat(f"{place}/{ssh_keys.key_name(kind)}")
            there.append(kind)
    if there:
        archive = await asyncio.to_thread(ssh_keys.make_archive, there, f"root@{plan.hostname}")
        await files.put(place, _once(archive), no_overwrite_dir=False, copy_owner=True)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def prepare_helper(channel: Channel, plan: LaunchPlan, generation: str) -> None:
    """Only the root, for files."""
    pairs = messages.configure_helper()
    answers = [submit_identity(channel, plan, generation), channel.submit(Type.CONFIGURE, pairs)]
    answered = await _all(answers, plan.process)
    _check_identity(answered[0], generation)
