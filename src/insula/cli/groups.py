"""`insula container …`, `image …`, `network …`, `volume …`, `system …`, `guest …`: Docker's long forms."""

from __future__ import annotations

import click

from insula.cli import copy, images, lifecycle, run, show
from insula.cli import system as engine
from insula.cli.build import build
from insula.cli.connect import pass_client
from insula.cli.disk_use import df
from insula.cli.flags import Group
from insula.cli.lifecycle import for_each
from insula.cli.progress import show_progress
from insula.cli.prune import ask, prune
from insula.cli.show import filters_of
from insula.cli.table import joined, print_rows
from insula.cli.values import parse_pairs
from insula.errors import InvalidRequest

_FILTER = click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match."
)
YES = click.option("--force", "-f", is_flag=True, help="Do not ask.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Names or ids only.")


@click.group(cls=Group)
def container() -> None:
    """Instances, of either isolation."""


for _command in (
    *(run.run, run.create, run.start, run.attach, run.exec_),
    *(lifecycle.stop, lifecycle.restart, lifecycle.kill, lifecycle.rm, lifecycle.wait),
    *(lifecycle.pause, lifecycle.unpause, lifecycle.rename, lifecycle.update),
    *(show.inspect, show.logs, show.top, show.stats, show.port, show.diff),
    *(copy.cp, copy.export, images.commit),
):
    container.add_command(_command)
container.add_command(show.ps, "ls")
container.aliases = {**Group.aliases, "ps": "ls"}


@click.group(cls=Group)
def image() -> None:
    """Images."""


for _command in (
    build,
    images.pull,
    images.push,
    images.tag,
    images.history,
    images.save,
    images.load,
    images.import_,
):
    image.add_command(_command)
image.add_command(images.images, "ls")
image.add_command(images.rmi, "rm")
image.add_command(show.inspect, "inspect")


@click.group(cls=Group)
def builder() -> None:
    """Builds."""


builder.add_command(build)


@builder.command(name="prune")
@click.option("-a", "--all", is_flag=True, hidden=True)  # caches have no other kind
@click.option("--keep-storage", metavar="BYTES", hidden=True)
@YES
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match.")
@click.pass_context
def prune_builds(ctx: click.Context, /, force: bool, filters: tuple[str, ...], **_: object) -> None:
    """Remove the caches of RUN --mount=type=cache that no build uses."""
    ask("Remove all unused caches of builds?", force)
    prune(pass_client(ctx), "build", filters_of(filters))


@container.command(name="prune")
@YES
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match.")
@click.pass_context
def prune_containers(ctx: click.Context, force: bool, filters: tuple[str, ...]) -> None:
    """Remove all instances that do not run."""
    ask("Remove all stopped instances?", force)
    prune(pass_client(ctx), "containers", filters_of(filters))


@image.command(name="prune")
@click.option("-a", "--all", "everything", is_flag=True, help="All unused images, not only untagged ones.")
@YES
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match.")
@click.pass_context
def prune_images(ctx: click.Context, everything: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove images that nothing uses."""
    ask("Remove all unused images?" if everything else "Remove all untagged images?", force)
    wanted = filters_of(filters)
    wanted["dangling"] = ["false" if everything else "true"]
    prune(pass_client(ctx), "images", wanted)


@click.group(cls=Group)
def volume() -> None:
    """Volumes."""


@volume.command(name="ls")
@_FILTER
@_QUIET
@click.option("--format", "template", metavar="TEMPLATE", help="json, table … or a template of {{.Fields}}.")
@click.pass_context
def list_volumes(ctx: click.Context, filters: tuple[str, ...], quiet: bool, template: str | None) -> None:
    """List volumes."""
    rows = pass_client(ctx).get("/volumes", filters=filters_of(filters) or None)["Volumes"] or []
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
@click.option("-f", "--format", "template", metavar="TEMPLATE", help="json, or a template of {{.Fields}}.")
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
@YES
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match.")
@click.pass_context
def prune_volumes(ctx: click.Context, everything: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove volumes that nothing uses."""
    ask("Remove all unused volumes?" if everything else "Remove all unused anonymous volumes?", force)
    wanted = filters_of(filters)
    if everything:
        wanted["all"] = ["true"]
    prune(pass_client(ctx), "volumes", wanted)


@click.group(cls=Group)
def system() -> None:
    """The engine."""


system.add_command(df)
system.add_command(engine.info)
system.add_command(engine.events)
system.add_command(engine.dial_stdio)


@system.command(name="prune")
@click.option("-a", "--all", "everything", is_flag=True, help="All unused images, not only untagged ones.")
@YES
@click.option("--volumes", is_flag=True, help="Anonymous volumes too.")
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="label=…, label!=… or until=… only."
)
@click.pass_context
def prune_system(
    ctx: click.Context, everything: bool, force: bool, volumes: bool, filters: tuple[str, ...]
) -> None:
    """Remove what nothing uses: stopped instances, networks, images, caches of builds, volumes if asked."""
    wanted = filters_of(filters)
    if volumes and "until" in wanted:
        raise InvalidRequest('The "until" filter is not supported with "--volumes"')
    ask("Remove all stopped instances, unused networks, images and caches of builds?", force)
    client = pass_client(ctx)
    prune(client, "containers", wanted)
    prune(client, "networks", wanted)
    if volumes:
        prune(client, "volumes", wanted)
    prune(client, "images", {**wanted, "dangling": ["false" if everything else "true"]})
    prune(client, "build", {key: value for key, value in wanted.items() if key == "until"})


@click.group(cls=Group)
def guest() -> None:
    """The kernel and the agent that virtual machines boot."""


@guest.command(name="make")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def make_guest(ctx: click.Context, quiet: bool) -> None:
    """Fetch and build it now instead of at the first virtual machine."""
    answer = pass_client(ctx).request("POST", "/insula/v1/guest/make", versioned=False)
    show_progress(answer.lines(), quiet=quiet)
