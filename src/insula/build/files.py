"""The steps that change files without an instance: COPY, ADD, WORKDIR, and squashing.  Async."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from insula.build.copying import Copying, CopyOrder, Item, Layers
from insula.build.git import fetch_repository, parse_git
from insula.build.remote import check_checksum, fetch, is_address, is_git, name_of
from insula.dockerfile.configuration import join_path
from insula.dockerfile.instructions import Copy
from insula.dockerfile.modes import parse_mode
from insula.dockerfile.reader import Heredoc
from insula.errors import InvalidRequest, NotFound
from insula.images.images import Images
from insula.model.image import Image

_FILE = "file"  # what is fetched or written is called so on the disk, whatever its name is to be


class FileSteps:
    """`state` is the build's own directory, `context` the context's root.  `may_be_nothing`: patterns may
    match no file.  `digests` are what is known of directories that did not change since, and are added to."""

    def __init__(
        self,
        copying: Copying,
        state: str,
        context: Layers,
        find_root: Callable[[str], Awaitable[Layers]],
        *,
        may_be_nothing: bool = False,
        digests: Mapping[str, dict[str, str]] = MappingProxyType({}),
    ) -> None:
        self._digests = digests
        self._may_be_nothing = may_be_nothing
        self._copying = copying
        self._state = state
        self._context = context
        self._find_root = find_root
        self._numbers = itertools.count()
        self._clones: dict[str, str] = {}

    async def decide(
        self, copy: Copy, layers: Layers, working_dir: str, *, created_ns: int, newest_ns: int | None
    ) -> CopyOrder:
        """Fetch what has to be fetched, and say what goes where.  Raises InvalidRequest, RegistryFailed."""
        if not copy.target:
            raise InvalidRequest(f"{copy.word} failed: the destination is an empty string")
        roots = [await self._find_root(copy.source_stage) if copy.source_stage else self._context]
        items: list[Item] = []
        _check_checksum(copy)
        if copy.chmod:
            parse_mode(copy.chmod)
        for source in copy.sources:
            if copy.add and is_git(source):
                items.append(Item(root=len(roots), pattern="/"))
                roots.append((await self._clone(source, keep_git=copy.keep_git),))
            elif copy.add and is_address(source):
                name = name_of(source)
                if not name and copy.target.endswith("/"):
                    raise InvalidRequest(f"cannot determine filename from url: {source}")
                place = self._place()
                await fetch(source, f"{place}/{_FILE}", checksum=copy.checksum)
                items.append(
                    Item(root=len(roots), pattern=_FILE, name=name or _FILE, unpack=copy.unpack is True)
                )
                roots.append((place,))
            else:
                items.append(Item(root=0, pattern=source, unpack=copy.add and copy.unpack is not False))
        for here in copy.heredocs:
            items.append(Item(root=len(roots), pattern=_FILE, name=here.name))
            roots.append((self._write(here, created_ns),))
        return CopyOrder(
            word=copy.word,
            target=_target(working_dir, copy.target),
            target_layers=layers,
            roots=tuple(roots),
            items=tuple(items),
            chown=copy.chown,
            mode=copy.chmod,
            link=copy.link,
            parents=copy.parents,
            exclude=copy.exclude,
            created_ns=created_ns,
            newest_ns=newest_ns,
            named_root=bool(copy.source_stage),
            may_be_nothing=self._may_be_nothing,
        )

    async def _clone(self, source: str, *, keep_git: bool) -> str:
        """Where its files are, everything root's.  What is cloned once is not asked for again."""
        address = parse_git(source)
        key = f"{source} {keep_git}"
        if key not in self._clones:
            place, git = self._place(), f"{self._state}/git{next(self._numbers)}"
            try:
                await fetch_repository(address, place, git, keep_git=keep_git)
            except NotFound:
                raise InvalidRequest(f"ADD {source}: {address.directory} is no directory there") from None
            self._clones[key] = place
        return self._clones[key]

    def _place(self) -> str:
        place = f"{self._state}/made{next(self._numbers)}"
        os.mkdir(place, 0o755)
        return place

    def _write(self, here: Heredoc, time_ns: int) -> str:
        place = self._place()
        path = f"{place}/{_FILE}"
        with open(path, "x", encoding="utf-8") as file:
            file.write(here.content)
        os.chmod(path, 0o644)
        os.utime(path, ns=(time_ns, time_ns))
        return place

    async def digest(self, order: CopyOrder) -> str:
        """Of a directory that is as it was, what was found then."""
        known = self._digests.get(order.roots[0][0]) if _is_of_the_source(order) else None
        if known is None:
            return await self._copying.digest(order)
        asked = replace(order, target_layers=(), roots=(), created_ns=0, newest_ns=None)
        key = hashlib.sha256(repr(asked).encode()).hexdigest()
        if key not in known:
            known[key] = await self._copying.digest(order)
        return known[key]

    def layer(self, order: CopyOrder) -> AsyncGenerator[bytes, None]:
        return self._copying.layer(order)

    def directory(
        self, layers: Layers, path: str, *, created_ns: int, newest_ns: int | None
    ) -> AsyncGenerator[bytes, None]:
        return self._copying.directory(layers, path, created_ns=created_ns, newest_ns=newest_ns)

    async def squash(
        self,
        images: Images,
        image: Image,
        *,
        below: Image | None,
        layers: Layers,
        below_layers: Layers,
        created: str,
    ) -> Image:
        """`image` with one layer in place of those above `below`."""
        layer = self._copying.difference(layers, below_layers)
        try:
            return await images.commit(
                layer,
                base=below,
                config=image.config,
                author=image.author,
                message=f"merge {image.id} to {below.id if below is not None else 'nothing'}",
                created=created,
                merged=image.history[len(below.history) if below is not None else 0 :],
            )
        finally:
            await layer.aclose()


def _is_of_the_source(order: CopyOrder) -> bool:
    """Whether the digest depends on the one source alone, not on the image's users or on what is fetched."""
    return len(order.roots) == 1 and not order.chown and not any(item.unpack for item in order.items)


def _target(working_dir: str, path: str) -> str:
    """Absolute, with the slash at its end if it had one or meant one."""
    joined = join_path(working_dir, path)
    directory = path.endswith("/") or path.rpartition("/")[2] in (".", "..")
    return joined + "/" if directory and joined != "/" else joined


def _check_checksum(copy: Copy) -> None:
    if not copy.checksum:
        return
    check_checksum(copy.checksum)
    if len(copy.sources) != 1 or copy.heredocs or not is_address(copy.sources[0]):
        raise InvalidRequest("--checksum is for one source that is an address")
    if is_git(copy.sources[0]):
        raise InvalidRequest(
            "--checksum of a git repository is not checked", hint="name the commit: …#COMMIT"
        )
