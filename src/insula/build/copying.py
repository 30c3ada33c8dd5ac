"""COPY, ADD and WORKDIR: layers out of files, made in a confined child.  Async.

The sources' roots and the image's are hostile; links in them are followed inside them only (`copy_child`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from insula.system.child import run_child, start_child

_MODULE = "insula.build.copy_child"

Layers = tuple[str, ...]
"""Directories, topmost first, that together are a root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One source: `pattern` below the root of that number.  `name`: what its file is called at the target
    ("": as it is); `unpack`: if it is an archive."""

    root: int
    pattern: str
    name: str = ""
    unpack: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOrder:
    """A COPY or ADD, decided.  `target` is absolute; its last slash means something.  `named_root`: the
    sources are another stage's or image's, not the context's."""

    word: str
    target: str
    target_layers: Layers
    roots: tuple[Layers, ...]
    items: tuple[Item, ...]
    chown: str = ""
    mode: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    created_ns: int = 0
    newest_ns: int | None = None
    named_root: bool = False
    may_be_nothing: bool = False


class Copying:
    """`scratch` is a directory for mount points; `empty` an empty one."""

    def __init__(self, scratch: str, empty: str) -> None:
        self._scratch = scratch
        self._empty = empty

    async def digest(self, order: CopyOrder) -> str:
        """`file:…`, `dir:…` or `multi:…`: what the cache compares.  Raises InvalidRequest for what is not
        there or cannot be copied so."""
        with self._place() as place:
            result = await run_child(_MODULE, self._request("hash", order, place))
        return f"{result['kind']}:{result['digest']}"

    async def layer(self, order: CopyOrder) -> AsyncGenerator[bytes, None]:
        with self._place() as place:
            async with start_child(_MODULE, self._request("layer", order, place)) as child:
                async for piece in child.frames():
                    yield piece

    async def directory(
        self, layers: Layers, path: str, *, created_ns: int, newest_ns: int | None
    ) -> AsyncGenerator[bytes, None]:
        """A layer with the directory `path`; an empty one when it is there."""
        with self._place() as place:
            request = {
                "what": "directory",
                "scratch": place,
                "target": path,
                "target_layers": self._root(layers),
                "roots": [],
                "created_ns": created_ns,
                "newest_ns": newest_ns,
            }
            async with start_child(_MODULE, request) as child:
                async for piece in child.frames():
                    yield piece

    async def find(self, layers: Layers, path: str) -> tuple[str, bool]:
        """Where `path` is in a root, its links followed; whether it is a directory.  Raises NotFound."""
        with self._place() as place:
            request = {
                "what": "find",
                "scratch": place,
                "path": path,
                "target_layers": [self._empty],
                "roots": [self._root(layers)],
            }
            result = await run_child(_MODULE, request)
        return result["path"], result["directory"]

    async def missing(self, layers: Layers, paths: Sequence[str]) -> list[str]:
        """Those of `paths`, and of the directories above them, that a root has not."""
        with self._place() as place:
            request = {
                "what": "missing",
                "scratch": place,
                "paths": list(paths),
                "target_layers": self._root(layers),
                "roots": [],
            }
            result = await run_child(_MODULE, request)
        return list(result["paths"])

    async def difference(self, layers: Layers, below: Layers) -> AsyncGenerator[bytes, None]:
        """One layer that makes the root of `below` that of `layers`."""
        with self._place() as place:
            request = {
                "what": "difference",
                "scratch": place,
                "target_layers": self._root(below),
                "roots": [self._root(layers)],
            }
            async with start_child(_MODULE, request) as child:
                async for piece in child.frames():
                    yield piece

    def _request(self, what: str, order: CopyOrder, place: str) -> dict[str, Any]:
        return {
            "what": what,
            "scratch": place,
            "word": order.word,
            "target": order.target,
            "target_layers": self._root(order.target_layers),
            "roots": [self._root(layers) for layers in order.roots],
            "sources": [
                {"root": i.root, "pattern": i.pattern, "name": i.name, "unpack": i.unpack}
                for i in order.items
            ],
            "chown": order.chown,
            "mode": order.mode,
            "link": order.link,
            "parents": order.parents,
            "exclude": list(order.exclude),
            "created_ns": order.created_ns,
            "newest_ns": order.newest_ns,
            "named_root": order.named_root,
            "may_be_nothing": order.may_be_nothing,
        }

    def _root(self, layers: Layers) -> Sequence[str]:
        """A layer alone is put over nothing, so that what it hides is hidden, not shown as devices."""
        return layers if len(layers) > 1 or layers == (self._empty,) else (*layers, self._empty)

    @contextlib.contextmanager
    def _place(self) -> Iterator[str]:
        """What the child mounts there is seen by nobody else and ends with it."""
        place = f"{self._scratch}/{secrets.token_hex(8)}"
        os.mkdir(place, 0o700)
        try:
            yield place
        finally:
            os.rmdir(place)
