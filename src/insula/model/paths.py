"""Paths as they are written, in an image or a request, without a look at any file system.  Pure."""

from __future__ import annotations

import posixpath


def clean_path(path: str) -> str:
    """From the root, without empty parts, `.`, `..` and a slash at the end: Go's filepath.Clean("/" + path).

    Python's normpath alone keeps two slashes at the beginning, which POSIX lets mean something.
    """
    return posixpath.normpath("/" + path.lstrip("/"))
