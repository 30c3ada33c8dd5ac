"""save, load and import, and the files and pipes that archives come from and go to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import urlencode

import click

from insula.cli.connect import pass_client
from insula.cli.progress import show_progress, split_reference
from insula.errors import InvalidRequest

_PIECE = 256 * 1024


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


@contextlib.contextmanager
def start_output(path: str | None) -> Iterator[BinaryIO]:
    """Standard output (never a terminal), or a file that appears whole or not at all.  Raises
    InvalidRequest."""
    if path is None:
        if sys.stdout.isatty():
            raise InvalidRequest(
                "cowardly refusing to save to a terminal", hint="use the -o flag or redirect the output"
            )
        yield sys.stdout.buffer
        return
    fresh = f"{path}.{os.getpid()}.new"
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InvalidRequest(f"invalid output path: directory {os.path.dirname(path)!r} does not exist")
    try:
        with open(fresh, "wb") as file:
            yield file
        os.rename(fresh, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)


@contextlib.contextmanager
def open_input(path: str | None) -> Iterator[BinaryIO]:
    """A file, or standard input for none and for `-`.  Raises InvalidRequest when it cannot be read."""
    if path in (None, "-"):
        yield sys.stdin.buffer
        return
    assert path is not None
    if not os.access(path, os.R_OK):
        raise InvalidRequest(f"open {path}: no such file or directory, or no permission to read it")
    with open(path, "rb") as file:
        yield file


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of standard output.")
@click.argument("image", nargs=-1, required=True)
@click.pass_context
def save(ctx: click.Context, image: tuple[str, ...], output: str | None) -> None:
    """Images as one tar archive that docker and OCI tools load."""
    client = pass_client(ctx)
    with start_output(output) as file:
        path = "/images/get?" + urlencode([("names", name) for name in image])
        for piece in client.request("GET", path).pieces():
            file.write(piece)


@click.command()
@click.option("-i", "--input", "source", metavar="FILE", help="Read a file instead of standard input.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def load(ctx: click.Context, source: str | None, quiet: bool) -> None:
    """Images out of an archive made by save, or an OCI layout."""
    if source is None and sys.stdin.isatty():
        raise InvalidRequest(
            "load: requested load from stdin, but stdin is empty", hint="use -i FILE, or a pipe"
        )
    client = pass_client(ctx)
    with open_input(source) as file:
        answer = client.request("POST", "/images/load", query={"quiet": quiet}, raw=pieces_of(file))
        messages = []

        def noted() -> Iterator[Any]:
            for message in answer.lines():
                if str(message.get("stream", "")).startswith("Loaded image"):
                    messages.append(message["stream"].rstrip())
                else:
                    yield message

        show_progress(noted(), quiet=quiet)
    for text in messages:
        print(text)


@click.command(name="import")
@click.option("-c", "--change", multiple=True, metavar="INSTRUCTION", help="Dockerfile instruction to apply.")
@click.option("-m", "--message", metavar="TEXT", help="Comment of the image.")
@click.option("--platform", metavar="OS/ARCH", help="Platform of the image.")
@click.argument("file")
@click.argument("name", required=False)
@click.pass_context
def import_(
    ctx: click.Context,
    file: str,
    name: str | None,
    change: tuple[str, ...],
    message: str | None,
    platform: str | None,
) -> None:
    """An image from a tar of a root file system.

    FILE is a file, `-` (standard input), or an address over HTTP.
    """
    repository, tag = split_reference(name) if name else ("", "")
    if not message:
        message = f"Imported from {file}"
    remote = file.startswith(("http://", "https://"))
    query = [("fromSrc", file if remote else "-"), ("repo", repository), ("tag", tag)]
    query += [("changes", text) for text in change]
    query += [(key, value) for key, value in (("message", message), ("platform", platform)) if value]
    with contextlib.nullcontext() if remote else open_input(file) as source:
        body = pieces_of(source) if source is not None else None
        answer = pass_client(ctx).request("POST", f"/images/create?{urlencode(query)}", raw=body)
        last = ""
        for line in answer.lines():
            if "error" in line:
                raise InvalidRequest(str(line["error"]))
            last = line.get("status", last)
    print(last)
