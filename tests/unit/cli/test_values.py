"""Words of the command line as values of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from insula.cli import values
from insula.cli.mount import parse_mount
from insula.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1024", 1024),
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("1kb", 1024),
    ],
)
def test_sizes_are_binary_as_in_docker(text: str, expected: int) -> None:
    assert expected == values.parse_bytes(text, "--memory")


@pytest.mark.parametrize("text", ["", "m", "-1", "12x", "1..2g", "1 2"])
def test_a_wrong_size_names_the_flag(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--memory"):
        values.parse_bytes(text, "--memory")


@pytest.mark.parametrize(
    ("text", "expected"), [("10s", 10_000_000_000), ("1m30s", 90_000_000_000), ("250ms", 250_000_000)]
)
def test_durations_are_gos(text: str, expected: int) -> None:
    assert expected == values.parse_duration_ns(text, "--since")


@pytest.mark.parametrize("text", ["10", "s", "1m30", "1d"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--since"):
        values.parse_duration_ns(text, "--since")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("80", {"80/tcp": [{"HostIp": "", "HostPort": ""}]}),
        ("8080:80", {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}),
        ("127.0.0.1:8080:80/udp", {"80/udp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}),
        ("127.0.0.1::80", {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}),
        ("[::1]:8080:80", {"80/tcp": [{"HostIp": "::1", "HostPort": "8080"}]}),
        (
            "8080-8081:80-81",
            {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "81/tcp": [{"HostIp": "", "HostPort": "8081"}]},
        ),
        ("8000-9000:80", {"80/tcp": [{"HostIp": "", "HostPort": "8000-9000"}]}),
    ],
)
def test_published_ports(word: str, expected: object) -> None:
    bindings, exposed = values.parse_publish((word,))
    assert expected == bindings
    assert {key: {} for key in bindings} == exposed


@pytest.mark.parametrize("word", ["0:80", "80:0", "x:80", "70000", "1-3:1-2", "80/quic"])
def test_wrong_ports_are_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="--publish"):
        values.parse_publish((word,))


def test_volumes_are_binds_or_anonymous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    binds, volumes = values.parse_volumes(("/a:/b:ro", "data:/d", "./here:/h", "/anonymous"))
    assert ["/a:/b:ro", "data:/d", f"{tmp_path}/here:/h"] == binds
    assert {"/anonymous": {}} == volumes


def test_mount_words() -> None:
    assert parse_mount("type=bind,src=/a,dst=/b,readonly") == {
        "Type": "bind",
        "Source": "/a",
        "Target": "/b",
        "ReadOnly": True,
    }
    assert (parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777")) == {
        "Type": "tmpfs",
        "Target": "/t",
        "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777},
    }
    volume = (
        "src=v,dst=/v,ro=false,volume-subpath=a/b,volume-label=k=v,volume-driver=local,volume-opt=type=tmpfs"
    )
    assert parse_mount(f'{volume},"volume-opt=o=size=1m,uid=7"') == {
        "Type": "volume",
        "Source": "v",
        "Target": "/v",
        "ReadOnly": False,
        "VolumeOptions": {
            "Subpath": "a/b",
            "Labels": {"k": "v"},
            "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "o": "size=1m,uid=7"}},
        },
    }
    for word, field in (
        ("bind-recursive=disabled", "NonRecursive"),
        ("bind-nonrecursive", "NonRecursive"),
        ("bind-recursive=writable", "ReadOnlyNonRecursive"),
        ("bind-recursive=readonly", "ReadOnlyForceRecursive"),
    ):
        assert parse_mount(f"type=bind,src=/a,dst=/b,{word}")["BindOptions"] == {field: True}


@pytest.mark.parametrize(
    "word",
    [
        "type=bind,src=/a",
        "type=bind,colour=red,dst=/b",
        "type=tmpfs,dst=/t,tmpfs-mode=9",
        "type=bind,src=/a,dst=/b,bind-recursive=maybe",
        "type=bind,src=/a,dst=/b,readonly=perhaps",
    ],
)
def test_a_wrong_mount_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="--mount"):
        parse_mount(word)


def test_environment_comes_from_files_words_and_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").write_text("# comment\n\nA=1\nHERE\nNOT_SET\n")
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert ["A=1", "HERE=yes", "B=2"] == values.read_env(("B=2",), (str(tmp_path / "env"),))


def test_ulimit_device_and_restart_words() -> None:
    assert {"Name": "nofile", "Soft": 1, "Hard": 2} == values.parse_ulimit("nofile=1:2")
    assert {"Name": "nproc", "Soft": 5, "Hard": 5} == values.parse_ulimit("nproc=5")
    assert (values.parse_device("/dev/a:/dev/b:r")) == {
        "PathOnHost": "/dev/a",
        "PathInContainer": "/dev/b",
        "CgroupPermissions": "r",
    }
    assert {"Name": "on-failure", "MaximumRetryCount": 3} == values.parse_restart("on-failure:3")
    with pytest.raises(InvalidRequest, match="--restart"):
        values.parse_restart("on-failure:x")


@pytest.mark.parametrize(
    ("word", "options", "expected"),
    [
        ("/dev/sda:100", {}, {"Path": "/dev/sda", "Rate": 100}),
        ("/dev/sda:1mb", {"sizes": True}, {"Path": "/dev/sda", "Rate": 1 << 20}),
        ("/dev/sda:500", {"key": "Weight"}, {"Path": "/dev/sda", "Weight": 500}),
    ],
)
def test_a_rate_of_a_device(word: str, options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected == values.parse_throttle(word, "--device-read-bps", **options)


@pytest.mark.parametrize("word", ["", "/dev/sda", "sda:1", "/dev/sda:", "/dev/sda:1x"])
def test_a_wrong_rate_names_the_flag(word: str) -> None:
    with pytest.raises(InvalidRequest, match="--device-read-iops"):
        values.parse_throttle(word, "--device-read-iops")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2", 2_000_000_000), ("1.5", 1_500_000_000), (".1", 100_000_000), ("0.29", 290_000_000)],
)
def test_cpus_are_told_in_billionths(text: str, expected: int) -> None:
    assert expected == values.parse_cpus(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e3", "two", "1" * 30])
def test_what_is_no_number_of_cpus(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--cpus"):
        values.parse_cpus(text)
