"""Progress on standard error: bars on a terminal, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

from insula.client import Client
from insula.errors import DaemonRefused


def show_progress(messages: Iterable[Any], *, quiet: bool = False) -> list[Any]:
    """Show Docker's progress messages; returns the `aux` values that came between them.

    Raises DaemonRefused when the stream says that the work failed.
    """
    aux: list[Any] = []
    shown: Any = _Quiet() if quiet else _Bars() if sys.stderr.isatty() else _Lines()
    with contextlib.closing(shown):
        for message in messages:
            if "error" in message:
                raise DaemonRefused(
                    500, str(message.get("errorDetail", {}).get("message") or message["error"])
                )
            if "aux" in message:
                aux.append(message["aux"])
            else:
                shown.show(message)
    return aux


class _Quiet:
    def show(self, message: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """For logs and pipes: every change of status once, no bars."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def show(self, message: dict[str, Any]) -> None:
        ident, status = message.get("id", ""), message.get("status") or message.get("stream", "").rstrip("\n")
        if not status or (ident and self._last.get(ident) == status):
            return
        self._last[ident] = status
        print(f"{ident}: {status}" if ident else status, file=sys.stderr)

    def close(self) -> None:
        pass


class _Bars:
    """For people: one line per layer, with a bar while bytes flow."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.fields[ident]}"),
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def show(self, message: dict[str, Any]) -> None:
        ident, status = message.get("id", ""), message.get("status") or message.get("stream", "").rstrip("\n")
        if not ident:
            if status:
                self._console.print(status, highlight=False, markup=False)
            return
        if ident not in self._tasks:
            self._tasks[ident] = self._progress.add_task(status, total=None, ident=ident)
        detail = message.get("progressDetail") or {}
        total = detail.get("total") or None
        self._progress.update(
            self._tasks[ident], description=status, completed=detail.get("current", 0), total=total
        )
        if not detail:
            self._progress.update(self._tasks[ident], completed=1, total=1)

    def close(self) -> None:
        self._progress.stop()


def auth_of(image: str) -> dict[str, str]:
    """`X-Registry-Auth` from Docker's own configuration file, for the registry that the image is on."""
    from insula.cli.registry import auth_header
    from insula.model.reference import parse_reference

    return auth_header(parse_reference(image).domain)


def split_reference(image: str) -> tuple[str, str]:
    """Name and tag or digest as the pull route wants them; the tag defaults to latest."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    name, colon, tag = image.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (image, "latest")


def pull_image(
    client: Client, image: str, *, platform: str | None, quiet: bool, all_tags: bool = False
) -> None:
    name, tag = split_reference(image)
    query = {"fromImage": name, "tag": None if all_tags else tag, "platform": platform}
    answer = client.request("POST", "/images/create", query=query, headers=auth_of(image), raw=b"")
    show_progress(answer.lines(), quiet=quiet)
