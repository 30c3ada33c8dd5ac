"""What a confined child can still do: its files.  Each attempt is made by a real child, as root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import insula

pytestmark = pytest.mark.integration

_ATTEMPTS = """
import ctypes, json, os, signal, socket, sys
from insula.system.confine import confine, die_with_parent, own_namespaces
die_with_parent()
own_namespaces()
outside = os.open("/", os.O_RDONLY)
os.close(outside)
fd = os.open(sys.argv[1], os.O_RDONLY)
confine(fd, file_bytes=1 << 20)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(call):
    try:
        done = call()
    except OSError as error:
        return error.strerror
    return "done" if done != -1 else os.strerror(ctypes.get_errno())

print(json.dumps({
    "files": sorted(os.listdir("/")),
    "up": sorted(os.listdir("/../..")),
    "write": attempt(lambda: os.close(os.open("/new", os.O_WRONLY | os.O_CREAT))),
    "chown": attempt(lambda: os.chown("/new", 5, 5)),
    "kill": attempt(lambda: os.kill(os.getppid(), 0)),
    "fork": attempt(os.fork),
    "exec": attempt(lambda: os.execv("/new", ["new"])),
    "socket": attempt(lambda: socket.socket()),
    "mount": attempt(lambda: libc.mount(b"none", b"/", b"tmpfs", 0, None)),
    "chroot": attempt(lambda: os.chroot("/")),
    "unshare": attempt(lambda: libc.unshare(0x10000000)),
    "ptrace": attempt(lambda: libc.ptrace(16, os.getppid(), 0, 0)),
    "setuid": attempt(lambda: os.setuid(1)),
    "large": attempt(lambda: os.truncate("/new", 2 << 20)),
}))
"""


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, object]:
    root = tmp_path / "root"
    root.mkdir()
    (root / "inside").touch()
    path = os.path.dirname(os.path.dirname(insula.__file__))
    code = f"import sys; sys.path.insert(0, {path!r})\n{_ATTEMPTS}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(root)], capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_confined_child_has_its_files_and_nothing_else(answers: dict[str, object]) -> None:
    assert answers.pop("files") == ["inside"]
    assert answers.pop("up") == ["inside"]
    assert answers.pop("write") == "done"
    assert answers.pop("chown") == "done"
    assert answers.pop("large") == "File too large"
    assert set(answers.values()) == {"Operation not permitted"}, answers
