"""What people see while something is fetched or made."""

from __future__ import annotations

import io
import sys

import pytest

from insula.cli.progress import _Bars, amount


@pytest.mark.parametrize(
    ("done", "total", "speed", "text"),
    [
        (0, None, None, ""),
        (5_000_000, None, None, "5MB"),
        (5_000_000, 10_000_000, None, "5MB/10MB"),
        (12_000_000, 162_000_000, 53_700_000, "12MB/162MB  53.7MB/s"),
    ],
)
def test_an_amount(done: float, total: float | None, speed: float | None, text: str) -> None:
    assert text == amount(done, total, speed)


def test_each_step_has_one_line_of_a_narrow_terminal_and_a_bar_only_with_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("COLUMNS", "80")
    bars = _Bars()
    bars.show({"id": "linux-image-6.1.0-56-cloud-amd64", "status": "Extracting"})
    bars.show({"id": "6.1.0-56-cloud-amd64", "status": "Preparing the guest kernel"})
    detail = {"current": 20_000_000, "total": 162_500_000}
    bars.show({"id": "e8da935d3426", "status": "Extracting", "progressDetail": detail})
    bars.close()
    lines = sys.stderr.getvalue().rstrip().splitlines()  # type: ignore[attr-defined]
    assert [False, False, True] == ["━" in line for line in lines]
    assert lines[0].split() == ["linux-image-6.1.0-56-cloud-amd64", "Extracting"]
    assert "20MB/162MB" in lines[2]
    assert max(map(len, lines)) <= 80
