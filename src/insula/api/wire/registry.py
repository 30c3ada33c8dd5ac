"""Credentials in requests.  Pure."""

from __future__ import annotations

from msgspec import Struct


class AuthConfig(Struct):
    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""
