"""The confined child that a RUN's layer goes through when it must not be taken as it is.  Synchronous.

stdin is the layer (a tar that a guest may have written), out comes the same without what was there only to be
mounted over (`drop`), and with nothing newer than `newest_ns`.  Never imported but as a child's module.
"""

from __future__ import annotations

import io
import os
from typing import Any

from insula.build.placing import whole
from insula.system import tar
from insula.system.child import Pieces, Reply
from insula.system.confine import confine, die_with_parent, own_namespaces
from insula.system.extract import clean_name


def main(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    die_with_parent()
    own_namespaces()
    confine(os.open(request["directory"], os.O_RDONLY | os.O_DIRECTORY), capabilities=())
    drop = {os.fsencode(path) for path in request["drop"]}
    newest_ns = request["newest_ns"]
    out = Pieces(reply)
    held: list[tar.Member] = []  # directories that go unless something is in them
    reader = tar.Reader(io.BufferedReader(io.FileIO(0, closefd=False), tar.PIECE))
    for member in reader:
        name = clean_name(member.name)
        held = [one for one in held if name.startswith(clean_name(one.name) + b"/")]
        if newest_ns is not None:
            member.mtime_ns = min(member.mtime_ns, newest_ns)
        if name in drop and member.kind == tar.DIRECTORY:
            held.append(member)
            continue
        if name in drop and member.kind == tar.FILE and member.size == 0:
            continue
        for one in held:
            out.put(tar.header(one))
        held.clear()
        out.put(tar.header(member))
        if member.kind == tar.FILE:
            for piece in whole(reader, member.size):
                out.put(piece)
            out.put(tar.padding(member.size))
    out.put(tar.END)
    out.flush()
    return {}
