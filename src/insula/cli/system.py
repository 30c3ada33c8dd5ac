"""version, info, events and dial-stdio: the engine itself."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

import click

from insula import __version__
from insula.cli.connect import pass_client
from insula.cli.flags import FILTER, FORMAT
from insula.cli.show import moment
from insula.cli.table import human_binary
from insula.cli.terminal import DEFAULT_DETACH_KEYS, pump
from insula.cli.values import parse_filters
from insula.client import API_VERSION
from insula.errors import DaemonUnreachable
from insula.model.go_template import render


@click.command()
@FORMAT
@click.pass_context
def version(ctx: click.Context, template: str | None) -> int:
    """Versions of the client and of the daemon."""
    ours = {
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "Python": platform.python_version(),
        "Os": platform.system().lower(),
        "Arch": platform.machine(),
    }
    problem: DaemonUnreachable | None = None
    theirs: dict[str, Any] | None = None
    try:
        theirs = pass_client(ctx).get("/version")
    except DaemonUnreachable as error:
        problem = error
    both = {"Client": ours, "Server": theirs}
    if template:
        print(json.dumps(both) if template == "json" else render(template, both))
    else:
        _section("Client", ours)
        if theirs is not None:
            _section("Server", {k: v for k, v in theirs.items() if isinstance(v, (str, bool))})
            for part in theirs.get("Components") or ():
                print(f" {part['Name']}: {part['Version']}")
    if problem is not None:
        raise problem
    return 0


def _section(title: str, values: dict[str, Any]) -> None:
    print(f"{title}:")
    for key, value in values.items():
        print(f" {key + ':':<16}{value}")


@click.command()
@FORMAT
@click.pass_context
def info(ctx: click.Context, template: str | None) -> None:
    """What the engine runs on, and what it can."""
    found = pass_client(ctx).get("/info")
    if template:
        print(json.dumps(found) if template == "json" else render(template, found))
        return
    print(f"Instances: {found['Containers']}")
    for key in ("Running", "Paused", "Stopped"):
        print(f" {key}: {found['Containers' + key]}")
    print(f"Images: {found['Images']}")
    labels = {
        "Server version": "ServerVersion",
        "Default isolation": "Isolation",
        "Storage driver": "Driver",
        "Runtime": "DefaultRuntime",
        "Cgroup version": "CgroupVersion",
        "Cgroup driver": "CgroupDriver",
        "Kernel": "KernelVersion",
        "Operating system": "OperatingSystem",
        "CPUs": "NCPU",
        "Data root": "DockerRootDir",
        "Name": "Name",
        "ID": "ID",
    }
    for label, key in labels.items():
        print(f"{label}: {found.get(key, '')}")
    print(f"Memory: {human_binary(found['MemTotal'])}")
    for name, value in found.get("DriverStatus") or ():
        print(f"{name}: {value}")
    for warning in found.get("Warnings") or ():
        print(warning if warning.startswith("WARNING: ") else f"WARNING: {warning}")


@click.command()
@click.option("--since", metavar="TIME", help="From then on.")
@click.option("--until", metavar="TIME", help="Up to then, and end.")
@FILTER
@click.option("--format", "template", metavar="TEMPLATE", help="json, or a template of {{.Fields}}.")
@click.pass_context
def events(
    ctx: click.Context,
    since: str | None,
    until: str | None,
    filters: tuple[str, ...],
    template: str | None,
) -> None:
    """What happens, as it happens."""
    query = {
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
        "filters": parse_filters(filters) or None,
    }
    for event in pass_client(ctx).request("GET", "/events", query=query).lines():
        if template:
            print(json.dumps(event) if template == "json" else render(template, _named(event)), flush=True)
            continue
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(event["time"]))
        zone = time.strftime("%z", time.localtime(event["time"]))
        attributes = ", ".join(f"{k}={v}" for k, v in sorted(event["Actor"]["Attributes"].items()))
        stamp = f"{when}.{event['timeNano'] % 1_000_000_000:09d}{zone[:3]}:{zone[3:]}"
        print(f"{stamp} {event['Type']} {event['Action']} {event['Actor']['ID']} ({attributes})", flush=True)


@click.command(name="dial-stdio")
@click.pass_context
def dial_stdio(ctx: click.Context) -> None:
    """Be a connection to the daemon, on stdin and stdout.

    It is the far side of `docker -H ssh://`.  Ends when the daemon closes the connection.  The end of the
    input closes only the half that goes there, so what is on its way back still arrives.
    """
    connection = pass_client(ctx).stream()
    try:
        pump(connection, stdin=True, tty_mode=False, detach_keys=DEFAULT_DETACH_KEYS)
    finally:
        connection.close()


class _Attributes(dict[str, str]):
    """Of an event: what it does not have is shown as docker shows it, and ends nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return "<no value>"


def _named(event: dict[str, Any]) -> dict[str, Any]:
    """With the names that docker's templates have for what is written small in JSON."""
    actor = event["Actor"]
    return {
        **event,
        "Actor": {**actor, "Attributes": _Attributes(actor["Attributes"])},
        "Scope": event.get("scope", ""),
        "Time": event["time"],
        "TimeNano": event["timeNano"],
    }
