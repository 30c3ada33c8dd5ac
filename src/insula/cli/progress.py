"""Progress on standard error: bars on a terminal, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from insula.cli.table import human_size
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
    """For people: one line per layer or step, with a bar where bytes are counted."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task
        from rich.table import Column
        from rich.text import Text

        class Bar(BarColumn):
            def render(self, task: Task) -> Any:
                return super().render(task) if task.total is not None else Text()

        class Words(ProgressColumn):
            def __init__(self, words: Callable[[Task], str]) -> None:
                super().__init__(Column(no_wrap=True))
                self._words = words

            def render(self, task: Task) -> Text:
                return Text(self._words(task))

        self._console = Console(stderr=True)
        self._progress = Progress(
            Words(lambda task: str(task.fields["ident"])),
            Words(lambda task: task.description),
            Bar(bar_width=30),
            Words(lambda task: amount(task.completed, task.total, task.finished_speed or task.speed)),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def show(self, message: dict[str, Any]) -> None:
        ident, status = message.get("id", ""), message.get("status") or message.get("stream", "").rstrip("\n")
        if not ident:
            if status:
                self._console.print(status, highlight=False, markup=False, soft_wrap=True)
            return
        if ident not in self._tasks:
            self._tasks[ident] = self._progress.add_task(status, total=None, ident=ident)
        detail = message.get("progressDetail") or {}
        task = self._tasks[ident]
        self._progress.update(task, description=status)
        if detail:
            self._progress.update(task, completed=detail.get("current", 0), total=detail.get("total"))

    def close(self) -> None:
        self._progress.stop()


def amount(done: float, total: float | None, speed: float | None) -> str:
    """`12MB/162MB  53.7MB/s`; empty for a step that counts no bytes.  Bytes, and bytes per second."""
    if not done and total is None:
        return ""
    counted = human_size(done) if total is None else f"{human_size(done)}/{human_size(total)}"
    return f"{counted}  {human_size(speed)}/s" if speed else counted


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
