"""`insula compare IMAGE`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import click

from insula.client import Client
from insula.compare.measure import Result, measure
from insula.compare.report import document, table
from insula.compare.workload import Column, read_probe, start_image


@click.command()
@click.option(
    "--runs",
    type=click.IntRange(1, 100),
    metavar="N",
    default=5,
    show_default=True,
    help="How often each is measured.",
)
@click.option(
    "--instances",
    type=click.IntRange(1, 100),
    metavar="N",
    default=3,
    show_default=True,
    help="How many idle ones memory is measured with.",
)
@click.option(
    "--isolation",
    "isolations",
    multiple=True,
    type=click.Choice(["process", "vm"]),
    help="Only this one (default: both).",
)
@click.option("--against", multiple=True, metavar="ADDRESS", help="One more engine: unix:///path.sock.")
@click.option("--json", "as_json", is_flag=True, help="Every sample, as JSON.")
@click.argument("image")
@click.pass_context
def compare(
    ctx: click.Context,
    image: str,
    runs: int,
    instances: int,
    isolations: tuple[str, ...],
    against: tuple[str, ...],
    as_json: bool,
) -> int:
    """Measure IMAGE as containers and as virtual machines.

    Both run here, and are shown side by side.  A small probe is put into a temporary copy of the image;
    nothing of it stays.
    """
    ours: Client = ctx.obj.client
    columns = [
        Column(title=word, client=ours, isolation=word, local=ours.socket_path is not None)
        for word in isolations or ("process", "vm")
    ]
    for address in against:
        other = Client(address)
        other.negotiate()
        title = address.rpartition("/")[2].removesuffix(".sock")
        columns.append(Column(title=title, client=other, isolation="", local=other.socket_path is not None))
    probe = read_probe()
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        images: dict[str, str] = {}
        for number, column in enumerate(columns):
            with _start_line() as tell:
                say = _prefixed(tell, f"[{number + 1}/{len(columns)}] {column.title}")
                say("preparing the image")
                host = column.client.host
                if host not in images:
                    carrier = "process" if column.isolation else ""
                    images[host] = stack.enter_context(start_image(column.client, image, probe, carrier))
                results.append(measure(column, images[host], runs=runs, instances=instances, tell=say))
    if as_json:
        print(json.dumps(document(image, runs, results), indent=2))
        return 0
    print_table(table(results))
    print(f"\nmedian (fastest–slowest) of {runs} runs; memory: mean PSS of {instances} instances")
    return 0


def _prefixed(tell: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: tell(f"{prefix}: {text}")


@contextlib.contextmanager
def _start_line() -> Iterator[Callable[[str], None]]:
    """Progress on standard error: one line that changes on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr)
        return
    yield lambda text: print(f"\r\033[K{text} …", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr, flush=True)


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("─" * width for width in widths))
