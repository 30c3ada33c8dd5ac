"""The confined child behind `copying`: hashes what a step would copy, or writes it as a layer.  Synchronous.

It is shut into a place of its own in which the image's root is `/target` and the roots of the sources are
`/0`, `/1`, …, all read only.  Never imported but as a child's module.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

from insula.build.difference import write_difference
from insula.build.placing import HashSink, Placer, Rules, Sink, TarSink, is_archive
from insula.build.sources import Found, find_sources, parts_of, resolve
from insula.dockerfile.modes import parse_mode
from insula.dockerfile.patterns import Ignored
from insula.errors import InvalidRequest, NotFound
from insula.isolation.users import find_group, find_user_id
from insula.system.child import Reply
from insula.system.confine import CAP_DAC_OVERRIDE, confine, die_with_parent, own_namespaces
from insula.system.decompress import preload
from insula.system.mounts import bind, mount, mount_overlay

_CAP_DAC_READ_SEARCH = 2
_TARGET = b"/target"
_MAX_TEXT = 1 << 20


def main(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    die_with_parent()
    preload()
    own_namespaces()
    scratch = str(request["scratch"])
    mount("tmpfs", scratch, "tmpfs", options="size=1m,mode=700")
    for name, lowers in [("target", request["target_layers"]), *_numbered(request["roots"])]:
        place = f"{scratch}/{name}"
        os.mkdir(place)
        if len(lowers) == 1:
            bind(lowers[0], place, read_only=True)
        else:
            mount_overlay(place, lowers)
    confine(
        os.open(scratch, os.O_RDONLY | os.O_DIRECTORY), capabilities=(CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH)
    )
    try:
        return _work(request, reply)
    except OSError as error:  # a name that is too long, a link that is a circle: what was asked for cannot be
        inside = os.fsdecode(error.filename or b"").lstrip("/").partition("/")[2]  # of /target, or of /0
        word = request.get("word", "build")
        raise InvalidRequest(f"{word} failed: /{inside[:200]}: {error.strerror}") from None


def _work(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    match request["what"]:
        case "hash":
            hashed = HashSink()
            kind = _copy(request, hashed)
            return {"kind": kind, "digest": hashed.digest(), "count": hashed.count}
        case "layer":
            layer = TarSink(reply)
            _copy(request, layer)
            layer.close()
            return {}
        case "directory":
            return _directory(request, reply)
        case "find":
            return _find(request)
        case "missing":
            return _missing(request)
        case "difference":
            layer = TarSink(reply)
            write_difference(b"/0", _TARGET, layer)
            layer.close()
            return {}
    raise InvalidRequest("a build step that nobody knows")


def _numbered(roots: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [(str(number), lowers) for number, lowers in enumerate(roots)]


def _copy(request: dict[str, Any], sink: Sink) -> str:
    """Returns what the sources were: file, dir or multi.  Without a chown owners stay: the context's are root
    by now, those of a stage or an archive are its own."""
    owner = _owner(str(request["chown"]))
    rules = Rules(
        owner=owner or (0, 0),
        keep_owners=owner is None,
        mode=parse_mode(request["mode"]) if request["mode"] else None,
        created_ns=int(request["created_ns"]),
        newest_ns=request["newest_ns"],
        follow=not request["link"],
    )
    ignored = Ignored(request["exclude"]) if request["exclude"] else None
    placer = Placer(_TARGET, sink, rules, ignored)
    target = os.fsencode(request["target"])
    found = [
        (one, source)
        for source in request["sources"]
        for one in _sources(source, str(request["word"]), named=bool(request["named_root"]))
    ]
    if not found and request["may_be_nothing"]:
        return "multi"
    if not found:
        raise InvalidRequest(f"{request['word']} failed: no source files were specified")
    ends_as_directory = request["target"].endswith(("/", "/."))
    if len(found) > 1 and not ends_as_directory:
        raise InvalidRequest(
            f"When using {request['word']} with more than one source file, the destination must be a "
            "directory and end with a /"
        )
    for one, source in found:
        if source["unpack"] and is_archive(one):
            placer.unpack(one, target)
            continue
        place, into = target, ends_as_directory or len(found) > 1
        if request["parents"]:
            place, into = _with_parents(target, one, str(source["pattern"])), True
        placer.place(one, place, as_name=os.fsencode(source["name"]), into=into)
    if len(found) > 1:
        return "multi"
    return "dir" if stat.S_ISDIR(found[0][0].status.st_mode) else "file"


def _sources(source: dict[str, Any], word: str, *, named: bool) -> list[Found]:
    root = f"/{int(source['root'])}".encode()
    try:
        return list(find_sources(root, str(source["pattern"])))
    except (FileNotFoundError, NotADirectoryError):
        shown = str(source["pattern"]).lstrip("/")
        where = "" if named else "file not found in build context or excluded by .dockerignore: "
        raise InvalidRequest(f"{word} failed: {where}stat {shown}: file does not exist") from None


def _with_parents(target: bytes, found: Found, pattern: str) -> bytes:
    """`--parents`: the directories of the source are kept, those before `/./` aside."""
    before, pivot, _ = pattern.partition("/./")
    parts = parts_of(found.name)
    kept = parts[len(parts_of(os.fsencode(before))) :] if pivot else parts
    above = kept if stat.S_ISDIR(found.status.st_mode) else kept[:-1]
    return b"/".join((target.rstrip(b"/"), *above)) or b"/"


def _owner(chown: str) -> tuple[int, int] | None:
    """`--chown` by the image's own passwd and group.  A user alone names the group too, as Docker has it."""
    if not chown:
        return None
    user, colon, group = chown.partition(":")
    why = "unable to convert uid/gid chown string to host mapping"
    try:
        uid = find_user_id(user, _text(b"/etc/passwd"))
    except InvalidRequest:
        raise InvalidRequest(f"{why}: can't find uid for user {user}: no such user: {user}") from None
    groups = _text(b"/etc/group")
    if colon:
        try:
            return uid, find_group(group, groups)
        except InvalidRequest:
            raise InvalidRequest(f"{why}: can't find gid for group {group}: no such group: {group}") from None
    try:
        return uid, find_group(user, groups)
    except InvalidRequest:
        return uid, uid


