"""What a request asks of the host's security modules, and what it is warned of."""

from __future__ import annotations

import pytest

from insula.engine import checks
from insula.engine.creation import make_warnings
from insula.errors import UnsupportedField
from insula.model.limits import Limits

from .rooms import spec


def test_labels_of_a_module_that_the_host_has_not_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("label:type:container_t", "apparmor=docker-default", "label=disable", "apparmor:unconfined")
    monkeypatch.setattr(checks, "has_selinux", lambda: False)
    monkeypatch.setattr(checks, "has_apparmor", lambda: False)
    said = [text.partition(" has no effect: ") for text in checks.check_labels(options)]
    assert [f"SecurityOpt: {option}" for option in options[:2]] == [text for text, _, _ in said]
    assert ["this host has no SELinux", "this host has no AppArmor"] == [why for _, _, why in said]
    for option, name in zip(options, ("has_selinux", "has_apparmor"), strict=False):
        monkeypatch.setattr(checks, name, lambda: True)
        with pytest.raises(UnsupportedField, match=option):
            checks.check_labels((option,))
    assert () == checks.check_labels(options[2:])


def test_a_container_that_nothing_ends_for_want_of_memory() -> None:
    assert () == make_warnings(spec("true", limits=Limits(oom_kill_disable=True, memory_bytes=1 << 26)))
    (said,) = make_warnings(spec("true", limits=Limits(oom_kill_disable=True)))
    assert said.startswith("OOM killer is disabled for the container, but no memory limit is set")
