"""The context of a build, as `docker build` sends it: a tar without what `.dockerignore` names."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from insula.dockerfile.patterns import Ignored, parse_ignore
from insula.errors import InvalidRequest, ProgramMissing
from insula.system import tar

_PIECE = 256 * 1024
_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFIFO: tar.FIFO,
}
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Sent:
    """`dockerfile` is its name in the tar."""

    pieces: Iterator[bytes]
    dockerfile: str


def send_directory(directory: str, dockerfile: str, stdin: BinaryIO) -> Sent:
    """`dockerfile`: a path, "" for the context's own, "-" for standard input.  Raises InvalidRequest."""
    if not os.path.isdir(directory):
        raise InvalidRequest(f"unable to prepare context: path {directory!r} not found")
    root = os.path.realpath(directory)
    ignore = _read(os.path.join(root, ".dockerignore"))
    extra: dict[str, bytes] = {}
    if dockerfile == "-":
        name = _added(stdin.read(), ignore, extra)
    else:
        path = dockerfile or os.path.join(root, "Dockerfile")
        if not dockerfile and not os.path.exists(path) and os.path.exists(os.path.join(root, "dockerfile")):
            path = os.path.join(root, "dockerfile")
        text = _read(path)
        if text is None:
            why = "is a directory" if os.path.isdir(path) else "no such file or directory"
            raise InvalidRequest(
                f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: {path}: {why}"
            )
        name = os.path.relpath(os.path.realpath(path), root)
        if name == ".." or name.startswith("../"):
            name = _added(text, ignore, extra)
    patterns = parse_ignore(ignore.decode(errors="replace")) if ignore is not None else ()
    # these go along whatever is ignored: the daemon needs them
    kept = {".dockerignore", name} - set(extra)
    return Sent(_tar(root, Ignored(patterns), kept, extra), name)


def send_input(stdin: BinaryIO, dockerfile: str) -> Sent:
    """`build -`: a tar, packed or not, or a Dockerfile.  Raises InvalidRequest."""
    start = stdin.read(512)
    if start.startswith(_PACKED) or start[257:262] == b"ustar":
        return Sent(_rest(start, stdin), dockerfile or "Dockerfile")
    if dockerfile:
        raise InvalidRequest("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
    return Sent(_single("Dockerfile", start + stdin.read()), "Dockerfile")


@contextlib.contextmanager
def start_clone(address: str) -> Iterator[str]:
    """The directory that `address#ref:directory` of a git repository means, while the context lasts.
    Raises InvalidRequest, ProgramMissing."""
    url, _, fragment = address.partition("#")
    ref, _, below = fragment.partition(":")
    for word in (url, ref):
        if word.startswith("-"):
            raise InvalidRequest(f"{word!r} is not the address or name of something in git")
    with tempfile.TemporaryDirectory(prefix="insula-build-") as place:
        for argv in (
            ["git", "init", "--quiet", place],
            ["git", "-C", place, "fetch", "--quiet", "--depth", "1", "--", url, ref or "HEAD"],
            ["git", "-C", place, "checkout", "--quiet", "FETCH_HEAD"],
            ["git", "-C", place, "submodule", "update", "--quiet", "--init", "--recursive", "--depth=1"],
        ):
            try:
                done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True)
            except FileNotFoundError:
                raise ProgramMissing("git", package="git") from None
            if done.returncode != 0:
                raise InvalidRequest(f"unable to clone {url}: {done.stderr.decode(errors='replace').strip()}")
        found = os.path.realpath(os.path.join(place, below.lstrip("/")))
        if not (found + "/").startswith(os.path.realpath(place) + "/"):
            raise InvalidRequest(f"{below!r} leads out of the repository")
        yield found


def is_git(text: str) -> bool:
    path = text.partition("#")[0]
    return text.startswith(("git://", "git@", "ssh://")) or (
        text.startswith(("http://", "https://")) and path.endswith(".git")
    )


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _added(text: bytes, ignore: bytes | None, extra: dict[str, bytes]) -> str:
    """A Dockerfile from elsewhere, under a name that the context has not, and that a COPY does not see."""
    name = f".dockerfile.{secrets.token_hex(10)}"
    hidden = [name] if ignore is not None else [name, ".dockerignore"]
    extra[name] = text
    extra[".dockerignore"] = (
        (ignore or b"").rstrip(b"\n") + "".join(f"\n{one}" for one in hidden).encode() + b"\n"
    )
    return name


def _tar(root: str, ignored: Ignored, kept: set[str], extra: dict[str, bytes]) -> Iterator[bytes]:
    links: dict[tuple[int, int], bytes] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        below = []
        for name in sorted(os.listdir(os.path.join(root, directory))):
            path = os.path.join(directory, name)
            if path in extra:
                continue
            found = os.lstat(os.path.join(root, path))
            left_out = ignored.matches(path) and path not in kept
            if stat.S_ISDIR(found.st_mode) and (not left_out or ignored.has_exceptions or _above(path, kept)):
                below.append(path)
            if not left_out:
                yield from _entry(root, path, found, links)
        pending += reversed(below)
    for name, text in extra.items():
        yield from _member(name, text)
    yield tar.END


def _above(path: str, kept: set[str]) -> bool:
    return any(name.startswith(path + "/") for name in kept)


def _entry(
    root: str, path: str, found: os.stat_result, links: dict[tuple[int, int], bytes]
) -> Iterator[bytes]:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None:  # sockets and devices are not the context's
        return
    name = os.fsencode(path)
    full = os.path.join(root, path)
    member = tar.Member(
        name=name + b"/" if kind == tar.DIRECTORY else name,
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        mtime_ns=found.st_mtime_ns // 1_000_000_000 * 1_000_000_000,
    )
    identity = (found.st_dev, found.st_ino)
    if found.st_nlink > 1 and kind == tar.FILE:
        if identity in links:
            member.kind, member.link = tar.LINK, links[identity]
            yield tar.header(member)
            return
        links[identity] = name
    if kind == tar.SYMLINK:
        member.link = os.fsencode(os.readlink(full))
    if kind != tar.FILE:
        yield tar.header(member)
        return
    try:
        with open(full, "rb") as file:
            member.size = left = os.fstat(file.fileno()).st_size
            yield tar.header(member)
            while left:
                piece = file.read(min(left, _PIECE)) or bytes(min(left, _PIECE))
                left -= len(piece)
                yield piece
    except PermissionError:
        raise InvalidRequest(f"error checking context: no permission to read from {full!r}") from None
    yield tar.padding(member.size)


def _member(name: str, text: bytes) -> Iterator[bytes]:
    yield tar.header(tar.Member(name=os.fsencode(name), size=len(text), mode=0o600))
    yield text + tar.padding(len(text))


def _single(name: str, text: bytes) -> Iterator[bytes]:
    yield from _member(name, text)
    yield tar.END


def _rest(start: bytes, stdin: BinaryIO) -> Iterator[bytes]:
    yield start
    while piece := stdin.read(_PIECE):
        yield piece