def _text(path: bytes) -> str:
    """A small file of the image; "" when it has none."""
    real = b"/".join((_TARGET, *resolve(_TARGET, path)))
    try:
        if not stat.S_ISREG(os.lstat(real).st_mode):
            return ""
        with open(real, "rb") as file:
            return file.read(_MAX_TEXT).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _directory(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """WORKDIR's: nothing when the image has it."""
    sink = TarSink(reply)
    rules = Rules(created_ns=int(request["created_ns"]), newest_ns=request["newest_ns"])
    placer = Placer(_TARGET, sink, rules)
    parts = placer.resolve(os.fsencode(request["target"]))
    there = placer.is_directory(parts)
    if not there:
        placer.make_way(parts)
    sink.close()
    return {}


def _find(request: dict[str, Any]) -> dict[str, Any]:
    """Where a path of the first root really is, and whether it is a directory."""
    parts = resolve(b"/0", os.fsencode(request["path"]))
    try:
        found = os.lstat(b"/".join((b"/0", *parts)))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{request['path']}: no such file or directory") from None
    return {"path": os.fsdecode(b"/".join(parts)), "directory": stat.S_ISDIR(found.st_mode)}


def _missing(request: dict[str, Any]) -> dict[str, Any]:
    """Which of some paths, and of the directories above them, the image has not."""
    found: set[str] = set()
    for path in request["paths"]:
        parts = parts_of(os.fsencode(path))
        for depth in range(1, len(parts) + 1):
            here = b"/".join(parts[:depth])
            if not os.path.lexists(b"/".join((_TARGET, *resolve(_TARGET, here)))):
                found.add("/" + os.fsdecode(here))
    return {"paths": sorted(found)}
