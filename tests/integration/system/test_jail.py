"""The program that confines itself and becomes another, as root on this host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from insula.system.jail import FIRST_UID, PROGRAM, Confinement, ShareSpec, find_programs, wrap

pytestmark = pytest.mark.integration

_UID = FIRST_UID + 65_000


def _confined(confinement: Confinement, script: str, keep: tuple[int, ...] = ()) -> str:
    done = subprocess.run(
        wrap(confinement, ["/bin/sh", "-c", script], keep),
        capture_output=True,
        text=True,
        check=True,
        pass_fds=keep,
        env={"SECRET": "of the daemon's"},
    )
    return done.stdout


def test_a_program_is_a_user_that_owns_nothing_in_a_root_of_its_own(tmp_path: Path) -> None:
    links, binds = find_programs()
    (tmp_path / "given").write_text("given")
    confinement = Confinement(
        uid=_UID,
        private=True,
        root_at=str(tmp_path / "root"),
        root_binds=(*binds, (str(tmp_path / "given"), "/given", True)),
        root_links=links,
        root_nodes=(("/dev/null", os.makedev(1, 3), _UID),),
        preload="/usr/lib/none.so",
    )
    script = """
        id -u; id -G; cat /given; echo; ls / | tr '\\n' ' '; echo
        ls /dev; umask; echo word > /dev/null
        for place in /x /usr/x /given; do touch $place 2>/dev/null && echo "$place can be written"; done
        echo "$PATH $LC_ALL $SECRET$LD_PRELOAD"
    """
    uid, groups, given, names, devices, mask, *rest = _confined(confinement, script).splitlines()
    assert [str(_UID)] * 2 == [uid, groups]
    assert "given" == given
    assert {"dev", "given", "usr"} <= set(names.split())
    assert not {"proc", "root", "home", "tmp"} & set(names.split())
    assert ("null", "0077") == (devices, mask)
    assert ["/usr/sbin:/usr/bin:/sbin:/bin C.UTF-8 /usr/lib/none.so"] == rest


def test_a_program_has_no_rights_and_no_descriptors_but_those_it_is_given(tmp_path: Path) -> None:
    kept, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    try:
        os.set_inheritable(other, True)
        confinement = Confinement(uid=_UID)
        said = subprocess.run(
            wrap(confinement, ["/bin/sh", "-c", "cat /proc/self/status; ls /proc/self/fd"], (kept,)),
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        ).stdout
    finally:
        os.close(kept)
        os.close(other)
    lines = said.splitlines()
    rights = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("Cap", "NoNewPrivs"))}
    assert "1" == rights.pop("NoNewPrivs:")
    assert {"0" * 16} == set(rights.values())
    assert str(other) not in lines


def test_a_share_is_read_only_with_what_is_mounted_below(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    at, place = str(tmp_path / "at"), str(tmp_path / "place")
    confinement = Confinement(
        shares=(
            ShareSpec(source=str(source), at=at, read_only=True),
            ShareSpec(source=str(source / "file"), at=place, read_only=False, file="file"),
        )
    )
    script = f"cat {at}/file; touch {at}/new 2>/dev/null || echo ' kept'; printf more > {place}/file"
    assert "text kept\n" == _confined(confinement, script)
    assert "more" == (source / "file").read_text()
    assert [] == os.listdir(at)  # outside nothing was mounted


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (["root", "/nowhere"], "changing the root to /nowhere: No such file or directory"),
        (["jump", "high"], 'no such step: "jump"'),
        (["bind", "/a"], 'too few words after "bind"'),
        (["user", "-1"], 'not a number: "-1"'),
        (["user", "7x"], 'not a number: "7x"'),
    ],
)
def test_what_cannot_be_done_ends_it_with_a_sentence(steps: list[str], complaint: str) -> None:
    done = subprocess.run([PROGRAM, *steps, "--", "/bin/true"], capture_output=True, text=True, check=False)
    assert (126, f"insula: cannot confine /bin/true: {complaint}\n") == (done.returncode, done.stderr)
