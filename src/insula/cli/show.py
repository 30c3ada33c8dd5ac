"""ps, inspect, logs, top, stats, port, diff: what an instance is and does."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from insula.cli import values
from insula.cli.connect import pass_client
from insula.cli.flags import FILTER, FORMAT, ROWS_FORMAT
from insula.cli.table import age_of, human_binary, human_size, joined, print_rows, utc_text
from insula.cli.values import parse_filters
from insula.client import Client
from insula.errors import DaemonRefused, InvalidRequest
from insula.model.go_template import render


def _ports(ports: list[dict[str, Any]]) -> str:
    texts = []
    for port in sorted(ports, key=lambda p: (p["PrivatePort"], p.get("IP", ""))):
        inside = f"{port['PrivatePort']}/{port['Type']}"
        if port.get("PublicPort"):
            ip = port.get("IP") or "0.0.0.0"
            ip = f"[{ip}]" if ":" in ip else ip
            inside = f"{ip}:{port['PublicPort']}->{inside}"
        texts.append(inside)
    return ", ".join(texts)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@FILTER
@click.option("-n", "--last", type=int, default=-1, metavar="N", help="The N created last.")
@click.option("-l", "--latest", is_flag=True, help="The one created last.")
@click.option("-s", "--size", is_flag=True, help="Show sizes.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten.")
@ROWS_FORMAT
@click.pass_context
def ps(
    ctx: click.Context,
    everything: bool,
    quiet: bool,
    filters: tuple[str, ...],
    last: int,
    latest: bool,
    size: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """List instances, and what isolates each."""
    client = pass_client(ctx)
    limit = 1 if latest else last
    listed = client.get(
        "/containers/json",
        all=everything,
        limit=limit if limit > 0 else None,
        size=size or None,
        filters=parse_filters(filters) if filters else None,
    )
    rows = [row_of(entry, no_trunc) for entry in listed]
    if quiet:
        for row in rows:
            print(row["ID"])
        return
    columns = {
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "Command": "COMMAND",
        "RunningFor": "CREATED",
        "Status": "STATUS",
        "Isolation": "ISOLATION",
        "Ports": "PORTS",
        "Names": "NAMES",
    }
    if size:
        columns["Size"] = "SIZE"
    print_rows(rows, columns, template=template)


def row_of(entry: dict[str, Any], no_trunc: bool) -> dict[str, Any]:
    """One entry of /containers/json as `ps` shows it."""
    command = entry["Command"]
    if not no_trunc and len(command) > 20:
        command = command[:19] + "…"
    return {
        "ID": entry["Id"] if no_trunc else entry["Id"][:12],
        "Image": entry["Image"],
        "Command": f'"{command}"',
        "RunningFor": age_of(entry["Created"]),
        "CreatedAt": utc_text(entry["Created"]),
        "Status": entry["Status"],
        "State": entry["State"],
        "Isolation": entry["HostConfig"].get("Isolation", ""),
        "Ports": _ports(entry.get("Ports") or []),
        "Names": ",".join(name.removeprefix("/") for name in entry["Names"]),
        "Labels": joined(entry.get("Labels")),
        "Networks": ",".join((entry.get("NetworkSettings") or {}).get("Networks") or {}),
        "Mounts": ",".join(m.get("Name") or m.get("Source", "") for m in entry.get("Mounts") or []),
        "LocalVolumes": str(sum(m.get("Driver") == "local" for m in entry.get("Mounts") or [])),
        "Size": f"{human_size(entry.get('SizeRw') or 0)} "
        f"(virtual {human_size(entry.get('SizeRootFs') or 0)})",
    }


@click.command()
@FORMAT
@click.option("-s", "--size", is_flag=True, help="Show sizes of containers.")
@click.option(
    "--type", "kind", type=click.Choice(["container", "image", "network", "volume"]), help="What it is."
)
@click.argument("name", nargs=-1, required=True)
@click.pass_context
def inspect(
    ctx: click.Context, name: tuple[str, ...], template: str | None, size: bool, kind: str | None
) -> int:
    """All about instances, images, networks or volumes, as JSON."""
    under = ctx.parent.info_name if ctx.parent is not None else None
    if kind is None and under in ("container", "image"):
        kind = under
    return inspect_all(pass_client(ctx), name, template, kind=kind, size=size)


def inspect_all(
    client: Client, names: tuple[str, ...], template: str | None, *, kind: str | None, size: bool = False
) -> int:
    """Print what was found, then say what was not; 1 if anything was not."""
    found, missing = [], []
    for ref in names:
        value = _look_up(client, ref, kind, size)
        found += [] if value is None else [value]
        missing += [ref] if value is None else []
    print_found(found, template)
    sys.stdout.flush()
    for ref in missing:
        print(f"insula: No such {kind or 'object'}: {ref}", file=sys.stderr)
    return 1 if missing else 0


def print_found(found: Sequence[Any], template: str | None) -> None:
    """As one JSON array; with a template, or `json`, each on a line."""
    if not template:
        print(json.dumps(list(found), indent=4, ensure_ascii=False))
        return
    for value in found:
        print(
            json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            if template == "json"
            else render(template, value)
        )


def _look_up(client: Client, ref: str, kind: str | None, size: bool) -> Any:
    routes = {
        "container": f"/containers/{ref}/json",
        "image": f"/images/{ref}/json",
        "network": f"/networks/{ref}",
        "volume": f"/volumes/{ref}",
    }
    for name, route in routes.items():
        if kind in (None, name):
            try:
                return client.get(route, size=True) if size and name == "container" else client.get(route)
            except DaemonRefused as error:
                if error.http_status != 404:
                    raise
    return None


_AGO = re.compile(r"[0-9.]+(ns|us|ms|s|m|h)([0-9.]+(ns|us|ms|s|m|h))*")


def moment(text: str | None, flag: str) -> str | None:
    """`--since 10m`, a Unix time or RFC 3339, as seconds since 1970.  Raises InvalidRequest."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return text
    if _AGO.fullmatch(text):
        return f"{time.time() - values.parse_duration_ns(text, flag) / 1e9:.9f}"
    from insula.cli.table import parse_time

    try:
        return f"{parse_time(text):.9f}"
    except ValueError:
        raise InvalidRequest(f"{flag}: {text!r} is neither a duration (10m) nor a time") from None


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines.")
@click.option("--since", metavar="TIME", help="From then on: 10m, or 2026-01-31T12:00:00Z.")
@click.option("--until", metavar="TIME", help="Up to then.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--details", is_flag=True, help="Show what the log options labels, env and tag say.")
@click.argument("instance")
@click.pass_context
def logs(
    ctx: click.Context,
    instance: str,
    follow: bool,
    tail: str,
    since: str | None,
    until: str | None,
    timestamps: bool,
    details: bool,
) -> None:
    """What an instance has written to stdout and stderr."""
    client = pass_client(ctx)
    tty = client.get(f"/containers/{instance}/json")["Config"]["Tty"]
    answer = client.request(
        "GET",
        f"/containers/{instance}/logs",
        query={
            "stdout": True,
            "stderr": True,
            "follow": follow,
            "tail": tail,
            "timestamps": timestamps,
            "details": details,
            "since": moment(since, "--since"),
            "until": moment(until, "--until"),
        },
    )
    outputs = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
    if tty:
        for piece in answer.pieces():
            os.write(1, piece)
        return
    with answer:
        while header := answer.read_exactly(8):
            data = answer.read_exactly(int.from_bytes(header[4:8], "big"))
            outputs[header[0]].write(data)
            outputs[header[0]].flush()


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("instance")
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def top(ctx: click.Context, instance: str, ps_options: tuple[str, ...]) -> None:
    """Processes of an instance; PS_OPTIONS are those of ps."""
    table = pass_client(ctx).get(f"/containers/{instance}/top", ps_args=" ".join(ps_options) or None)
    rows = [dict(zip(table["Titles"], row, strict=True)) for row in table["Processes"]]
    print_rows(rows, {title: title for title in table["Titles"]}, least=20)


