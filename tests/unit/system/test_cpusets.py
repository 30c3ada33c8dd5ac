"""Sets of CPUs and memory nodes, and those that this host does not have."""

from __future__ import annotations

import pytest

from insula.engine.checks import check_cpusets
from insula.errors import InvalidRequest
from insula.model.limits import Limits
from insula.system import cpusets


@pytest.mark.parametrize(
    ("text", "expected"), [("0", {0}), ("0-2,4", {0, 1, 2, 4}), ("3,1", {1, 3}), ("5-5", {5})]
)
def test_a_list(text: str, expected: set[int]) -> None:
    assert expected == cpusets.parse(text)


@pytest.mark.parametrize("text", ["", "a-b", "2-1", "1,", "-1", "0-", "99999", "0 1"])
def test_what_is_none(text: str) -> None:
    assert cpusets.parse(text) is None


def test_shown_as_the_kernel_does() -> None:
    assert "0-2,4,6-7" == cpusets.show({7, 0, 1, 2, 4, 6})


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(cpuset_cpus="9999"), "Requested CPUs are not available - requested 9999, available: "),
        (
            Limits(cpuset_mems="9999"),
            "Requested memory nodes are not available - requested 9999, available: ",
        ),
        (Limits(cpuset_cpus="a-b"), "Invalid value a-b for cpuset cpus"),
        (Limits(cpuset_mems="x"), "Invalid value x for cpuset mems"),
    ],
)
def test_what_this_host_does_not_have_is_said_as_dockerd_says_it(limits: Limits, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{said}"):
        check_cpusets(limits)


def test_what_this_host_has_is_fine() -> None:
    everything = cpusets.show(cpusets.available_cpus()), cpusets.show(cpusets.available_nodes())
    check_cpusets(Limits(cpuset_cpus=everything[0], cpuset_mems=everything[1]))
