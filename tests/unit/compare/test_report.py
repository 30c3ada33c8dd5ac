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


def test_only_what_is_of_the_instances_is_counted() -> None:
    words = {
        "11": "qemu -name spare 0::/insula/spare",
        "12": "qemu -name aaa 0::/insula/aaa",
        "13": "virtiofsd 0::/insula/aaa",
        "14": "",
        "20": "/usr/bin/conmon -c bbb 0::/system.slice",
        "21": "sleep 0::/insula/bbb",
        "22": "cc1 0::/user.slice",
    }
    found = count(set(words), {"9", "12", "21"}, ("aaa", "bbb"), words.__getitem__)
    assert {"9", "12", "13", "20", "21"} == found
