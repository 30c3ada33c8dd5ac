"""`--user` and `--group-add`, as moby's GetExecUser decides."""

from __future__ import annotations

import pytest

from insula.errors import InvalidRequest
from insula.isolation.users import Identity, find_identity

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n42:x:7:7::/seven:/bin/sh\nbroken\n"
)
GROUP = "root:x:0:\nbob:x:1001:\ndev:x:50:bob,alice\nops:x:51:alice, bob\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Identity(0, 0, (0,), "/root")),
        ("root", Identity(0, 0, (0,), "/root")),
        ("bob", Identity(1000, 1001, (50, 51, 1001), "/home/bob")),
        ("1000", Identity(1000, 1001, (50, 51, 1001), "/home/bob")),
        ("bob:dev", Identity(1000, 50, (50,), "/home/bob")),
        ("bob:7", Identity(1000, 7, (7,), "/home/bob")),
        ("5000", Identity(5000, 0, (0,), "/")),
        ("5000:5001", Identity(5000, 5001, (5001,), "/")),
        ("42", Identity(7, 7, (7,), "/seven")),
        (":dev", Identity(0, 50, (50,), "/root")),
    ],
)
def test_users(user: str, expected: Identity) -> None:
    assert find_identity(user, (), PASSWD, GROUP) == expected


def test_further_groups_by_name_and_number() -> None:
    assert find_identity("bob", ("dev", "99"), PASSWD, GROUP).groups == (50, 51, 99, 1001)


def test_an_image_without_files_has_numbers_only() -> None:
    assert find_identity("", (), "", "") == Identity(0, 0, (0,), "/")
    assert find_identity("12:34", (), "", "") == Identity(12, 34, (34,), "/")
    with pytest.raises(InvalidRequest, match="unable to find user bob: no matching entries in passwd file"):
        find_identity("bob", (), "", "")


def test_unknown_group_and_numbers_out_of_range() -> None:
    with pytest.raises(InvalidRequest, match="unable to find group nobody"):
        find_identity("bob:nobody", (), PASSWD, GROUP)
    with pytest.raises(InvalidRequest, match="range"):
        find_identity("4294967296", (), PASSWD, GROUP)


@pytest.mark.parametrize("number", ["9" * 6000, "4294967295", "4294967296", "-1", "\u0663"])
def test_what_is_no_id_in_an_images_files_is_no_user_and_no_group(number: str) -> None:
    passwd, group = f"eve:x:{number}:0::/:/bin/sh\n{PASSWD}", f"evil:x:{number}:bob\n{GROUP}"
    assert find_identity("bob", (), passwd, group) == find_identity("bob", (), PASSWD, GROUP)
    with pytest.raises(InvalidRequest, match="unable to find user eve"):
        find_identity("eve", (), passwd, group)
    with pytest.raises(InvalidRequest, match="unable to find group evil"):
        find_identity("bob:evil", (), passwd, group)
    with pytest.raises(InvalidRequest, match=r"range|unable to find user"):
        find_identity(number, (), passwd, group)
