"""What in the host's kernel is ours and whose: for cleaning up after a crash.  Synchronous.

Namespaces of endpoints are named in the store.  Those without a network (`--network none`) have no
endpoint; a symbolic link `of-<instance id>` beside the namespace's file says whose each one is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Set

from insula.network.slots import LINK_PREFIX
from insula.system import links, namespaces
from insula.system.netlink import Netlink

_OWNER = "of-"


def own(directory: str, instance_id: str, path: str) -> None:
    """Note that the namespace `path` is the instance's.  Replaces an earlier note."""
    disown(directory, instance_id)
    os.symlink(os.path.basename(path), f"{directory}/{_OWNER}{instance_id}")


def disown(directory: str, instance_id: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/{_OWNER}{instance_id}")


def find_owned(directory: str) -> dict[str, str]:
    """Paths of the namespaces that `own` noted, by instance id."""
    return {
        entry.name.removeprefix(_OWNER): f"{directory}/{os.readlink(entry.path)}"
        for entry in os.scandir(directory)
        if entry.is_symlink() and entry.name.startswith(_OWNER)
    }


def drop_unknown(route: Netlink, directory: str, kept: Set[str]) -> None:
    """Namespaces that nobody has: slots of a daemon that was killed."""
    for entry in list(os.scandir(directory)):
        if not entry.is_symlink() and entry.path not in kept:
            namespaces.drop_netns(entry.path)
            links.delete_link(route, LINK_PREFIX + entry.name)


def drop_taps(route: Netlink, bridges: Set[int], alias: str, known: Set[str]) -> None:
    """Taps on our bridges, and macvtaps with our alias, that belong to no endpoint."""
    for link in list(links.list_links(route)):
        ours = (
            link.master in bridges if link.kind == "tun" else link.kind == "macvtap" and link.alias == alias
        )
        if ours and link.name.startswith(LINK_PREFIX) and link.name not in known:
            links.delete_link(route, link.name)
