"""`insula fork`: live copies of virtual machines that run."""

from __future__ import annotations

import sys

import click

from insula.cli.connect import pass_client


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
    """Make live copies of a virtual machine: its memory, processes and disk, as they are now.

    The source stands still for a moment and goes on.  Each copy is an instance of its own: another id, name,
    address, MAC, machine id and random numbers; connections of the source to elsewhere are reset in it.
    Prints the name of each copy.  Containers cannot be forked: `insula commit` copies their files.
    """
    done = (
        pass_client(ctx)
        .request(
            "POST",
            f"/insula/v1/containers/{instance}/fork",
            body={"Count": count, "Name": name},
            versioned=False,
        )
        .json()
    )
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
