"""A place on a parent: how the drivers macvlan and ipvlan put an instance on a link of the host's.
Synchronous; what makes requests is pure."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass

from insula.errors import Failure, Unavailable
from insula.system import sublinks
from insula.system.netlink import Message, NetlinkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`index` is the parent's; `mode` and `flag` are the driver's words.  `alias` is put on what the host's
    namespace has of an instance, its macvtap."""

    parent: str
    index: int
    driver: str
    mode: str
    flag: str = ""
    alias: str = ""

    def interface_message(self, name: str, *, mac: str, mtu: int, netns_fd: int) -> Message:
        """An interface in a namespace, down.  `mtu` 0: the parent's."""
        if self.driver == "ipvlan":
            return sublinks.ipvlan_message(
                name, self.index, mode=self.mode, flag=self.flag, mtu=mtu, netns_fd=netns_fd
            )
        return sublinks.macvlan_message(name, self.index, mode=self.mode, mac=mac, mtu=mtu, netns_fd=netns_fd)

    def macvtap_message(self, name: str, *, mac: str, mtu: int) -> Message:
        """A macvtap in the host's namespace, down."""
        return sublinks.macvlan_message(name, self.index, mode=self.mode, mac=mac, mtu=mtu, tap=True)

    @contextlib.contextmanager
    def refusals(self, kind: str) -> Iterator[None]:
        """What the kernel says to one more link of `kind`, as a sentence: Unavailable when it has none, else
        Failure."""
        try:
            yield
        except NetlinkError as error:
            why, hint = sublinks.explain_refusal(error.errno, kind, self.parent)
            sentence = f"cannot make a {kind} link on {self.parent}: {why or error.strerror}"
            if error.errno == errno.EOPNOTSUPP:
                raise Unavailable(sentence, hint=hint) from error
            raise Failure(sentence, hint=hint or None) from error