def _usage(sample: dict[str, Any], name: str) -> dict[str, Any]:
    cpu, before = sample["cpu_stats"], sample["precpu_stats"]
    used = cpu["cpu_usage"]["total_usage"] - before.get("cpu_usage", {}).get("total_usage", 0)
    system = cpu.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    percent = used / system * (cpu.get("online_cpus") or 1) * 100 if system > 0 and used > 0 else 0.0
    memory = sample.get("memory_stats") or {}
    cached = (memory.get("stats") or {}).get("inactive_file") or 0
    usage, limit = max(0, memory.get("usage", 0) - cached), memory.get("limit", 0)
    networks = (sample.get("networks") or {}).values()
    blocks = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
    read = sum(b["value"] for b in blocks if b["op"].lower() == "read")
    written = sum(b["value"] for b in blocks if b["op"].lower() == "write")
    rx, tx = sum(n["rx_bytes"] for n in networks), sum(n["tx_bytes"] for n in networks)
    return {
        "ID": sample["id"][:12],
        "Container": name,
        "Name": name,
        "CPUPerc": f"{percent:.2f}%",
        "MemUsage": f"{human_binary(usage)} / {human_binary(limit)}",
        "MemPerc": f"{usage / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{human_size(rx)} / {human_size(tx)}",
        "BlockIO": f"{human_size(read)} / {human_size(written)}",
        "PIDs": (sample.get("pids_stats") or {}).get("current", 0),
    }


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("--no-stream", is_flag=True, help="Once, then end.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten ids.")
@ROWS_FORMAT
@click.argument("instance", nargs=-1)
@click.pass_context
def stats(
    ctx: click.Context,
    instance: tuple[str, ...],
    everything: bool,
    no_stream: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """What instances use of the machine, renewed every second."""
    from concurrent.futures import ThreadPoolExecutor

    client = pass_client(ctx)
    columns = {
        "ID": "CONTAINER ID",
        "Name": "NAME",
        "CPUPerc": "CPU %",
        "MemUsage": "MEM USAGE / LIMIT",
        "MemPerc": "MEM %",
        "NetIO": "NET I/O",
        "BlockIO": "BLOCK I/O",
        "PIDs": "PIDS",
    }

    def take(ref: str) -> dict[str, Any]:
        sample = client.get(f"/containers/{ref}/stats", stream=False)
        row = _usage(sample, sample["name"].removeprefix("/"))
        row["Container"] = ref if ref in instance else row["ID"]
        return {**row, "ID": sample["id"]} if no_trunc else row

    with ThreadPoolExecutor(16) as pool:
        while True:
            refs = instance or tuple(c["Id"] for c in client.get("/containers/json", all=everything))
            rows = list(pool.map(take, refs))
            if not no_stream and sys.stdout.isatty():
                print("\033[2J\033[H", end="")
            print_rows(rows, columns, template=template)
            sys.stdout.flush()
            if no_stream:
                return
            time.sleep(0.5)  # each sample takes a second by itself


@click.command()
@click.argument("instance")
@click.argument("private_port", required=False)
@click.pass_context
def port(ctx: click.Context, instance: str, private_port: str | None) -> int:
    """Where an instance's ports are published on the host."""
    published = pass_client(ctx).get(f"/containers/{instance}/json")["NetworkSettings"]["Ports"] or {}
    if private_port:
        key = private_port if "/" in private_port else f"{private_port}/tcp"
        if not published.get(key):
            raise InvalidRequest(f"No public port '{private_port}' published for {instance}")
        published = {key: published[key]}
    for key, bindings in published.items():
        for binding in bindings or ():
            ip = f"[{binding['HostIp']}]" if ":" in binding["HostIp"] else binding["HostIp"]
            where = f"{ip}:{binding['HostPort']}"
            print(where if private_port else f"{key} -> {where}")
    return 0


@click.command()
@click.argument("instance")
@click.pass_context
def diff(ctx: click.Context, instance: str) -> None:
    """Files that differ from the image.  A: added, C: changed, D: deleted."""
    for change in pass_client(ctx).get(f"/containers/{instance}/changes") or ():
        print(f"{'CAD'[change['Kind']]} {change['Path']}")
