"""Docker's grammar for names of images; cases from github.com/distribution/reference's own tests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import InvalidReference
from insula.model.reference import Reference, check_digest, is_digest, is_identifier, parse_reference

_SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian", "debian"),
        ("library/debian", "docker.io/library/debian", "debian"),
        ("docker.io/debian", "docker.io/library/debian", "debian"),
        ("index.docker.io/debian", "docker.io/library/debian", "debian"),
        ("index.docker.io/library/debian", "docker.io/library/debian", "debian"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("library/user/app", "docker.io/library/user/app", "library/user/app"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/a/b", "localhost:5000/a/b", "localhost:5000/a/b"),
        ("Host/app", "Host/app", "Host/app"),
        ("quay.io/team/app", "quay.io/team/app", "quay.io/team/app"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        ("a__b/c--d/e.f-g_h", "docker.io/a__b/c--d/e.f-g_h", "a__b/c--d/e.f-g_h"),
        ("xn--n3h.com/app", "xn--n3h.com/app", "xn--n3h.com/app"),
    ],
)
def test_familiar_and_full_names(text: str, full: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert reference.name == full
    assert reference.familiar_name == familiar
    assert parse_reference(full) == reference


@pytest.mark.parametrize(
    ("text", "tag", "digest"),
    [
        ("debian:12", "12", ""),
        ("debian:A_b.c-d", "A_b.c-d", ""),
        ("host:5000/app", "", ""),
        ("host:5000/app:1", "1", ""),
        (f"debian@{_SHA}", "", _SHA),
        (f"debian:12@{_SHA}", "12", _SHA),
        ("debian:" + "t" * 128, "t" * 128, ""),
    ],
)
def test_tags_and_digests(text: str, tag: str, digest: str) -> None:
    reference = parse_reference(text)
    assert (reference.tag, reference.digest) == (tag, digest)
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid reference format"),
        ("a" * 64, "cannot specify 64-byte hexadecimal strings"),
        ("Debian", "must be lowercase"),
        ("user/App", "must be lowercase"),
        ("-debian", "invalid reference format"),
        ("debian:", "invalid reference format"),
        ("debian:-x", "invalid reference format"),
        ("debian:" + "t" * 129, "invalid reference format"),
        ("debian@", "invalid reference format"),
        ("debian@sha256:abc", "invalid reference format"),
        ("debian@sha256:" + "a" * 63, "invalid checksum digest length"),
        ("debian@md5:" + "a" * 32, "unsupported digest algorithm"),
        ("a//b", "invalid reference format"),
        ("a/b/", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("a___b", "invalid reference format"),
        ("docker.io/", "invalid reference format"),
        ("http://debian", "invalid reference format"),
        ("debian latest", "invalid reference format"),
        ("debian\n", "invalid reference format"),
        ("../etc/passwd", "invalid reference format"),
        ("host.io:port/app", "invalid reference format"),
        ("a/" * 128 + "a", "must not be more than 255 characters"),
        ("[fe80::1%eth0]:5000/app", "invalid reference format"),
        ("ünicode", "invalid reference format"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidReference, match=words):
        parse_reference(text)


def test_tagged_adds_latest_and_lets_a_digest_outrank_a_tag() -> None:
    assert str(parse_reference("debian").tagged()) == "debian:latest"
    assert str(parse_reference("debian:12").tagged()) == "debian:12"
    assert str(parse_reference(f"debian:12@{_SHA}").tagged()) == f"debian@{_SHA}"
    assert parse_reference("debian").identifier == "latest"
    assert parse_reference(f"debian@{_SHA}").identifier == _SHA


def test_changing_tag_and_digest() -> None:
    reference = parse_reference("debian:12")
    assert str(reference.with_tag("13")) == "debian:13"
    assert str(reference.with_digest(_SHA)) == f"debian@{_SHA}"
    with pytest.raises(InvalidReference, match="invalid tag format"):
        reference.with_tag("a b")


def test_digests() -> None:
    assert check_digest(_SHA) == _SHA
    assert is_digest("sha512:" + "0" * 128)
    assert not is_digest("sha256:" + "A" * 64)
    assert not is_digest("sha256:")
    assert is_identifier("0" * 64)
    assert not is_identifier("0" * 63)


@given(st.text(max_size=80))
def test_whatever_comes_it_is_a_reference_or_a_sentence(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(reference)) == reference


_component = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+){0,2}", fullmatch=True)


@given(
    st.sampled_from(["", "localhost/", "quay.io/", "h:1/"]),
    st.lists(_component, min_size=1, max_size=4),
    st.sampled_from(["", "1", "x.Y-z"]),
)
def test_what_is_written_is_read_back(domain: str, path: list[str], tag: str) -> None:
    text = f"{domain}{'/'.join(path)}" + (f":{tag}" if tag else "")
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(reference)) == reference
    assert isinstance(reference, Reference)
