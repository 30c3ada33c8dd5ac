"""API versions: the `/v1.47` prefix, what is too old and too new.  Pure."""

from __future__ import annotations

from insula import __version__
from insula.errors import InvalidRequest

OLDEST = (1, 40)
# dockerd's own, until its 29.  What asks in a version before OLDEST is answered as in that: programs name one
# that they were written with (Traefik 1.24, Watchtower 1.25, docker-compose 1 1.38, docker-py 4 1.39)
ACCEPTED = (1, 24)
NEWEST = (1, 47)
# what programs compare with the Docker that they want (decision 0015): the last one that speaks NEWEST
ENGINE_VERSION = f"27.5.1+insula.{__version__}"

Version = tuple[int, int]


def text_of(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def split_version(path: str) -> tuple[str | None, str]:
    """`/v1.41/info` → (`1.41`, `/info`); no prefix → (None, path)."""
    if path.startswith("/v") and path[2:3].isdigit():
        end = path.find("/", 2)
        if end > 0:
            word = path[2:end]
            if all(c in "0123456789." for c in word):
                return word, path[end:]
    return None, path


def check_version(untrusted_word: str | None) -> Version:
    """None is the newest.  Raises InvalidRequest in moby's words."""
    if untrusted_word is None:
        return NEWEST
    parts = untrusted_word.split(".")
    try:
        major, minor = int(parts[0][:9] or 0), int((parts[1] if len(parts) > 1 else "0")[:9] or 0)
    except ValueError:
        raise InvalidRequest(f"invalid API version {untrusted_word!r}") from None
    if (major, minor) < ACCEPTED:
        raise InvalidRequest(
            f"client version {untrusted_word} is too old. "
            f"Minimum supported API version is {text_of(ACCEPTED)}, "
            "please upgrade your client to a newer version"
        )
    if (major, minor) > NEWEST:
        raise InvalidRequest(
            f"client version {untrusted_word} is too new. Maximum supported API version is {text_of(NEWEST)}"
        )
    return major, minor
