"""Lines of ours in files that the workload may have changed."""

from __future__ import annotations

from pathlib import Path

from insula.isolation.edits import edit_file, edit_text, make_edits
from insula.model.mounts import EtcFile


def hosts(text: str, path: str = "") -> EtcFile:
    return EtcFile(target="/etc/hosts", text=text, host_path=path)


def test_only_our_own_lines_change(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1\tlocalhost\n10.0.0.2\tweb\n192.0.2.1 theirs")
    before = hosts("127.0.0.1\tlocalhost\n10.0.0.2\tweb\n", str(path))
    (edit,) = make_edits((before,), (hosts("127.0.0.1\tlocalhost\n10.1.0.2\tweb\n", str(path)),))
    inode = path.stat().st_ino
    edit_file(edit)
    assert path.read_text() == "127.0.0.1\tlocalhost\n192.0.2.1 theirs\n10.1.0.2\tweb\n"
    assert path.stat().st_ino == inode


def test_nothing_to_do_is_no_edit_and_what_is_gone_already_is_no_error() -> None:
    same = hosts("a\n")
    assert list(make_edits((same,), (same,))) == []
    assert list(make_edits((), (same,))) == []  # a mount covers it
    (edit,) = make_edits((hosts("a\nb\n"),), (hosts("a\n"),))
    assert edit_text("a\n", edit) == "a\n"
    assert edit_text("b\na\nb\n", edit) == "a\nb\n"
