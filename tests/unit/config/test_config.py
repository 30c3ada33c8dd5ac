"""Settings: defaults, file, command line, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.config import Settings, read_settings
from insula.errors import InvalidRequest
from insula.model.isolation import Isolation


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_the_command_line_outranks_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'default-isolation = "vm"\nvm-memory-mib = 512\ndns = ["9.9.9.9"]\n')
    settings = read_settings(path, {"vm_memory_mib": 128, "accel": None, "dns": ()})
    assert Isolation.VM == settings.default_isolation
    assert 128 == settings.vm_memory_mib
    assert ("9.9.9.9",) == settings.dns
    assert "auto" == settings.accel


def test_switches_are_dockerds(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'tlsverify = true\ntlscacert = "/c"\n')
    settings = read_settings(path, {"tls": None, "tlsverify": None})
    assert (False, True, "/c") == (settings.tls, settings.tlsverify, settings.tlscacert)
    assert read_settings(path, {"tls": True}).tls


def test_ipv6_of_the_default_network_is_dockerds(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'ipv6 = true\nfixed-cidr-v6 = "fd00:1::/64"\n')
    settings = read_settings(path, {"ipv6": None})
    assert (settings.ipv6, settings.fixed_cidr_v6) == (True, "fd00:1::/64")
    with pytest.raises(InvalidRequest, match="fixed-cidr-v6: has no effect without ipv6"):
        Settings(fixed_cidr_v6="fd00:1::/64")


def test_no_file_is_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("insula.config.DEFAULT_CONFIG", str(tmp_path / "none"))
    assert Settings() == read_settings(None, {})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour"),
        ('vm-memory-mib = "much"', "vm-memory-mib"),
        ("vm-memory-mib = true", "vm-memory-mib"),
        ("vm-memory-mib = 1", "vm-memory-mib"),
        ('accel = "warp"', "accel"),
        ('tls = "yes"', "tls"),
        ("tlsverify = 1", "tlsverify"),
        ("tlskey = true", "tlskey"),
        ('subnet = "10.0.0.0/30"', "subnet"),
        ('subnet = "ten"', "subnet"),
        ("ipv6 = 1", "ipv6"),
        ('ipv6 = true\nfixed-cidr-v6 = "10.0.0.0/8"', "fixed-cidr-v6"),
        ("dns = 8", "dns"),
        ('dns = ["x"]', "dns"),
        ('default-isolation = "jail"', "isolation"),
        ('data-root = "here"', "data-root"),
        ("= 3", "c.toml"),
        ('host = "odd"', "host: 'odd' is not an address"),
        ('host = ["unix:///run/x.sock", "tcp://127.0.0.1"]', "host: tcp://127.0.0.1 names no port"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read_settings(write(tmp_path / "c.toml", text), {})


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no such configuration file"):
        read_settings(str(tmp_path / "none.toml"), {})
