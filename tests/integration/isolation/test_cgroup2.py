"""Containers on a host with cgroup version 2 only: on_cgroup2.py, run in a machine that is such a host.

Its kernel is Debian's, with ipvlan and 802.1q, which this machine's may lack: what needs them runs there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtual_host import make_host, run_on_host

pytestmark = [
    pytest.mark.integration,
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
PARENTS = "tests/integration/network/test_on_parent.py"
COMMAND = f"""
modprobe ipvlan && modprobe 8021q &&
python3 -m pytest -q -p no:cacheprovider -o timeout=240 --basetemp=/data/t \
    tests/integration/isolation/on_cgroup2.py \
    {PARENTS}::test_a_sub_interface_goes_with_its_last_network_if_we_made_it \
    '{PARENTS}::test_ipvlan_has_its_parents_mac[l2]'
"""
LIMIT_S = 600.0  # an idle machine needs one or two minutes, a busy one four


@pytest.mark.timeout(1200)  # the first time a Debian is made for it
def test_containers_on_a_host_with_cgroup_version_2(tmp_path: Path) -> None:
    outcome = run_on_host(make_host(), COMMAND, tmp_path, limit_s=LIMIT_S)
    assert outcome.code == 0, outcome.console
