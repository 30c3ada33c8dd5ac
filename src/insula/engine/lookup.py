"""Which instance a reference means: full id, name, or a unique prefix of an id.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from insula.errors import InvalidRequest, NoSuchInstance


def find_id(ref: str, ids: Iterable[str], names: Mapping[str, str]) -> str:
    """moby's order: the exact id, then the name (with or without its slash), then the prefix.

    Raises NoSuchInstance, and InvalidRequest when several ids begin with `ref`.
    """
    bare = ref.removeprefix("/")
    if not bare:
        raise NoSuchInstance(ref)
    known = ids if isinstance(ids, (dict, set, frozenset)) else set(ids)
    if ref in known:
        return ref
    if bare in names:
        return names[bare]
    matches = [candidate for candidate in known if candidate.startswith(ref)]
    if not matches:
        raise NoSuchInstance(ref)
    if len(matches) > 1:
        raise InvalidRequest(f"Multiple IDs found with provided prefix: {ref}", hint="give more digits")
    return matches[0]
