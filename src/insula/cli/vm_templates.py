"""`insula template …`: the frozen guests that virtual machines start from."""

from __future__ import annotations

from typing import Any

import click

from insula.cli.connect import pass_client
from insula.cli.flags import Group
from insula.cli.lifecycle import for_each
from insula.cli.progress import show_progress
from insula.cli.prune import YES, ask
from insula.cli.show import print_found
from insula.cli.table import age_of, human_size, parse_time, print_rows

_PATH = "/insula/v1/templates"


@click.group(cls=Group)
def template() -> None:
    """Frozen guests that virtual machines start from.

    There is one for each size of machine.  The first VM of a size boots, then its template is made; those
    that follow start in a fraction of the time.
    """


def _get(ctx: click.Context, path: str = "") -> Any:
    return pass_client(ctx).request("GET", _PATH + path, versioned=False).json()


@template.command(name="ls")
@click.option("-q", "--quiet", is_flag=True, help="Keys only.")
@click.option("--format", "form", metavar="TEMPLATE", help="json, table … or a template of {{.Fields}}.")
@click.pass_context
def list_templates(ctx: click.Context, quiet: bool, form: str | None) -> None:
    """List them, newest first.  A stale one matches this host or guest no more: prune removes it."""
    rows = [
        {
            **found,
            "Memory": f"{found['MemoryMiB']}MiB",
            "Status": ("loaded" if found["Loaded"] else "on disk") if found["Current"] else "stale",
            "Size": human_size(found["Size"]),
            "CreatedSince": age_of(parse_time(found["Created"])),
        }
        for found in _get(ctx)
    ]
    if quiet:
        for row in rows:
            print(row["Key"])
        return
    columns = {
        "Key": "TEMPLATE",
        "Kernel": "KERNEL",
        "Accelerator": "ACCELERATOR",
        "Cpus": "CPUS",
        "Memory": "MEMORY",
        "Status": "STATUS",
        "Size": "SIZE",
        "CreatedSince": "CREATED",
    }
    print_rows(rows, columns, template=form)


@template.command(name="inspect")
@click.option("-f", "--format", "form", metavar="TEMPLATE", help="json, or a template of {{.Fields}}.")
@click.argument("key", nargs=-1, required=True)
@click.pass_context
def inspect_template(ctx: click.Context, key: tuple[str, ...], form: str | None) -> None:
    """Show all that is known of templates, as JSON.  The beginning of a KEY is enough."""
    print_found([_get(ctx, f"/{one}") for one in key], form)


@template.command(name="rm")
@click.argument("key", nargs=-1, required=True)
@click.pass_context
def remove_template(ctx: click.Context, key: tuple[str, ...]) -> int:
    """Remove templates.  VMs that run are not harmed."""
    client = pass_client(ctx)
    return for_each(key, lambda one: client.request("DELETE", f"{_PATH}/{one}", versioned=False).close())


@template.command(name="prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that are of use.")
@YES
@click.pass_context
def prune_templates(ctx: click.Context, everything: bool, force: bool) -> None:
    """Remove stale templates.

    They are of an older kernel, agent or hypervisor.
    """
    ask("Remove all templates?" if everything else "Remove all stale templates?", force)
    done = (
        pass_client(ctx).request("POST", f"{_PATH}/prune", query={"all": everything}, versioned=False).json()
    )
    for key in done["TemplatesDeleted"]:
        print(key)
    print(f"Total reclaimed space: {human_size(done['SpaceReclaimed'])}")


@template.command(name="warm")
@click.option("-m", "--memory", type=int, metavar="MIB", help="Memory of the guest.  [default: the daemon's]")
@click.option("--cpus", type=int, metavar="N", help="CPUs of the guest.  [default: the daemon's]")
@click.option("-q", "--quiet", is_flag=True, help="The key only.")
@click.pass_context
def warm_template(ctx: click.Context, memory: int | None, cpus: int | None, quiet: bool) -> None:
    """Make a template, and a clone of it, before the first VM.

    MIB is what the guest has.  `insula inspect` of a VM says which template it started from; with -m, a
    VM's guest has some more than the limit.
    """
    answer = pass_client(ctx).request(
        "POST", f"{_PATH}/warm", query={"memory": memory, "vcpus": cpus}, versioned=False
    )
    for found in show_progress(answer.lines(), quiet=quiet):
        print(found["ID"])
