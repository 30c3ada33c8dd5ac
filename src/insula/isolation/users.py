"""Who a workload runs as: `--user` and `--group-add` against the text of its own passwd and group.  Pure.

The rules are Docker's (moby/sys/user, GetExecUser): a number needs no entry; a name does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from insula.errors import InvalidRequest

_MAX_ID = 2**31 - 1
_NOBODY = 2**32 - 1  # to setuid(2), "leave it as it is", so no user's


@dataclass(frozen=True, slots=True)
class Identity:
    """`groups` are the supplementary ones, sorted, with `gid` among them; `home` from passwd, else `/`."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


def find_identity(user: str, groups: Sequence[str], passwd: str, group: str) -> Identity:
    """`user` is `""`, `name`, `uid`, `name:group` or any mix.  Raises InvalidRequest in moby's words."""
    wanted, _, wanted_group = user.partition(":")
    entry = _find_user(wanted or "0", passwd)
    name = entry.name if entry else ""
    uid, gid = (entry.uid, entry.gid) if entry else (_number(wanted, "user", "passwd"), 0)
    further: set[int] = set()
    if wanted_group:
        gid = find_group(wanted_group, group)
    elif name:
        further = {g for _, g, members in _groups(group) if name in members}
    further |= {find_group(each, group) for each in groups}
    # without its own group among them, a file that denies it something would not (CVE-2022-36109)
    further.add(gid)
    return Identity(uid, gid, tuple(sorted(further)), (entry.home if entry else "") or "/")


def find_user_id(user: str, passwd: str) -> int:
    """A name, or a number, which needs no entry.  Raises InvalidRequest."""
    entry = _find_user(user, passwd)
    return entry.uid if entry else _number(user, "user", "passwd")


def _find_user(wanted: str, passwd: str) -> _User | None:
    by_number: _User | None = None
    number = _id(wanted)
    for user in _users(passwd):
        if user.name == wanted:
            return user
        if by_number is None and user.uid == number:
            by_number = user
    return by_number


def find_group(wanted: str, text: str) -> int:
    """The same for groups.  Raises InvalidRequest."""
    by_name = next((gid for name, gid, _ in _groups(text) if name == wanted), None)
    return by_name if by_name is not None else _number(wanted, "group", "group")


def _number(word: str, kind: str, file: str) -> int:
    if word == "":
        return 0
    digits = word.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        raise InvalidRequest(f"unable to find {kind} {word}: no matching entries in {file} file")
    number = _id(word)
    if number is None or number > _MAX_ID:
        raise InvalidRequest(f"uids and gids must be in range 0-{_MAX_ID}: {word[:64]}")
    return number


def _id(untrusted_text: str) -> int | None:
    """None for what is no id: the files are the image's, and may hold any number of digits."""
    if not (untrusted_text.isascii() and untrusted_text.isdecimal()) or len(untrusted_text) > 10:
        return None
    number = int(untrusted_text)
    return number if number < _NOBODY else None


def _users(text: str) -> Iterator[_User]:
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) < 4 or (uid := _id(fields[2])) is None or (gid := _id(fields[3])) is None:
            continue
        yield _User(fields[0], uid, gid, fields[5] if len(fields) > 5 else "")


def _groups(text: str) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 3 and (gid := _id(fields[2])) is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            yield fields[0], gid, tuple(m.strip() for m in members)
