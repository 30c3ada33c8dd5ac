"""`insula fork` and `insula snapshot …`: virtual machines that run, copied and kept."""

from __future__ import annotations

import sys
from typing import Any

import click

from insula.cli.archives import open_input, pieces_of, start_output
from insula.cli.connect import pass_client
from insula.cli.flags import Group
from insula.cli.lifecycle import for_each
from insula.cli.table import age_of, human_size, parse_time, print_rows
from insula.errors import InvalidRequest

_PATH = "/insula/v1/containers"


@click.command()
@click.option("-n", "--count", type=int, default=1, show_default=True, metavar="N", help="How many copies.")
@click.option(
    "--name",
    default="",
    metavar="NAME",
    help="Of the copy; of several NAME-1, NAME-2, …  [default: the source's]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print ids only, in full.")
@click.argument("instance")
@click.pass_context
def fork(ctx: click.Context, instance: str, count: int, name: str, quiet: bool) -> int:
    """Make live copies of a virtual machine that runs.

    They have its memory, processes and disk, as they are now.  The source stands still for a moment and goes
    on.  Each copy is an instance of its own: another id, name, address, MAC, machine id and random numbers;
    connections of the source to elsewhere are reset in it.  Prints the name of each copy.  Containers cannot
    be forked: `insula commit` copies their files.
    """
    body = {"Count": count, "Name": name}
    done = pass_client(ctx).request("POST", f"{_PATH}/{instance}/fork", body=body, versioned=False).json()
    for warning in done["Warnings"]:
        print(f"WARNING: {warning}", file=sys.stderr)
    status = 0
    for copy in done["Copies"]:
        if copy["Error"]:
            print(f"insula: {copy['Name']}: {copy['Error']}", file=sys.stderr)
            status = 1
        else:
            print(copy["Id"] if quiet else copy["Name"])
    return status


@click.group(cls=Group)
def snapshot() -> None:
    """Virtual machines as they were, to go on from.

    A snapshot has memory, processes and disk.  It belongs to its instance and is removed with it.  `docker
    checkpoint` shows the same ones.
    """


def _request(ctx: click.Context, method: str, path: str, body: Any = None) -> Any:
    return pass_client(ctx).request(method, path, body=body, versioned=False).json()


@snapshot.command(name="create")
@click.option("--stop", is_flag=True, help="End the instance at that instant.")
@click.argument("instance")
@click.argument("name", default="")
@click.pass_context
def create_snapshot(ctx: click.Context, instance: str, name: str, stop: bool) -> None:
    """Take a snapshot of an INSTANCE that runs.  NAME is the time if there is none.

    The instance stands still for a moment and goes on; with --stop it ends there, and a restore goes on as if
    nothing had been.
    """
    made = _request(ctx, "POST", f"{_PATH}/{instance}/snapshots", {"Name": name, "LeaveRunning": not stop})
    print(made["Name"])


@snapshot.command(name="ls")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--format", "form", metavar="TEMPLATE", help="json, table … or a template of {{.Fields}}.")
@click.argument("instance", default="")
@click.pass_context
def list_snapshots(ctx: click.Context, instance: str, quiet: bool, form: str | None) -> None:
    """List snapshots, of one INSTANCE or of all, newest first."""
    query = {"container": instance} if instance else None
    found = pass_client(ctx).request("GET", "/insula/v1/snapshots", query=query, versioned=False).json()
    if quiet:
        for one in found:
            print(one["Name"])
        return
    rows = [
        {
            **one,
            "Memory": f"{one['MemoryMiB']}MiB",
            "Size": human_size(one["Size"]),
            "CreatedSince": age_of(parse_time(one["Created"])),
        }
        for one in found
    ]
    columns = {
        "InstanceName": "INSTANCE",
        "Name": "SNAPSHOT",
        "Image": "IMAGE",
        "Memory": "MEMORY",
        "Size": "SIZE",
        "CreatedSince": "CREATED",
    }
    print_rows(rows, columns, template=form)


