"""`insula volume …`: what outlives the instances that use it."""

from __future__ import annotations

import click

from insula.cli import show
from insula.cli.connect import pass_client
from insula.cli.flags import FILTER, FORMAT, ROWS_FORMAT, Group
from insula.cli.lifecycle import for_each
from insula.cli.prune import ask, prune, prune_options
from insula.cli.table import joined, print_rows
from insula.cli.values import parse_filters, parse_pairs


@click.group(cls=Group)
def volume() -> None:
    """Volumes."""


@volume.command(name="ls")
@FILTER
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@ROWS_FORMAT
@click.pass_context
def list_volumes(ctx: click.Context, filters: tuple[str, ...], quiet: bool, template: str | None) -> None:
    """List volumes."""
    rows = pass_client(ctx).get("/volumes", filters=parse_filters(filters) or None)["Volumes"] or []
    if quiet:
        for row in rows:
            print(row["Name"])
        return
    shown = [{**row, "Labels": joined(row.get("Labels")), "Links": "N/A", "Size": "N/A"} for row in rows]
    print_rows(shown, {"Driver": "DRIVER", "Name": "VOLUME NAME"}, template=template)


@volume.command(name="create")
@click.option("-d", "--driver", default="local", metavar="NAME", help="Driver.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Set a label.")
@click.option("-o", "--opt", multiple=True, metavar="KEY=VALUE", help="Option of the driver.")
@click.argument("name", required=False)
@click.pass_context
def create_volume(
    ctx: click.Context, name: str | None, driver: str, label: tuple[str, ...], opt: tuple[str, ...]
) -> None:
    """Make a volume."""
    body = {
        "Name": name or "",
        "Driver": driver,
        "Labels": parse_pairs(label, "--label"),
        "DriverOpts": parse_pairs(opt, "--opt"),
    }
    print(pass_client(ctx).post("/volumes/create", body)["Name"])


@volume.command(name="inspect")
@FORMAT
@click.argument("name", nargs=-1, required=True)
@click.pass_context
def inspect_volume(ctx: click.Context, name: tuple[str, ...], template: str | None) -> int:
    """Everything about volumes, as JSON."""
    return show.inspect_all(pass_client(ctx), name, template, kind="volume")


@volume.command(name="rm")
@click.option("-f", "--force", is_flag=True, help="Fine if it does not exist.")
@click.argument("name", nargs=-1, required=True)
@click.pass_context
def remove_volume(ctx: click.Context, name: tuple[str, ...], force: bool) -> int:
    """Remove volumes and what is in them."""
    client = pass_client(ctx)
    return for_each(name, lambda ref: client.delete(f"/volumes/{ref}", force=force))


@volume.command(name="prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Named ones too.")
@prune_options
@click.pass_context
def prune_volumes(ctx: click.Context, everything: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove volumes that nothing uses."""
    ask("Remove all unused volumes?" if everything else "Remove all unused anonymous volumes?", force)
    wanted = parse_filters(filters)
    if everything:
        wanted["all"] = ["true"]
    prune(pass_client(ctx), ("volumes", wanted))
