"""The table and the JSON of `insula compare`."""

from __future__ import annotations

from insula.compare.measure import Figure, Result, count
from insula.compare.report import document, table


def results() -> list[Result]:
    container = Result(title="process")
    container.facts["kernel"] = "6.1"
    container.figures["exec_ms"] = Figure((10.0, 30.0, 20.0))
    machine = Result(title="vm")
    machine.missing["exec_ms"] = "no agent"
    return [container, machine]


def test_cells_show_median_and_spread() -> None:
    rows = {row[0]: row[1:] for row in table(results())}
    assert ["process", "vm"] == rows[""]
    assert ["20.0 ms (10.0–30.0)", "– (no agent)"] == rows["exec"]
    assert ["6.1", "–"] == rows["kernel release"]


def test_the_document_has_every_sample() -> None:
    columns = document("debian:12", 3, results())["columns"]
    assert {"median": 20.0, "samples": [10.0, 30.0, 20.0]} == columns[0]["figures"]["exec_ms"]
    assert {"exec_ms": "no agent"} == columns[1]["missing"]


def test_machines_that_are_nobodys_are_not_counted() -> None:
    programs = {"10": "/qemu", "11": "/qemu", "12": "/qemu", "13": "/virtiofsd", "14": ""}
    assert {"10", "11", "13"} == count({"11", "12", "13"}, {"10", "11"}, programs.__getitem__)
    containers = {"20": "/probe", "21": "/conmon", "22": "/probe", "23": "/conmon"}
    assert set(containers) == count(set(containers), {"20", "22"}, containers.__getitem__)
