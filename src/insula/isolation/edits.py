"""Lines of /etc/hosts and /etc/resolv.conf that change while an instance runs.  Pure but for `edit_file`.

The workload may have changed these files meanwhile, so only the lines that are ours are taken out and put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from insula.model.mounts import EtcFile


@dataclass(frozen=True, slots=True)
class Edit:
    file: EtcFile
    gone: tuple[str, ...]
    added: tuple[str, ...]


def make_edits(before: Sequence[EtcFile], now: Sequence[EtcFile]) -> Iterator[Edit]:
    """Of files that are in both; a file that a mount covers is in neither."""
    known = {file.target: file.text.splitlines() for file in before}
    for file in now:
        old, new = known.get(file.target, []), file.text.splitlines()
        gone = tuple(line for line in old if line not in new)
        added = tuple(line for line in new if line not in old)
        if file.target in known and (gone or added):
            yield Edit(file, gone, added)


def edit_text(text: str, edit: Edit) -> str:
    """Every line that goes goes once."""
    lines = text.splitlines()
    for line in edit.gone:
        if line in lines:
            lines.remove(line)
    return "".join(f"{line}\n" for line in (*lines, *edit.added))


def edit_file(edit: Edit) -> None:
    """In place: a bind mount holds the inode.  Synchronous."""
    with open(edit.file.host_path, "r+", encoding="utf-8", errors="surrogateescape") as file:
        text = edit_text(file.read(), edit)
        file.seek(0)
        file.truncate()
        file.write(text)
