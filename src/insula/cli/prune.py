"""Clean-ups: their options, asking first, and telling what went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from insula.cli.table import human_size
from insula.client import Client

F = TypeVar("F", bound=Callable[..., Any])

YES = click.option("--force", "-f", is_flag=True, help="Do not ask.")
_FILTER = click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match."
)


def prune_options(command: F) -> F:
    """`--force` and `--filter`, as `force` and `filters`."""
    return YES(_FILTER(command))


def prune(client: Client, *kinds: tuple[str, dict[str, list[str]]]) -> None:
    """Remove what is unused of each of the API's kinds (containers, build, …) that its filters match.  Prints
    what went, and how much room that gives in all, as docker does."""
    reclaimed = [_prune(client, what, filters) for what, filters in kinds]
    if counted := [size for size in reclaimed if size is not None]:
        print(f"Total reclaimed space: {human_size(sum(counted))}")


def _prune(client: Client, what: str, filters: dict[str, list[str]]) -> int | None:
    """Bytes; None for what has no size."""
    report: dict[str, Any] = client.request(
        "POST", f"/{what}/prune", query={"filters": filters or None}
    ).json()
    for key, value in report.items():
        if key != "SpaceReclaimed" and value:
            print(f"Deleted {key.removesuffix('Deleted')}:")
            for item in value:
                print(
                    item if isinstance(item, str) else "\n".join(f"{k.lower()}: {v}" for k, v in item.items())
                )
            print()
    return report.get("SpaceReclaimed")


def ask(question: str, force: bool) -> None:
    """A no, or nobody who could answer, ends the command with exit code 0, as docker's."""
    if force:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise click.exceptions.Exit(0)
