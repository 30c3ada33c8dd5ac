"""Health checks in image configurations and in HEALTHCHECK lines."""

from __future__ import annotations

from typing import Any

import pytest

from insula.dockerfile.health import parse_healthcheck
from insula.errors import CorruptData, InvalidRequest
from insula.images.changes import apply_changes
from insula.images.healthcheck import dump_health, read_health
from insula.model.health import HealthCheck
from insula.model.image import ImageConfig

SECOND = 10**9


def test_a_configuration_comes_back_as_it_was() -> None:
    document = {
        "Test": ["CMD-SHELL", "curl -f localhost"],
        "Interval": 5 * SECOND,
        "Timeout": SECOND,
        "StartPeriod": 2,
        "StartInterval": 3,
        "Retries": 4,
    }
    found = read_health(document)
    assert found == HealthCheck(
        test=("CMD-SHELL", "curl -f localhost"),
        interval_ns=5 * SECOND,
        timeout_ns=SECOND,
        start_period_ns=2,
        start_interval_ns=3,
        retries=4,
    )
    assert dump_health(found) == document
    assert read_health({"Test": None, "Interval": 0}) is None


@pytest.mark.parametrize(
    "document",
    [
        {"Test": "x"},
        {"Test": [1]},
        {"Interval": "5s"},
        {"Retries": -1},
        {"Timeout": 2**63},
        {"Retries": True},
    ],
)
def test_what_an_image_cannot_have(document: dict[str, Any]) -> None:
    with pytest.raises(CorruptData, match="Healthcheck"):
        read_health(document)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("NONE", HealthCheck(test=("NONE",))),
        ("CMD curl  -f x", HealthCheck(test=("CMD-SHELL", "curl  -f x"))),
        ('cmd ["curl", "x y"]', HealthCheck(test=("CMD", "curl", "x y"))),
        ('CMD ["broken', HealthCheck(test=("CMD-SHELL", '["broken'))),
        (
            "--interval=1m30s --timeout=500ms --start-period=1h --start-interval=1s --retries=2 CMD x",
            HealthCheck(
                test=("CMD-SHELL", "x"),
                interval_ns=90 * SECOND,
                timeout_ns=SECOND // 2,
                start_period_ns=3600 * SECOND,
                start_interval_ns=SECOND,
                retries=2,
            ),
        ),
    ],
)
def test_lines(line: str, found: HealthCheck) -> None:
    assert parse_healthcheck(line) == found
    assert apply_changes(ImageConfig(), [f"HEALTHCHECK {line}"]).health == found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("CMD", "Missing command after HEALTHCHECK CMD"),
        ("curl x", r'Unknown type "CURL" in HEALTHCHECK \(try CMD\)'),
        ("--interval=soon CMD x", 'invalid duration "soon"'),
        ("--interval=1us CMD x", "cannot be less than 1ms"),
        ("--retries=0 CMD x", "--retries must be at least 1"),
        ("--odd=1 CMD x", "unknown flag: odd"),
    ],
)
def test_lines_that_are_refused(line: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_healthcheck(line)
