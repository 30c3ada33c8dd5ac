"""The names of images: Docker's grammar (github.com/distribution/reference), familiar names included.  Pure.

    reference  = name [":" tag] ["@" digest]
    name       = [domain "/"] component {"/" component}

`debian` is short for `docker.io/library/debian`.  A first component is a domain only if it has a dot, a
port, an upper-case letter, or is `localhost`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from insula.errors import InvalidReference

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_MAX_PATH = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])"
_DOMAIN = re.compile(rf"{_HOST}(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """A checked name of an image, in full: `domain` and `path` are never empty."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """`docker.io/library/debian`"""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """`debian`: what people type and `docker images` shows."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(_OFFICIAL)
        return self.path if "/" in rest else rest

    def __str__(self) -> str:
        """The familiar form, with the tag and digest that there are."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.familiar_name}{tag}{digest}"

    @property
    def full(self) -> str:
        """As `str`, with the domain also where that is Docker Hub's."""
        return f"{self.name}{str(self).removeprefix(self.familiar_name)}"

    @property
    def identifier(self) -> str:
        """What a registry is asked for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or DEFAULT_TAG

    def tagged(self) -> Reference:
        """With `latest` if there is neither tag nor digest; without the tag if there is a digest, which
        outranks it (as `docker pull name:tag@digest` does)."""
        if self.digest:
            return replace(self, tag="")
        return self if self.tag else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        return replace(self, tag=check_tag(tag), digest="")

    def with_digest(self, digest: str) -> Reference:
        return replace(self, tag="", digest=check_digest(digest))


def is_identifier(text: str) -> bool:
    """Is this a full image id without its algorithm (64 hex digits)?  Such is never a name."""
    return _IDENTIFIER.fullmatch(text) is not None


def check_tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise InvalidReference(f"invalid tag format: {tag!r}")
    return tag


def check_digest(digest: str) -> str:
    """A digest of a known algorithm and the right length.  Raises InvalidReference."""
    algorithm, _, value = digest.partition(":")
    if not value or not _DIGEST.fullmatch(digest):
        raise InvalidReference(f"invalid checksum digest format: {digest!r}")
    length = _DIGEST_LENGTHS.get(algorithm)
    if length is None:
        raise InvalidReference(f"unsupported digest algorithm: {algorithm}")
    if len(value) != length:
        raise InvalidReference(f"invalid checksum digest length: {digest!r}")
    if not _HEX.fullmatch(value):
        raise InvalidReference(f"invalid checksum digest format: {digest!r}")
    return digest


def is_digest(text: str) -> bool:
    try:
        check_digest(text)
    except InvalidReference:
        return False
    return True


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_domain = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    domain, path = (first, rest) if is_domain else (DEFAULT_DOMAIN, name)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def parse_reference(text: str) -> Reference:
    """The reference that `text` writes, familiar or in full.  No tag is added.  Raises InvalidReference."""
    if is_identifier(text):
        raise InvalidReference(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    rest, at, digest = text.partition("@")
    name, tag, colon = rest, "", rest.rfind(":")
    if colon > rest.rfind("/"):
        name, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise InvalidReference("invalid reference format")
    domain, path = _split_domain(name)
    if path.lower() != path:
        raise InvalidReference(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path):
        raise InvalidReference("invalid reference format")
    if len(path) > _MAX_PATH:
        raise InvalidReference(f"repository name must not be more than {_MAX_PATH} characters")
    if at:
        if not _DIGEST.fullmatch(digest):
            raise InvalidReference("invalid reference format")
        check_digest(digest)
    return Reference(domain, path, tag, digest)
