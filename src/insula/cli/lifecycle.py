"""stop, kill, rm and their like: one request per instance named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import click

from insula.cli import values
from insula.cli.connect import pass_client
from insula.errors import DaemonRefused, InvalidRequest


def for_each(
    names: Iterable[str], act: Callable[[str], object], *, echo: bool = True, may_be_missing: bool = False
) -> int:
    """Do it to each, print the names that worked, go on after errors; 1 when any failed.

    `may_be_missing`: what does not exist is said and is no failure (`rm -f`).
    """
    status = 0
    for name in names:
        try:
            act(name)
        except DaemonRefused as error:
            print(f"insula: {error}", file=sys.stderr)
            status = status if may_be_missing and error.http_status == 404 else 1
        else:
            if echo:
                print(name)
    return status


_INSTANCES = click.argument("instance", nargs=-1, required=True)


@click.command()
@click.option(
    "-t", "--timeout", "--time", type=int, metavar="SECONDS", help="Grace before SIGKILL; -1 waits for ever."
)
@click.option("-s", "--signal", metavar="SIGNAL", help="Signal to send first.")
@_INSTANCES
@click.pass_context
def stop(ctx: click.Context, instance: tuple[str, ...], timeout: int | None, signal: str | None) -> int:
    """Stop instances.  They get their stop signal, and SIGKILL after the grace."""
    client = pass_client(ctx)
    query = {"t": timeout, "signal": signal}
    return for_each(
        instance,
        lambda ref: client.request("POST", f"/containers/{ref}/stop", query=query, ok=(304,)).close(),
    )


@click.command()
@click.option("-t", "--timeout", "--time", type=int, metavar="SECONDS", help="Grace before SIGKILL.")
@click.option("-s", "--signal", metavar="SIGNAL", help="Signal to send first.")
@_INSTANCES
@click.pass_context
def restart(ctx: click.Context, instance: tuple[str, ...], timeout: int | None, signal: str | None) -> int:
    """Stop instances and start them again."""
    client = pass_client(ctx)
    return for_each(instance, lambda ref: client.post(f"/containers/{ref}/restart", t=timeout, signal=signal))


@click.command()
@click.option("-s", "--signal", default="KILL", metavar="SIGNAL", help="Signal to send.")
@_INSTANCES
@click.pass_context
def kill(ctx: click.Context, instance: tuple[str, ...], signal: str) -> int:
    """Send a signal to instances; KILL unless another is named."""
    client = pass_client(ctx)
    return for_each(instance, lambda ref: client.post(f"/containers/{ref}/kill", signal=signal))


@click.command()
@click.option("-f", "--force", is_flag=True, help="Also when it runs (SIGKILL).")
@click.option("-v", "--volumes", is_flag=True, help="Remove its anonymous volumes too.")
@click.option("-l", "--link", is_flag=True, help="Only the link INSTANCE/ALIAS, not an instance.")
@_INSTANCES
@click.pass_context
def rm(ctx: click.Context, instance: tuple[str, ...], force: bool, volumes: bool, link: bool) -> int:
    """Remove instances."""
    client = pass_client(ctx)
    return for_each(
        instance,
        lambda ref: client.delete(f"/containers/{ref}", force=force, v=volumes, link=link),
        may_be_missing=force,
    )


@click.command()
@_INSTANCES
@click.pass_context
def wait(ctx: click.Context, instance: tuple[str, ...]) -> int:
    """Wait until instances have ended and print their exit codes."""
    client = pass_client(ctx)
    return for_each(
        instance, lambda ref: print(client.post(f"/containers/{ref}/wait")["StatusCode"]), echo=False
    )


@click.command()
@_INSTANCES
@click.pass_context
def pause(ctx: click.Context, instance: tuple[str, ...]) -> int:
    """Freeze all processes of instances."""
    client = pass_client(ctx)
    return for_each(instance, lambda ref: client.post(f"/containers/{ref}/pause"))


@click.command()
@_INSTANCES
@click.pass_context
def unpause(ctx: click.Context, instance: tuple[str, ...]) -> int:
    """Let frozen instances go on."""
    client = pass_client(ctx)
    return for_each(instance, lambda ref: client.post(f"/containers/{ref}/unpause"))


@click.command()
@click.argument("instance")
@click.argument("name")
@click.pass_context
def rename(ctx: click.Context, instance: str, name: str) -> None:
    """Give an instance another name."""
    pass_client(ctx).post(f"/containers/{instance}/rename", name=name)


@click.command()
@click.option("-m", "--memory", metavar="BYTES", help="Memory limit.")
@click.option("--memory-swap", metavar="BYTES", help="Memory and swap together; -1 is unlimited.")
@click.option("--memory-reservation", metavar="BYTES", help="Soft memory limit.")
@click.option("--cpus", metavar="N", help="How many CPUs' worth of time.")
@click.option("-c", "--cpu-shares", type=int, metavar="N", help="Relative weight.")
@click.option("--cpu-period", type=int, metavar="US", help="CFS period in microseconds.")
@click.option("--cpu-quota", type=int, metavar="US", help="CFS quota in microseconds.")
@click.option("--cpuset-cpus", metavar="LIST", help="CPUs it may run on.")
@click.option("--cpuset-mems", metavar="LIST", help="Memory nodes it may use.")
@click.option("--blkio-weight", type=int, metavar="N", help="Block I/O weight: 10 to 1000.")
@click.option("--cpu-rt-period", type=int, metavar="US", help="Real-time period, where the kernel has it.")
@click.option("--cpu-rt-runtime", type=int, metavar="US", help="Real-time runtime of each such period.")
@click.option("--kernel-memory", hidden=True)
@click.option("--pids-limit", type=int, metavar="N", help="How many processes; -1 is unlimited.")
@click.option("--restart", metavar="POLICY", help="no, on-failure[:N], always, unless-stopped.")
@_INSTANCES
@click.pass_context
def update(ctx: click.Context, /, instance: tuple[str, ...], **options: object) -> int:
    """Change limits and restart policy of instances."""
    body: dict[str, object] = {}
    sizes = {
        "memory": "Memory",
        "memory_swap": "MemorySwap",
        "memory_reservation": "MemoryReservation",
        "kernel_memory": "KernelMemory",
    }
    for name, key in sizes.items():
        if options[name] is not None:
            text = str(options[name])
            body[key] = -1 if text == "-1" else values.parse_bytes(text, f"--{name.replace('_', '-')}")
    if options["cpus"] is not None:
        body["NanoCpus"] = values.parse_cpus(str(options["cpus"]))
    plain = {
        "cpu_shares": "CpuShares",
        "cpu_period": "CpuPeriod",
        "cpu_quota": "CpuQuota",
        "cpuset_cpus": "CpusetCpus",
        "cpuset_mems": "CpusetMems",
        "blkio_weight": "BlkioWeight",
        "cpu_rt_period": "CpuRealtimePeriod",
        "cpu_rt_runtime": "CpuRealtimeRuntime",
        "pids_limit": "PidsLimit",
    }
    body.update({key: options[name] for name, key in plain.items() if options[name] is not None})
    if options["restart"] is not None:
        body["RestartPolicy"] = values.parse_restart(str(options["restart"]))
    if not body:
        raise InvalidRequest("update: you must provide one or more flags when using this command")
    client = pass_client(ctx)

    def act(ref: str) -> None:
        for warning in client.post(f"/containers/{ref}/update", body).get("Warnings") or ():
            print(f"WARNING: {warning}", file=sys.stderr)

    return for_each(instance, act)
