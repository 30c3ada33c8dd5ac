"""apt's own files read, and the same archives for another release."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import InvalidRequest
from insula.images.apt_sources import (
    AptSource,
    find_suite,
    format_deb822,
    parse_deb822,
    parse_one_line,
    parse_releases,
    read_host_sources,
    translate,
)

_DEB822 = """\
# the distribution's
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 AAAA

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""
_ONE_LINE = """\
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/security bookworm-security main # x
deb-src http://mirror.example/debian bookworm main
deb https://third.example/linux bookworm stable
"""


def test_deb822() -> None:
    [source] = parse_deb822(_DEB822)
    assert source.uris == ("http://mirror.example/debian",)
    assert source.suites == ("bookworm", "bookworm-updates", "bookworm-backports")
    assert source.options["Signed-By"].splitlines()[1:] == [
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " AAAA",
    ]


def test_one_line() -> None:
    security, third = parse_one_line(_ONE_LINE)
    assert security == AptSource(
        uris=("http://mirror.example/security",),
        suites=("bookworm-security",),
        components=("main",),
        options={"Architectures": "amd64", "Signed-By": "/usr/share/keyrings/k.gpg"},
    )
    assert third.components == ("stable",)


def test_both_are_read_from_a_host(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(_ONE_LINE)
    (tmp_path / "sources.list.d/debian.sources").write_text(_DEB822)
    (tmp_path / "sources.list.d/old.list.disabled").write_text(_ONE_LINE)
    assert len(read_host_sources(str(tmp_path))) == 3


def test_another_release_from_the_same_archives() -> None:
    sources = [*parse_deb822(_DEB822), *parse_one_line(_ONE_LINE)]
    found = translate(sources, "bookworm", "trixie")
    assert [(one.uris[0], one.suites[0]) for one in found] == [
        ("http://mirror.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("http://mirror.example/security", "trixie-security"),
    ]
    assert all(one.components == ("main",) for one in found)


def test_unstable_has_no_updates() -> None:
    assert [one.suites for one in translate(parse_deb822(_DEB822), "bookworm", "sid")] == [("sid",)]


def test_what_is_written_is_read_again() -> None:
    sources = translate([*parse_deb822(_DEB822), *parse_one_line(_ONE_LINE)], "bookworm", "trixie")
    assert parse_deb822(format_deb822(sources)) == sources


def test_releases() -> None:
    table = (
        "version,codename,series,created\n1.1,Buzz,buzz,1993\n12,Bookworm,bookworm,2021\n"
        "22.04 LTS,Jammy,jammy,2021\n,Sid,sid,1993\n"
    )
    releases = parse_releases(table)
    assert releases == {"1.1": "buzz", "12": "bookworm", "22.04": "jammy"}
    assert find_suite("12", releases) == "bookworm"
    assert find_suite("bookworm", releases) == "bookworm"
    assert find_suite("latest", releases) == "stable"
    for unknown in ("99", "nosuch", "../etc", "--help"):
        with pytest.raises(InvalidRequest, match="not a release") as raised:
            find_suite(unknown, releases)
        assert "known: 1.1 (buzz), 12 (bookworm), 22.04 (jammy)" == raised.value.hint
