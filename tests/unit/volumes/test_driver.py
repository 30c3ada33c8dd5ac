"""What the local driver's options become, in moby's words."""

from __future__ import annotations

import pytest

from insula.errors import Failure, InvalidRequest
from insula.model.mounts import MountKind, MountSpec
from insula.system import mounts
from insula.volumes import driver
from insula.volumes.checks import check_mounts, parse_volumes_from
from insula.volumes.driver import MountCall, check_options, decide_mount, with_address, without_password


def test_words_become_flags_and_the_rest_is_the_file_system_s() -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "ro,size=1m,rw,noexec,uid=7,nosuid,suid"}
    assert decide_mount(options) == MountCall(
        device="tmpfs", kind="tmpfs", flags=mounts.MS_NOEXEC, data="size=1m,uid=7"
    )
    bind = {"type": "none", "device": "/srv", "o": "rbind,ro,rslave"}
    assert decide_mount(bind) == MountCall(
        device="/srv",
        kind="none",
        flags=mounts.MS_BIND | mounts.MS_REC | mounts.MS_RDONLY,
        data="",
        propagation=mounts.MS_SLAVE | mounts.MS_REC,
    )


def test_names_of_servers_become_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "resolve_address", {"files.example": "192.0.2.7"}.__getitem__)
    nfs = decide_mount({"type": "nfs", "device": ":/export", "o": "addr=files.example,vers=4,soft"})
    assert with_address(nfs) == MountCall(
        device=":/export", kind="nfs", flags=0, data="addr=192.0.2.7,vers=4,soft"
    )
    cifs = decide_mount({"type": "cifs", "device": "//files.example/share", "o": "username=me"})
    assert with_address(cifs).device == "//192.0.2.7/share"
    plain = decide_mount({"type": "tmpfs", "device": "tmpfs", "o": "addr=files.example"})
    assert with_address(plain) == plain


def test_a_name_that_nobody_knows_is_a_sentence() -> None:
    with pytest.raises(Failure, match="error resolving passed in network volume address: no-such-host"):
        driver.resolve_address("no-such-host.invalid")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"typo": "x"}, 'invalid option: "typo"'),
        ({"type": "tmpfs"}, 'missing required option: "device"'),
        ({"device": "tmpfs"}, 'missing required option: "type"'),
        ({"o": "ro"}, 'missing required option: "device"'),
        ({"size": "1g"}, "quota size requested but no quota support"),
        ({"size": "much"}, "invalid size: 'much'"),
        ({"type": "cifs", "device": "//server:445/x"}, "port not allowed in CIFS device URL"),
    ],
)
def test_options_that_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_options(options)


def test_a_password_is_in_no_message() -> None:
    assert without_password("o=user=a,password=geheim,vers=3") == "o=user=a,password=********,vers=3"


@pytest.mark.parametrize(
    ("text", "found"), [("a", ("a", False)), ("a:ro", ("a", True)), ("a:rw,z", ("a", False))]
)
def test_volumes_from(text: str, found: tuple[str, bool]) -> None:
    assert parse_volumes_from(text) == found


@pytest.mark.parametrize("text", ["", "a:ro,rw", "a:rslave", "a:nocopy", "a:odd"])
def test_volumes_from_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_volumes_from(text)


def test_a_part_of_a_volume_is_below_it() -> None:
    def part(subpath: str, source: str = "data") -> MountSpec:
        return MountSpec(kind=MountKind.VOLUME, source=source, target="/x", subpath=subpath)

    check_mounts([part("a/../b")])
    for subpath in ("/a", "..", "a/../../b"):
        with pytest.raises(InvalidRequest, match="subpath must be a relative path"):
            check_mounts([part(subpath)])
    with pytest.raises(InvalidRequest, match="anonymous"):
        check_mounts([part("a", source="")])
