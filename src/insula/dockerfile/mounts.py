"""`RUN --mount=…`.  Pure."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from insula.errors import InvalidRequest

_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
_KEYS = {
    "bind": ("target", "source", "from", "ro", "rw"),
    "cache": ("target", "id", "source", "from", "ro", "rw", "sharing", "mode", "uid", "gid"),
    "tmpfs": ("target", "size"),
    "secret": ("target", "id", "required", "mode", "uid", "gid", "env"),
    "ssh": ("target", "id", "required", "mode", "uid", "gid"),
}
_SAME = {"dst": "target", "destination": "target", "src": "source", "readwrite": "rw", "readonly": "ro"}
_SWITCHES = ("rw", "ro", "required")
_YES, _NO = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMount:
    """`kind` is bind, cache, tmpfs, secret or ssh.  `source_stage` is `from`: what a bind shows, and
    a cache begins with.  `locked` and `private` are a cache's sharing.  `mode`, `uid` and `gid`
    are a secret's, an agent's or a cache's.  `size` is a tmpfs's, as it was written."""

    kind: str
    target: str
    source: str = ""
    source_stage: str = ""
    id: str = ""
    writable: bool = False
    required: bool = False
    locked: bool = False
    private: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: str = ""
    env: str = ""


def parse_mount(text: str) -> RunMount:
    """Raises InvalidRequest."""
    given: dict[str, str] = {}
    for field in next(csv.reader([text])):
        name, equals, value = field.partition("=")
        name = name.strip().lower()
        given[_SAME.get(name, name)] = value if equals else "true"
    kind = given.pop("type", "bind").lower()
    if kind not in _TYPES:
        raise InvalidRequest(f'unsupported mount type "{kind}"')
    for name, value in given.items():
        if name not in _KEYS[kind]:
            raise InvalidRequest(f"unexpected key '{name}' for mount type '{kind}'")
        if name in _SWITCHES and value not in _YES + _NO:
            raise InvalidRequest(f"invalid value for {name}: {value}")
    target, ident = given.get("target", ""), given.get("id", "")
    if kind == "secret":
        if not ident and not target:
            raise InvalidRequest("invalid secret mount: an id or a target is needed")
        ident = ident or target.rstrip("/").rpartition("/")[2]
        target = target or ("" if given.get("env") else f"/run/secrets/{ident}")
    elif kind == "ssh":
        ident, target = ident or "default", target or "/run/buildkit/ssh_agent.0"
    elif not target:
        raise InvalidRequest(f"a {kind} mount needs a target")
    if kind == "cache":
        _check_cache(given)
    return RunMount(
        kind=kind,
        target=target,
        source=given.get("source", ""),
        source_stage=given.get("from", ""),
        id=ident or (target if kind == "cache" else ""),
        writable=_writable(given, kind),
        required=given.get("required") in _YES,
        locked=given.get("sharing") == "locked",
        private=given.get("sharing") == "private",
        mode=_number(given, "mode", 8) if "mode" in given else None,
        uid=_number(given, "uid", 10),
        gid=_number(given, "gid", 10),
        size=given.get("size", ""),
        env=given.get("env", ""),
    )


def _writable(given: dict[str, str], kind: str) -> bool:
    """The last word counts; without any a cache is, and a bind is not."""
    said = [(name == "rw") == (value in _YES) for name, value in given.items() if name in ("rw", "ro")]
    return said[-1] if said else kind == "cache"


def _check_cache(given: dict[str, str]) -> None:
    if given.get("sharing", "shared") not in ("shared", "locked", "private"):
        raise InvalidRequest(
            f"unsupported sharing value '{given['sharing']}'", hint="shared, locked or private"
        )
    if "source" in given and "from" not in given:
        raise InvalidRequest("cache mount: source is a directory of from, which is missing")


def _number(given: dict[str, str], name: str, base: int) -> int:
    try:
        number = int(given.get(name, "0"), base)
    except ValueError:
        raise InvalidRequest(f"invalid value for {name}: {given[name]}") from None
    if not 0 <= number < 2**31:
        raise InvalidRequest(f"invalid value for {name}: {given[name]}")
    return number
