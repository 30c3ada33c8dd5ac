"""What `insula build` sends."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from insula.cli.context import Sent, send_directory, send_input, start_clone
from insula.errors import InvalidRequest

DOCKERFILE = b"FROM a\n"


def sent(what: Sent) -> dict[str, bytes]:
    """Names with what is in them; a directory ends in a slash, a link's text begins with an arrow."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(what.pieces))) as tar:
        for member in tar:
            text = (tar.extractfile(member) or io.BytesIO()).read() if member.isreg() else b""
            assert (0, 0) == (member.uid, member.gid)
            found[member.name + "/" * member.isdir()] = (
                f"> {member.linkname}".encode() if member.linkname else text
            )
    return found


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "a.o", "keep.o", "d/x", "d/e/y", "d/e/z", "n/m/Dockerfile"):
        path = tmp_path / "c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DOCKERFILE if "Dockerfile" in name else name.encode())
    os.symlink("/etc/passwd", tmp_path / "c/l")
    os.link(tmp_path / "c/d/x", tmp_path / "c/h")
    return tmp_path / "c"


def test_all_of_a_directory(context: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(context / "s"))
        what = send_directory(str(context), "", io.BytesIO())
    assert "Dockerfile" == what.dockerfile
    found = sent(what)
    assert {
        "Dockerfile",
        "a.o",
        "keep.o",
        "d/",
        "d/x",
        "d/e/",
        "d/e/y",
        "d/e/z",
        "h",
        "l",
        "n/",
        "n/m/",
        "n/m/Dockerfile",
    } == set(found)
    assert (b"> /etc/passwd", b"d/e/y", b"> h") == (found["l"], found["d/e/y"], found["d/x"])


def test_what_is_ignored_stays_but_what_the_daemon_needs(context: Path) -> None:
    (context / ".dockerignore").write_text("# all but\n*\n!keep.o\n!d/e/y\n")
    assert {".dockerignore", "Dockerfile", "keep.o", "d/e/y"} == set(
        sent(send_directory(str(context), "", io.BytesIO()))
    )
    what = send_directory(str(context), str(context / "n/m/Dockerfile"), io.BytesIO())
    assert ("n/m/Dockerfile", True) == (what.dockerfile, "n/m/Dockerfile" in sent(what))


@pytest.mark.parametrize("ignore", [None, "a.o"])
def test_a_dockerfile_from_elsewhere_is_hidden_from_the_build(
    context: Path, tmp_path: Path, ignore: str | None
) -> None:
    if ignore is not None:
        (context / ".dockerignore").write_text(ignore)
    (tmp_path / "other").write_bytes(b"FROM other")
    for what, text in (
        (send_directory(str(context), str(tmp_path / "other"), io.BytesIO()), b"FROM other"),
        (send_directory(str(context), "-", io.BytesIO(b"FROM input")), b"FROM input"),
    ):
        found = sent(what)
        assert text == found[what.dockerfile]
        hidden = [*([ignore] if ignore else []), what.dockerfile, *([] if ignore else [".dockerignore"])]
        assert hidden == found[".dockerignore"].decode().split()


def test_standard_input() -> None:
    what = send_input(io.BytesIO(DOCKERFILE), "")
    assert ({"Dockerfile": DOCKERFILE}, "Dockerfile") == (sent(what), what.dockerfile)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    what = send_input(io.BytesIO(buffer.getvalue()), "x")
    assert ({"x": b""}, "x") == (sent(what), what.dockerfile)
    with pytest.raises(InvalidRequest):
        send_input(io.BytesIO(DOCKERFILE), "other")


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not found"):
        send_directory(str(tmp_path / "none"), "", io.BytesIO())
    with pytest.raises(InvalidRequest, match="Dockerfile path"):
        send_directory(str(tmp_path), "", io.BytesIO())


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_s_branch_and_directory(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "web").mkdir(parents=True)
    (repository / "web/Dockerfile").write_bytes(DOCKERFILE)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (
        ("init", "--quiet", "--initial-branch=one"),
        ("add", "."),
        (*identity, "commit", "--quiet", "-m", "x"),
        ("branch", "two"),
    ):
        subprocess.run(["git", "-C", str(repository), *words], check=True)
    with start_clone(f"{repository}#two:web") as place:
        assert ["Dockerfile"] == os.listdir(place)
    assert not os.path.exists(place)
    for wrong in (
        f"{repository}#none",
        f"{repository}#two:../..",
        "--upload-pack=touch /tmp/x",
        f"{repository}#--x",
    ):
        with pytest.raises(InvalidRequest), start_clone(wrong):
            pass