@snapshot.command(name="restore")
@click.option("--as", "new_name", default="", metavar="NAME", help="As another instance; the old one stays.")
@click.argument("instance")
@click.argument("name")
@click.pass_context
def restore_snapshot(ctx: click.Context, instance: str, name: str, new_name: str) -> None:
    """Go on from a snapshot.

    In its INSTANCE, which must be stopped, or (--as) as another one.  The instance's disk is then as it was
    at the snapshot; what it has written since is given up.
    """
    _request(ctx, "POST", f"{_PATH}/{instance}/snapshots/{name}/restore", {"Name": new_name})
    print(new_name or instance)


@snapshot.command(name="rm")
@click.argument("instance")
@click.argument("name", nargs=-1, required=True)
@click.pass_context
def remove_snapshot(ctx: click.Context, instance: str, name: tuple[str, ...]) -> int:
    """Remove snapshots of an INSTANCE."""
    client = pass_client(ctx)
    return for_each(
        name,
        lambda one: client.request("DELETE", f"{_PATH}/{instance}/snapshots/{one}", versioned=False).close(),
    )


@snapshot.command(name="export")
@click.option("-o", "--output", metavar="FILE", help="Write here, not to stdout.")
@click.argument("instance")
@click.argument("name")
@click.pass_context
def export_snapshot(ctx: click.Context, instance: str, name: str, output: str | None) -> None:
    """Write a snapshot and its image's disk as one tar file.

    `insula snapshot import` reads it, here or on any such host.
    """
    client = pass_client(ctx)
    answer = client.request("GET", f"{_PATH}/{instance}/snapshots/{name}/export", versioned=False)
    with start_output(output) as file:
        for piece in answer.pieces():
            file.write(piece)


@snapshot.command(name="import")
@click.option("-i", "--input", "source", metavar="FILE", help="Read from here, not from stdin.")
@click.option("--name", default="", metavar="NAME", help="Of the new instance.  [default: as before, and -1]")
@click.pass_context
def import_snapshot(ctx: click.Context, source: str | None, name: str) -> None:
    """Make an instance of an exported snapshot, not started.  Prints its name and the snapshot's.

    Everything in the file is checked.  `insula snapshot restore INSTANCE NAME` starts it.
    """
    if source is None and sys.stdin.isatty():
        raise InvalidRequest("import: there is nothing to read", hint="use -i FILE, or a pipe")
    with open_input(source) as file:
        made = (
            pass_client(ctx)
            .request(
                "POST",
                "/insula/v1/snapshots/import",
                query={"name": name},
                raw=pieces_of(file),
                versioned=False,
            )
            .json()
        )
    print(made["Name"], made["Snapshot"])


@click.group(cls=Group)
def checkpoint() -> None:
    """Docker's word for snapshots of virtual machines.  `start --checkpoint NAME` goes on from one."""


_DIRECTORY = click.option("--checkpoint-dir", hidden=True)  # refused by the daemon, with the reason


@checkpoint.command(name="create")
@click.option("--leave-running", is_flag=True, help="The instance goes on; else it ends at that instant.")
@_DIRECTORY
@click.argument("instance")
@click.argument("name")
@click.pass_context
def create_checkpoint(
    ctx: click.Context, instance: str, name: str, leave_running: bool, checkpoint_dir: str | None
) -> None:
    """Take a checkpoint of an INSTANCE that runs."""
    body = {"CheckpointID": name, "CheckpointDir": checkpoint_dir or "", "Exit": not leave_running}
    pass_client(ctx).request("POST", f"/containers/{instance}/checkpoints", body=body).close()
    print(name)


@checkpoint.command(name="ls")
@_DIRECTORY
@click.argument("instance")
@click.pass_context
def list_checkpoints(ctx: click.Context, instance: str, checkpoint_dir: str | None) -> None:
    """List the checkpoints of an INSTANCE."""
    found = pass_client(ctx).get(f"/containers/{instance}/checkpoints", dir=checkpoint_dir)
    print_rows(found or [], {"Name": "CHECKPOINT NAME"})


@checkpoint.command(name="rm")
@_DIRECTORY
@click.argument("instance")
@click.argument("name")
@click.pass_context
def remove_checkpoint(ctx: click.Context, instance: str, name: str, checkpoint_dir: str | None) -> None:
    """Remove a checkpoint of an INSTANCE."""
    pass_client(ctx).delete(f"/containers/{instance}/checkpoints/{name}", dir=checkpoint_dir)
