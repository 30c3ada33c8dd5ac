"""cp and export: files out of an instance and into it."""

from __future__ import annotations

import base64
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from insula.cli.archives import pieces_of, start_output
from insula.cli.connect import pass_client
from insula.client import Client
from insula.errors import DaemonRefused, InvalidRequest
from insula.model.go_mode import GO_DIRECTORY, GO_SYMLINK


def _split(word: str) -> tuple[str | None, str]:
    """`instance:path`, or a local path (which may hold colons after a slash or a dot)."""
    if word == "-" or word.startswith(("/", ".")) or ":" not in word:
        return None, word
    ref, _, path = word.partition(":")
    if not path:
        raise InvalidRequest(f"cp: {word}: no path is named after the colon")
    return ref, path


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Keep user and group.")
@click.option("-L", "--follow-link", is_flag=True, help="Follow a symbolic link in SOURCE.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@click.argument("source")
@click.argument("target")
@click.pass_context
def cp(ctx: click.Context, source: str, target: str, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files between here and an instance.

    INSTANCE:PATH is one side; `-` on the other is a tar stream.
    """
    (from_ref, from_path), (to_ref, to_path) = _split(source), _split(target)
    if from_ref is not None and to_ref is not None:
        raise InvalidRequest("copying between containers is not supported", hint="copy out, then in")
    if from_ref is None and to_ref is None:
        raise InvalidRequest("must specify at least one container source", hint="INSTANCE:PATH")
    client = pass_client(ctx)
    if from_ref is not None:
        _copy_out(client, from_ref, from_path, to_path, follow_link)
    else:
        assert to_ref is not None
        _copy_in(client, from_path, to_ref, to_path, archive, follow_link)
    if not quiet and "-" not in (source, target) and sys.stderr.isatty():
        print(f"Successfully copied {source} to {target}", file=sys.stderr)


def _stat(client: Client, ref: str, path: str) -> dict[str, Any] | None:
    try:
        with client.request("HEAD", f"/containers/{ref}/archive", query={"path": path}) as answer:
            raw = answer.headers["X-Docker-Container-Path-Stat"]
    except DaemonRefused as error:
        if error.http_status == 404:
            return None
        raise
    return dict(json.loads(base64.b64decode(raw)))


class _Reader:
    """A body as a file object, for tarfile."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                size = len(self._rest)
                break
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _copy_out(client: Client, ref: str, path: str, target: str, follow_link: bool) -> None:
    found = _stat(client, ref, path)
    if found is None:
        client.get(f"/containers/{ref}/json")  # says so if it is the instance that does not exist
        raise InvalidRequest(f"Could not find the file {path} in container {ref}")
    if follow_link and found["mode"] & GO_SYMLINK:
        link = found["linkTarget"]
        path = link if link.startswith("/") else os.path.join(os.path.dirname(path), link)
        found = _stat(client, ref, path) or found
    answer = client.request("GET", f"/containers/{ref}/archive", query={"path": path})
    if target == "-":
        with start_output(None) as out:
            for piece in answer.pieces():
                out.write(piece)
        return
    is_directory = bool(found["mode"] & GO_DIRECTORY)
    contents_only = path.endswith("/.")
    if os.path.isdir(target):
        into, rename = target, None
    elif target.endswith("/") and not is_directory:
        raise InvalidRequest(f"cp: {target}: no such directory")
    elif is_directory and os.path.exists(target):
        raise InvalidRequest(f"cp: cannot copy the directory {path} onto the file {target}")
    else:
        into, rename = os.path.dirname(target.rstrip("/")) or ".", os.path.basename(target.rstrip("/"))
    if not os.path.isdir(into):
        raise InvalidRequest(f"cp: {into}: no such directory")
    with tarfile.open(fileobj=_Reader(answer.pieces()), mode="r|") as tar:  # type: ignore[call-overload]
        tar.extraction_filter = _as_it_is  # Python 3.14 would have its own: members are checked here
        for member in tar:
            # below its first part, which is the name of what is copied; `.` for contents only
            _, _, rest = member.name.partition("/")
            if rename is not None:
                member.name = f"{rename}/{rest}" if rest else rename
            elif contents_only:
                member.name = rest or "."
            if member.islnk() and rename is not None:
                _, _, tail = member.linkname.partition("/")
                member.linkname = f"{rename}/{tail}" if tail else rename
            member.uid, member.gid = os.getuid(), os.getgid()
            member.uname = member.gname = ""
            _check_member(member, into)
            try:
                tar.extract(member, into, set_attrs=True, numeric_owner=True)
            except OSError as error:
                raise InvalidRequest(f"cp: {member.name}: {error.strerror}") from None


def _as_it_is(member: tarfile.TarInfo, _path: str) -> tarfile.TarInfo:
    return member


def _check_member(member: tarfile.TarInfo, into: str) -> None:
    """The archive comes from an instance: nothing of it may land outside of `into`, not through links either.

    By hand, since Debian 12's Python has no extraction filters.  Raises InvalidRequest.
    """
    base = os.path.realpath(into)
    member.name = member.name.lstrip("/")
    places = [os.path.dirname(member.name), *([os.path.dirname(member.linkname)] if member.islnk() else [])]
    for place in places:
        real = os.path.realpath(os.path.join(base, place))
        if ".." in place.split("/") or not (real == base or real.startswith(base.rstrip("/") + "/")):
            raise InvalidRequest(f"cp: the archive is not safe: {member.name!r} leads out of {into}")
    if os.path.basename(member.name) == "..":
        raise InvalidRequest(f"cp: the archive is not safe: {member.name!r} leads out of {into}")
    target = os.path.join(base, member.name)
    if os.path.islink(target):
        if member.isdir():  # what it leads to would get the directory's mode and times
            raise InvalidRequest(f'cp: cannot overwrite non-directory "{target}" with directory')
        os.unlink(target)  # replaced, not written through


def _copy_in(client: Client, source: str, ref: str, target: str, archive: bool, follow_link: bool) -> None:
    query: dict[str, Any] = {"noOverwriteDirNonDir": True, "copyUIDGID": archive or None}
    found = _stat(client, ref, target)
    if source == "-":
        if found is None or not found["mode"] & GO_DIRECTORY:
            raise InvalidRequest(f"cp: {target} in {ref} is not a directory")
        _put(client, ref, {**query, "path": target}, sys.stdin.buffer)
        return
    if not os.path.lexists(source.removesuffix("/.") or "/"):
        raise InvalidRequest(f"cp: {source}: no such file or directory")
    if found is not None and found["mode"] & GO_SYMLINK:
        link = found["linkTarget"]
        target = link if link.startswith("/") else os.path.join(os.path.dirname(target), link)
        found = _stat(client, ref, target)
    is_directory = os.path.isdir(source) and (follow_link or not os.path.islink(source))
    contents_only = source.endswith("/.")
    if found is not None and found["mode"] & GO_DIRECTORY:
        into, name = target, "." if contents_only else os.path.basename(os.path.abspath(source))
    elif found is not None and is_directory:
        raise InvalidRequest(f"cp: cannot copy a directory onto the file {target}")
    elif found is None and target.endswith("/") and not is_directory:
        raise InvalidRequest(f"cp: {target} in {ref}: no such directory")
    else:
        into, name = os.path.dirname(target.rstrip("/")) or "/", os.path.basename(target.rstrip("/"))

    with tempfile.TemporaryFile() as spool:
        with tarfile.open(fileobj=spool, mode="w", dereference=False) as tar:
            path = os.path.realpath(source) if follow_link else source
            tar.add(path, arcname=name)
        spool.seek(0)
        _put(client, ref, {**query, "path": into}, spool)


def _put(client: Client, ref: str, query: dict[str, Any], file: BinaryIO | Any) -> None:
    client.request("PUT", f"/containers/{ref}/archive", query=query, raw=pieces_of(file)).close()


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of standard output.")
@click.argument("instance")
@click.pass_context
def export(ctx: click.Context, instance: str, output: str | None) -> None:
    """The root file system of an instance as a tar."""
    client = pass_client(ctx)
    with start_output(output) as file:
        for piece in client.request("GET", f"/containers/{instance}/export").pieces():
            file.write(piece)
