"""`insula container …`, `image …`, `builder …`, `system …`, `guest …`: the verbs under their nouns."""

from __future__ import annotations

import click

from insula.cli import archives, copy, images, lifecycle, run, show
from insula.cli import system as engine
from insula.cli.build import build
from insula.cli.connect import pass_client
from insula.cli.disk_use import df
from insula.cli.flags import Group
from insula.cli.progress import show_progress
from insula.cli.prune import YES, ask, prune, prune_options
from insula.cli.values import parse_filters
from insula.errors import InvalidRequest


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
    archives.save,
    archives.load,
    archives.import_,
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
@prune_options
@click.pass_context
def prune_builds(ctx: click.Context, /, force: bool, filters: tuple[str, ...], **_: object) -> None:
    """Remove caches (RUN --mount=type=cache) that no build uses."""
    ask("Remove all unused caches of builds?", force)
    prune(pass_client(ctx), ("build", parse_filters(filters)))


@container.command(name="prune")
@prune_options
@click.pass_context
def prune_containers(ctx: click.Context, force: bool, filters: tuple[str, ...]) -> None:
    """Remove all instances that do not run."""
    ask("Remove all stopped instances?", force)
    prune(pass_client(ctx), ("containers", parse_filters(filters)))


@image.command(name="prune")
@click.option("-a", "--all", "everything", is_flag=True, help="All unused images, not only untagged ones.")
@prune_options
@click.pass_context
def prune_images(ctx: click.Context, everything: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove images that nothing uses."""
    ask("Remove all unused images?" if everything else "Remove all untagged images?", force)
    wanted = parse_filters(filters)
    wanted["dangling"] = ["false" if everything else "true"]
    prune(pass_client(ctx), ("images", wanted))


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
    """Remove what nothing uses.

    Stopped instances, networks, untagged images, caches of builds; volumes if asked.
    """
    wanted = parse_filters(filters)
    if volumes and "until" in wanted:
        raise InvalidRequest('The "until" filter is not supported with "--volumes"')
    ask("Remove all stopped instances, unused networks, images and caches of builds?", force)
    prune(
        pass_client(ctx),
        ("containers", wanted),
        ("networks", wanted),
        *([("volumes", wanted)] if volumes else []),
        ("images", {**wanted, "dangling": ["false" if everything else "true"]}),
        ("build", {key: value for key, value in wanted.items() if key == "until"}),
    )


@click.group(cls=Group)
def guest() -> None:
    """The kernel and the agent that virtual machines boot."""


@guest.command(name="make")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def make_guest(ctx: click.Context, quiet: bool) -> None:
    """Fetch and build it now, not at the first virtual machine."""
    answer = pass_client(ctx).request("POST", "/insula/v1/guest/make", versioned=False)
    show_progress(answer.lines(), quiet=quiet)
