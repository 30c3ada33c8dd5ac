"""Hidden paths, and which sysctls are an instance's own."""

from __future__ import annotations

import pytest

from insula.errors import InvalidRequest
from insula.security.paths import MASKED_PATHS, READONLY_PATHS, check_sysctl, finalize_paths


def test_paths_are_hidden_unless_privileged_or_asked_otherwise() -> None:
    assert finalize_paths((), privileged=False) == (MASKED_PATHS, READONLY_PATHS)
    assert finalize_paths((), privileged=True) == ((), ())
    assert finalize_paths(("systempaths=unconfined",), privileged=False) == ((), ())


@pytest.mark.parametrize("name", ["net.core.somaxconn", "kernel.msgmax", "fs.mqueue.msg_max"])
def test_own_sysctls_are_allowed(name: str) -> None:
    check_sysctl(name, own_network=True, own_ipc=True, own_uts=True)


@pytest.mark.parametrize("name", ["vm.swappiness", "kernel.panic", "kernel.core_pattern", "fs.file-max"])
def test_the_hosts_sysctls_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        check_sysctl(name, own_network=True, own_ipc=True, own_uts=True)


def test_a_sysctl_of_a_shared_namespace_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="network namespace"):
        check_sysctl("net.core.somaxconn", own_network=False, own_ipc=True, own_uts=True)
    with pytest.raises(InvalidRequest, match="ipc namespace"):
        check_sysctl("kernel.shmmax", own_network=True, own_ipc=False, own_uts=True)
