"""`docker top` of a virtual machine: titles and looks of procps's ps."""

from __future__ import annotations

import pytest

from insula.errors import InvalidRequest, UnsupportedField
from insula.isolation.vm import ps
from insula.isolation.vm.wire import Fields

NOW = 1_700_000_000
FIRST = f"1 0 1 1 -1 ? S 0 0 0 0 4194560 {NOW - 100} 61000 4400 1000 20 0 1 0 0 sleep"
SECOND = f"12 1 12 1 12 pts/0 R 7777 7777 5 5 64 {NOW - 90_000} 500 8192 2048 25 5 3 1 8 sh"


def row(words: str, args: str) -> str:
    return "\t".join([*words.split(), args])


ROWS: Fields = {
    "now": [str(NOW)],
    "mem_total_kib": ["200000"],
    "row": [row(FIRST, "sleep 9"), "bad", row(SECOND, "/bin/sh -c x\ty\x1b")],
}


def top(*words: str) -> tuple[tuple[str, ...], ...]:
    table = ps.finalize_table(ROWS, ps.columns_of(words))
    return (table.titles, *table.rows)


@pytest.mark.parametrize("words", [(), ("-ef",), ("-e", "-f"), ("-e -f",)])
def test_the_full_format_is_what_top_shows(words: tuple[str, ...]) -> None:
    titles, first, second = top(*words)
    assert ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD") == titles
    assert ("root", "1", "0", "61", "?", "00:01:01", "sleep 9") == first[:4] + first[5:]
    assert ("7777", "12", "1", "0", "pts/0", "00:00:00", "/bin/sh -c x?y?") == second[:4] + second[5:]


@pytest.mark.parametrize("words", [("aux",), ("waux",), ("ax", "u")])
def test_the_user_format_has_sizes_and_states(words: tuple[str, ...]) -> None:
    titles, first, second = top(*words)
    assert "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND" == " ".join(titles)
    assert "root 1 61.0 0.5 4400 1000 ? Ss" == " ".join(first[:8])
    assert ("1:01", "sleep 9") == first[9:]
    assert ("8192", "2048", "pts/0", "RNLl+") == second[4:8]


@pytest.mark.parametrize(
    ("words", "titles", "cells"),
    [
        (("-o", "pid,comm"), "PID COMMAND", ("1", "sleep")),
        (("-eopid,ppid=P,etime,etimes",), "PID P ELAPSED ELAPSED", ("1", "0", "01:40", "100")),
        (("axo", "pid,ni,nlwp,f,psr"), "PID NI NLWP F PSR", ("1", "0", "1", "4", "0")),
        (("-eo", "pid,user", "-o", "uid,time"), "PID USER UID TIME", ("1", "root", "0", "00:01:01")),
        (("-e",), "PID TTY TIME CMD", ("1", "?", "00:01:01", "sleep")),
        (("-j",), "PID PGID SID TTY TIME CMD", ("1", "1", "1", "?", "00:01:01", "sleep")),
        (
            ("-el",), "F S UID PID PPID C PRI NI ADDR SZ WCHAN TTY TIME CMD",
            ("4", "S", "0", "1", "0", "61", "80", "0", "-", "1100", "-", "?", "00:01:01", "sleep"),
        ),
        (("x",), "PID TTY STAT TIME COMMAND", ("1", "?", "Ss", "1:01", "sleep 9")),
    ],
)  # fmt: skip
def test_titles_and_cells(words: tuple[str, ...], titles: str, cells: tuple[str, ...]) -> None:
    assert (titles, cells) == (" ".join(top(*words)[0]), top(*words)[1])


@pytest.mark.parametrize("words", [["--forest"], ["-o", "pid,label"], ["-u", "x"], ["-"], ["auxf"], ["e"]])
def test_what_is_not_served_is_refused(words: list[str]) -> None:
    with pytest.raises(UnsupportedField):
        ps.columns_of(words)


@pytest.mark.parametrize("words", [["-o", "comm"], ["-o"], ["-o", "pid="]])
def test_without_a_process_id_nobody_knows_whose_it_is(words: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="Couldn't find PID field in ps output"):
        ps.columns_of(words)


def test_a_guest_s_numbers_are_bounded() -> None:
    words = ["9" * 400] * 5 + ["t", "S"] + ["9" * 18] * 14 + ["x"]
    untrusted: Fields = {"now": ["9" * 18], "mem_total_kib": ["-1"], "row": [row(" ".join(words), "x")]}
    for asked in (["aux"], ["-ef"], ["-el"], ["-o", "pid,lstart,start,etime,group,rgroup,user"]):
        table = ps.finalize_table(untrusted, ps.columns_of(asked))
        assert len(table.titles) == len(table.rows[0])
