"""Challenges as registries write them, well and badly."""

from __future__ import annotations

import pytest

from insula.errors import RegistryFailed
from insula.images.registry.auth import Authenticator, Challenge, basic, parse_challenges
from insula.images.registry.endpoints import Endpoint
from insula.images.registry.transport import Transport
from insula.model.credentials import Credentials

_HERE = Endpoint(urls=("https://registry.example",))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], ()),
        (['Basic realm="x"'], (Challenge("basic", {"realm": "x"}),)),
        (["Basic"], (Challenge("basic", {}),)),
        (
            ['Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull,push"'],
            (
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.example/token",
                        "service": "r.example",
                        "scope": "repository:a:pull,push",
                    },
                ),
            ),
        ),
        (
            ['BEARER Realm = "a\\"b" , service=plain'],
            (Challenge("bearer", {"realm": 'a"b', "service": "plain"}),),
        ),
        (
            ['Negotiate, Basic realm="x", Bearer realm="y"'],
            (
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y"}),
            ),
        ),
        (['Bearer realm="never closed'], (Challenge("bearer", {}),)),
        (["", ",,", "=="], ()),
    ],
)
def test_challenges(headers: list[str], expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(headers) == expected


def test_basic() -> None:
    assert basic("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


async def test_basic_is_used_after_it_was_asked_for_and_never_without_credentials() -> None:
    auth = Authenticator(Transport())
    user = Credentials(username="ali", password="sesame")
    assert await auth.header(_HERE, (), user) is None
    auth.learn(_HERE, ['Basic realm="x"'])
    assert await auth.header(_HERE, (), user) == basic("ali", "sesame")
    assert await auth.header(_HERE, (), None) is None


async def test_registry_token_is_sent_as_it_is() -> None:
    auth = Authenticator(Transport())
    assert await auth.header(_HERE, (), Credentials(registry_token="t")) == "Bearer t"


def test_unknown_way_of_authentication_is_said() -> None:
    with pytest.raises(RegistryFailed, match=r"does not know .negotiate"):
        Authenticator(Transport()).learn(_HERE, ["Negotiate"])


async def test_password_is_not_sent_in_the_clear_because_a_registry_says_so() -> None:
    auth = Authenticator(Transport())
    auth.learn(_HERE, ['Bearer realm="http://evil.example/token"'])
    with pytest.raises(RegistryFailed, match="in the clear"):
        await auth.header(_HERE, (), Credentials(username="ali", password="sesame"))


async def test_realm_that_is_no_url() -> None:
    auth = Authenticator(Transport())
    auth.learn(_HERE, ['Bearer realm="file:///etc/passwd"'])
    with pytest.raises(RegistryFailed, match="is not a URL"):
        await auth.header(_HERE, (), None)
