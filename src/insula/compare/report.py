"""Results as a table for people and as JSON for programs.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula.compare.measure import Figure, Result

# key, title, unit
_FIGURES = (
    ("first_output_ms", "time to first output", "ms"),
    ("exec_ms", "exec", "ms"),
    ("memory_mib", "memory per idle instance", "MiB"),
    ("syscall_ns", "one system call", "ns"),
    ("cpu_ms", "CPU, fixed work", "ms"),
    ("disk_write_mib_s", "disk, write and fsync", "MiB/s"),
    ("disk_read_mib_s", "disk, read", "MiB/s"),
    ("net_mib_s", "network, instance to instance", "MiB/s"),
)
_FACTS = (
    ("kernel", "kernel release"),
    ("whose_kernel", "whose kernel"),
    ("kernels", "kernels for the instances"),
    ("host_syscalls", "host's system calls in reach"),
    ("own_syscalls", "own kernel's in reach"),
)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(figure: Figure, unit: str) -> str:
    text = f"{_number(figure.median)} {unit}"
    if len(figure.samples) > 1:
        low, high = figure.spread
        text += f" ({_number(low)}–{_number(high)})"
    return text


def table(results: Sequence[Result]) -> list[list[str]]:
    """Rows of cells, the heading first; columns after the first are the results."""
    rows = [["", *(result.title for result in results)]]
    for key, title in _FACTS:
        rows.append([title, *(r.facts.get(key) or _absent(r, key) for r in results)])
    for key, title, unit in _FIGURES:
        cells = [_cell(r.figures[key], unit) if key in r.figures else _absent(r, key) for r in results]
        rows.append([title, *cells])
    return rows


def _absent(result: Result, key: str) -> str:
    return f"– ({result.missing[key]})" if key in result.missing else "–"


def document(image: str, runs: int, results: Sequence[Result]) -> dict[str, Any]:
    """For `--json`: every sample, beside medians."""
    return {
        "image": image,
        "runs": runs,
        "columns": [
            {
                "title": result.title,
                "facts": result.facts,
                "figures": {
                    key: {"median": figure.median, "samples": list(figure.samples)}
                    for key, figure in result.figures.items()
                },
                "missing": result.missing,
            }
            for result in results
        ],
    }
